"""Imports an ONNX file: finds what it is, builds our graph around it, proves it, writes the model.

The reference is the file itself in plain onnxruntime. It runs in the child process (child.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx

from lstmserve.golden import Golden, dump_golden
from lstmserve.graph import InvalidModel, StepNetwork
from lstmserve.graph.step_graph import StepGraph, fingerprint, read_step_graph
from lstmserve.manifest import GOLDEN, MODEL, Manifest, sha256
from lstmserve.spec import ModelSpec
from lstmserve_export.arrays import Arrays
from lstmserve_export.onnx_file.build import build_step
from lstmserve_export.onnx_file.layout import Layout, find_layout
from lstmserve_export.onnx_file.reference import Reference
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.onnx_file.roles import Roles, find_roles
from lstmserve_export.onnx_file.source import Source, read_source
from lstmserve_export.refusal import Refused
from lstmserve_export.sequences import SEED, lengths_for
from lstmserve_export.streaming import Mismatch, Stream, prove_stream
from lstmserve_export.target import Exported, package_versions

PACKAGES: Final = ("lstmserve", "onnx", "onnxruntime", "numpy")
PREFIXES: Final = 24  # time steps of the sequence whose states are compared after each of them
MANY: Final = 32  # sessions of the batch whose cost a note gives
Progress = Callable[[str], None]


def import_onnx(request: Request, progress: Progress = lambda stage: None) -> Exported:
    """Raises Refused, and writes nothing then."""
    request.target.choose_version()
    progress(f"read {request.file.name}")
    source = read_source(request.file)
    roles = find_roles(source, request)
    progress("find batch and time")
    layout = find_layout(source, roles, request)
    return _Job(request, source, roles, layout, progress).stream()


@dataclass(frozen=True, slots=True)
class _Job:
    request: Request
    source: Source
    roles: Roles
    layout: Layout
    progress: Progress

    def stream(self) -> Exported:
        """A file with states."""
        spec = self.layout.spec(self.request)
        initial: Arrays = {}
        model = build_step(self.source, self.roles, self.layout, initial)
        graph = _read(model, spec)
        self.progress("onnxruntime's own answers")
        reference = Reference(self.source, self.roles, self.layout, spec, initial)
        cases, more = self._cases(reference)
        network = StepNetwork(spec, graph)
        stream = Stream(network)
        parity = self._prove(stream, cases, more)
        notes = [*self.source.notes, *self.roles.notes, *self.layout.notes]
        notes += _cost_notes(stream, self.layout)
        if network.scans_because and self.layout.is_batched:
            notes.append(
                "chunks of many rows run one time step after the other, because "
                f"{network.scans_because}"
            )
        return self._write(model, graph, spec, cases, parity, tuple(notes))

    def _cases(self, reference: Reference) -> tuple[dict[str, Golden], dict[str, Golden]]:
        """The golden cases, and those that only the import checks."""
        spec = reference.spec
        lengths = np.array(lengths_for(sum(each.size for each in spec.inputs)), np.int32)
        random = reference.case(self._random(spec, len(lengths), int(lengths.max())), lengths)
        return {"random": random}, {}

    def _random(self, spec: ModelSpec, count: int, steps: int) -> dict[str, Any]:
        rng = np.random.default_rng(SEED)
        return {
            each.name: rng.standard_normal((count, steps, *each.shape)).astype(each.dtype)
            for each in spec.inputs
        }

    def _prove(
        self, stream: Stream, cases: dict[str, Golden], more: dict[str, Golden]
    ) -> dict[str, Any]:
        try:
            return prove_stream(stream, cases, more, self.progress)
        except Mismatch as error:
            raise Refused(
                f"{error}: served in batches, the file gives other answers than alone"
            ) from error

    def _write(
        self,
        model: onnx.ModelProto,
        graph: StepGraph,
        spec: ModelSpec,
        cases: dict[str, Golden],
        parity: dict[str, Any],
        notes: tuple[str, ...],
    ) -> Exported:
        files = {MODEL: model.SerializeToString(deterministic=True), GOLDEN: dump_golden(cases)}
        target = self.request.target
        manifest = Manifest(
            name=target.name,
            version=target.choose_version(),
            spec=spec,
            fingerprint=fingerprint(spec, graph),
            sha256={file: sha256(data) for file, data in files.items()},
            versions=package_versions(PACKAGES),
            parity=parity,
            notes=notes,
        )
        self.progress("write the folder")
        return target.write(manifest, files)


def _read(model: onnx.ModelProto, spec: ModelSpec) -> StepGraph:
    """The graph as the server reads it. Raises Refused."""
    try:
        return read_step_graph(model.SerializeToString(deterministic=True), spec)
    except InvalidModel as error:
        raise Refused(f"the file is not served: {error}") from error


def _cost_notes(stream: Stream, layout: Layout) -> list[str]:
    """What a batch costs of a file that takes one session a run."""
    if layout.is_batched:
        return []
    alone, many = (stream.kernel.cost.of(1, size) / 1e3 for size in (1, MANY))
    return [
        f"the file takes one session a run, so a batch saves little: on this machine a step takes "
        f"{alone:.0f} us, and a batch of {MANY} sessions {many:,.0f} us"
    ]
