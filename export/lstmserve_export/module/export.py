"""Builds, proves and writes a model of kind "network" from a module as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from torch import nn

from lstmserve.golden import dump_golden
from lstmserve.graph import InvalidModel, StepNetwork
from lstmserve.graph.step_graph import fingerprint, read_step_graph
from lstmserve.manifest import GOLDEN, MODEL, Manifest, sha256
from lstmserve_export.module.causes import explain
from lstmserve_export.module.forward import Axes, Forward
from lstmserve_export.module.lower import lower
from lstmserve_export.module.probe import probe
from lstmserve_export.module.proof import Mismatch, prove
from lstmserve_export.module.reference import Reference, further, probing
from lstmserve_export.module.taps import check_taps
from lstmserve_export.module.trace import trace
from lstmserve_export.refusal import Refused
from lstmserve_export.target import Exported, Target, package_versions

CHAOTIC_ERROR: Final = 0.01


def export_module(
    module: nn.Module,
    example: Any,
    target: Target,
    *,
    states: Sequence[str] = (),
    output_names: Sequence[str] = (),
    axes: Axes | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Exported:
    """Traces, proves and writes; calls `progress` as each stage begins. Raises Refused."""
    version = target.choose_version()
    progress("find inputs, outputs and states")
    forward = Forward(module, example)
    signature = probe(forward, states, output_names, axes)
    spec = signature.spec
    progress("trace one time step")
    model, taps = lower(trace(forward, signature), signature)
    content = model.SerializeToString(deterministic=True)
    try:
        graph = read_step_graph(content, spec)
    except InvalidModel as error:
        raise Refused(f"the traced step is not served: {error}") from error
    progress("parity: torch's own answers")
    reference = Reference(forward, signature)
    case, whole_error = probing(reference, signature)
    cases = {"random": case}
    rows = reference.example()
    cases["example"] = reference.case(rows, _full_lengths(rows))
    check_taps(model, spec, taps)
    more, more_notes = further(reference, signature)
    try:
        parity = prove(StepNetwork(spec, graph), cases, more, progress)
    except Mismatch as error:
        raise Refused(explain(error, {**cases, **more}[error.case], forward, signature)) from error
    files = {MODEL: content, GOLDEN: dump_golden(cases)}
    manifest = Manifest(
        name=target.name,
        version=version,
        spec=spec,
        fingerprint=fingerprint(spec, graph),
        sha256={file: sha256(data) for file, data in files.items()},
        versions=package_versions(),
        parity=parity,
        notes=(*signature.notes, *_notes(reference, whole_error), *more_notes),
        taps=taps,
    )
    progress("write the folder")
    return target.write(manifest, files)


def _full_lengths(rows: dict[str, Any]) -> Any:
    first = next(iter(rows.values()))
    return np.full(first.shape[0], first.shape[1])


def _notes(reference: Reference, torch_error: float) -> list[str]:
    """Remarks for the operator."""
    notes = []
    if not reference.has_double:
        notes.append(
            "forward() does not run in float64, so torch's own error is not known: the check "
            "allows 1e-5 + 2e-5 of each value"
        )
    if torch_error > CHAOTIC_ERROR:
        notes.append(
            f"torch's own float32 is off by {torch_error:.2g} on random rows: this network "
            "amplifies rounding, so the export checks it on shorter sequences, and long streams "
            "differ between machines"
        )
    return notes
