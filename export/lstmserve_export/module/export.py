"""Builds, proves and writes a model from a module as it is.

It is of kind "network", or of kind "lstm" where the module computes head(lstm(x)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import numpy as np
import onnx
import torch
from torch import nn

from lstmserve.golden import Golden, dump_golden
from lstmserve.graph import InvalidModel, StepNetwork
from lstmserve.graph.step_graph import StepGraph, fingerprint, read_step_graph
from lstmserve.manifest import GOLDEN, MODEL, Manifest, sha256
from lstmserve_export.lstm.export import export_network
from lstmserve_export.lstm.network import Network
from lstmserve_export.module.forward import Axes, Forward
from lstmserve_export.module.graph.lower import lower
from lstmserve_export.module.graph.recognise import recognise
from lstmserve_export.module.graph.taps import check_taps
from lstmserve_export.module.graph.trace import trace
from lstmserve_export.module.proof.cases import further, pairs_of, random_case
from lstmserve_export.module.proof.causes import explain
from lstmserve_export.module.proof.proof import Mismatch, prove
from lstmserve_export.module.proof.reference import Reference
from lstmserve_export.module.signature.checks import check_weights
from lstmserve_export.module.signature.scaled import probe_scaled
from lstmserve_export.module.signature.signature import Signature
from lstmserve_export.refusal import Refused
from lstmserve_export.scalers.sides import UNSCALED, Scalers
from lstmserve_export.sequences import chaos_notes
from lstmserve_export.target import Exported, Target, package_versions

SMALL: Final = 4_000_000  # parameters
Progress = Callable[[str], None]
Cases = Mapping[str, Golden]


def export_module(
    module: nn.Module,
    example: Any,
    target: Target,
    *,
    states: Sequence[str] = (),
    output_names: Sequence[str] = (),
    axes: Axes | None = None,
    scalers: Scalers = UNSCALED,
    progress: Progress = lambda stage: None,
) -> Exported:
    """Traces, proves and writes; calls `progress` as each stage begins. Raises Refused."""
    target.choose_version()
    check_weights(module)
    with _threads_for(module):
        progress("find inputs, outputs and states")
        forward = Forward(module, example)
        signature = probe_scaled(forward, scalers, states, output_names, axes)
        progress("trace one time step")
        traced = trace(forward, signature)
        recognised = recognise(traced, signature)
        model, taps = lower(traced, signature)
        graph = _read(model, signature)
        check_taps(model, signature.spec, taps)
        progress("parity: torch's own answers")
        cases, more, notes, torch_error = _answers(forward, signature)
        network = StepNetwork(signature.spec, graph)
        try:
            parity = prove(network, cases, more, progress)
        except Mismatch as error:
            case = {**cases, **more}[error.case]
            raise Refused(explain(error, case, forward, signature)) from error
        # Only now, since pairs of kind "lstm" have neither odd values nor long sequences.
        exported = _export_lstm(recognised, cases, notes, target, progress)
        if exported is not None:
            return exported
    files = {MODEL: _content(model), GOLDEN: dump_golden(cases)}
    manifest = Manifest(
        name=target.name,
        version=target.choose_version(),
        spec=signature.spec,
        fingerprint=fingerprint(signature.spec, graph),
        sha256={file: sha256(data) for file, data in files.items()},
        versions=package_versions(),
        parity=parity,
        notes=(*notes, *_scan_notes(network), *chaos_notes(torch_error)),
        taps=taps,
    )
    progress("write the folder")
    return target.write(manifest, files)


@contextmanager
def _threads_for(module: nn.Module) -> Iterator[None]:
    """Gives torch one thread for a small module. On a busy machine several threads wait for each
    other longer than they compute: an export took 65 s instead of 5 s."""
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in module.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _scan_notes(network: StepNetwork) -> tuple[str, ...]:
    """A note for the operator of a network whose chunks run one time step after the other."""
    if not network.scans_because:
        return ()
    return (
        f"chunks of many rows run one time step after the other, because {network.scans_because}",
    )


def _content(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))


def _read(model: onnx.ModelProto, signature: Signature) -> StepGraph:
    """The graph as the server reads it. Raises Refused."""
    try:
        return read_step_graph(_content(model), signature.spec)
    except InvalidModel as error:
        raise Refused(f"the traced step is not served: {error}") from error


def _answers(
    forward: Forward, signature: Signature
) -> tuple[dict[str, Golden], dict[str, Golden], list[str], float]:
    """The golden cases, which are forward()'s own answers, those that only the export checks,
    remarks for the operator, and torch's error on the random rows."""
    reference = Reference(forward, signature)
    case, torch_error = random_case(reference, signature)
    rows = reference.example()
    count, length = next(iter(rows.values())).shape[:2]
    cases = {"random": case, "example": reference.case(rows, np.full(count, length))}
    notes = [*signature.notes]
    if not reference.has_double:
        notes.append(
            "forward() does not run in float64, so torch's own error is not known: the check "
            "allows 1e-5 + 2e-5 of each value"
        )
    more, more_notes = further(reference, signature)
    return cases, more, [*notes, *more_notes], torch_error


def _export_lstm(
    network: Network | None, cases: Cases, notes: list[str], target: Target, progress: Progress
) -> Exported | None:
    """The model of kind "lstm"; None, and a note more, where that is not proved to be forward()."""
    if network is None:
        return None
    try:
        noted = replace(network, notes=(*network.notes, *notes))
        return export_network(noted, target, pairs_of(cases), progress)
    except Refused as error:
        notes.append(f"it looks like head(lstm(x)) and keeps the traced graph, because: {error}")
        return None
