"""Imports an ONNX file: finds what it is, builds our graph around it, proves it, writes the model.

The reference is the file itself in plain onnxruntime. It runs in the child process (child.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
import onnx

from lstmserve.golden import Golden, dump_golden
from lstmserve.graph import GraphWindowNetwork, InvalidModel, StepNetwork
from lstmserve.graph.sequence import graph_sequences
from lstmserve.graph.step_graph import StepGraph, fingerprint, read_step_graph
from lstmserve.graph.step_layout import NET
from lstmserve.manifest import GOLDEN, MODEL, Manifest, sha256
from lstmserve.spec import ModelSpec, Tap
from lstmserve_export.arrays import Array, Arrays
from lstmserve_export.onnx_file.graph.build import build_sequence, build_step, build_window
from lstmserve_export.onnx_file.graph.loops import loop_notes
from lstmserve_export.onnx_file.graph.taps import find_taps
from lstmserve_export.onnx_file.layout.batch_axis import NO_BATCH
from lstmserve_export.onnx_file.layout.place import Layout
from lstmserve_export.onnx_file.layout.probe import Probed, probe
from lstmserve_export.onnx_file.layout.trial import Trial
from lstmserve_export.onnx_file.load.source import Source, read_source
from lstmserve_export.onnx_file.proof.cases import make_cases
from lstmserve_export.onnx_file.proof.pairs import (
    SequencePair,
    check_sequence_pairs,
    given_rows,
    read_initial,
    read_sequence_pairs,
)
from lstmserve_export.onnx_file.proof.predict import (
    accepted_lengths,
    prove_sequences,
    rows_max,
    sequence_case,
)
from lstmserve_export.onnx_file.proof.reference import Reference, SequenceReference
from lstmserve_export.onnx_file.proof.windows import (
    lengths_of,
    new_sessions,
    window_case,
    windows_alone,
)
from lstmserve_export.onnx_file.request import EVERY, Request
from lstmserve_export.onnx_file.roles.roles import Roles, find_roles
from lstmserve_export.refusal import Refused
from lstmserve_export.streaming import Mismatch, Stream, prove_stream
from lstmserve_export.target import Exported, package_versions

PACKAGES: Final = ("lstmserve", "onnx", "onnxruntime", "numpy")
STATELESS: Final = (
    "no states: it takes whole sequences (Predict) and no steps; with --window W it would answer "
    "each row from the last W"
)
TAPPED: Final = 4  # sessions of the run that checks the taps
MANY: Final = 32  # sessions of the batch whose cost a note gives
Progress = Callable[[str], None]


def import_onnx(request: Request, progress: Progress = lambda stage: None) -> Exported:
    """Raises Refused, and writes nothing then."""
    request.target.choose_version()
    progress(f"read {request.file.name}")
    source = read_source(request.file)
    roles = find_roles(source, request)
    progress("find batch and time")
    given: Arrays = {}
    if request.golden is not None:
        given = given_rows(request.golden, [each.name for each in roles.inputs])
    job = _Job.of(probe(source, roles, request, given), request, roles, progress)
    try:
        return job.run()
    except Mismatch as error:
        if not job.layout.is_batched or request.batch_axes:
            raise Refused(f"{error}; nothing was written") from error
        said = f"{NO_BATCH}in a batch {error}"
    progress("find time without a batch")
    alone = replace(request, batch_axes={EVERY: None})
    job = _Job.of(probe(source, roles, alone, given), request, roles, progress)
    kept = (note for note in job.layout.notes if not note.startswith(NO_BATCH))
    try:
        return replace(job, layout=replace(job.layout, notes=(said, *kept))).run()
    except Mismatch as error:
        raise Refused(f"{error}, one session a run; nothing was written") from error


@dataclass(frozen=True, slots=True)
class _Job:
    """The import of a file whose tensors are placed."""

    request: Request
    source: Source
    roles: Roles
    layout: Layout
    trial: Trial
    progress: Progress

    @classmethod
    def of(cls, probed: Probed, request: Request, roles: Roles, progress: Progress) -> _Job:
        """What probe() found."""
        return cls(request, probed.source, roles, probed.layout, probed.trial, progress)

    def run(self) -> Exported:
        """Raises Refused, and Mismatch where the served graph has other answers than the file."""
        window = self.request.window
        if self.roles.states and window:
            raise Refused(
                "--window is for a file without states; this one has "
                f"{', '.join(each.before.name for each in self.roles.states)}"
            )
        if self.roles.states:
            return self._stream()
        if self.request.initial_state is not None:
            raise Refused("--initial-state is for a file with states, and this one has none")
        return self._windows() if window else self._sequences()

    def _stream(self) -> Exported:
        """A file with states."""
        spec = self.layout.spec(self.request)
        path = self.request.initial_state
        initial = read_initial(path, self.layout) if path else {}
        model = build_step(self.source, self.roles, self.layout, initial)
        graph = _read(model, spec)
        self.progress("onnxruntime's own answers")
        reference = Reference(self.source, self.roles, self.layout, spec, initial)
        draw = partial(self.trial.sequences, self.layout.inputs)
        cases = make_cases(reference, self.layout, draw, self.request.golden)
        network = StepNetwork(spec, graph)
        stream = Stream(network)
        parity = prove_stream(stream, cases.golden, cases.more, self.progress)
        if self.layout.rounding:  # on other rows than those of the proof, perhaps
            outputs = cases.golden["random"].outputs.values()
            largest = max(float(np.abs(np.asarray(each, np.float64)).max()) for each in outputs)
            difference = max(parity["difference"], self.layout.rounding * largest)
            parity |= {"is_exact": False, "difference": difference}
        notes = [*cases.notes, *_cost_notes(stream, self.layout)]
        notes += loop_notes(model.graph)
        if network.scans_because and self.layout.is_batched:
            notes.append(
                "chunks of many rows run one time step after the other, because "
                f"{network.scans_because.replace(NET, '')}"
            )
        rows = {name: each[:, 0] for name, each in self._sequences_of(TAPPED, 1).items()}
        found = find_taps(model, spec, rows)
        notes += found.notes
        return self._write(model, graph, spec, cases.golden, parity, notes, found.taps)

    def _windows(self) -> Exported:
        """A file without states, which reads W rows at a time."""
        spec, window = self.layout.spec(self.request), self.request.window
        model = build_window(self.source, self.roles, self.layout, window)
        graph = _read(model, spec)
        self.progress("onnxruntime's own answers")
        reference = SequenceReference(self.source, self.roles, self.layout)
        lengths = lengths_of(spec)
        rows = self._sequences_of(len(lengths), int(lengths.max()) + window - 1)
        cases = {"random": window_case(reference, spec, rows, lengths)}
        new = new_sessions(reference, spec, self._sequences_of(2, 2 * window))
        if new is not None:
            cases["new"] = new
        if pairs := self._pairs(reference):
            rows = {n: np.stack([pair.inputs[n] for pair in pairs]) for n in pairs[0].inputs}
            cases["golden"] = windows_alone(reference, spec, rows)
        stream = Stream(GraphWindowNetwork(spec, graph))
        parity = prove_stream(stream, cases, {}, self.progress)
        notes = [*_cost_notes(stream, self.layout), *loop_notes(model.graph)]
        return self._write(model, graph, spec, cases, parity, notes)

    def _sequences(self) -> Exported:
        """A file without states, for Predict alone."""
        spec = self.layout.spec(self.request)
        model = build_sequence(self.source, self.roles, self.layout)
        graph = _read(model, spec)
        self.progress("onnxruntime's own answers")
        reference = SequenceReference(self.source, self.roles, self.layout)
        rows = {n: each[0] for n, each in self._sequences_of(1, rows_max(spec)).items()}
        sequences = [
            {name: each[:length] for name, each in rows.items()}
            for length in accepted_lengths(reference, self.layout, rows)
        ]
        cases = {"random": sequence_case(reference, spec, sequences)}
        if pairs := self._pairs(reference):
            rows_of = [pair.inputs for pair in pairs]
            cases["golden"] = sequence_case(reference, spec, rows_of)
        parity = prove_sequences(graph_sequences(spec, graph), cases)
        return self._write(model, graph, spec, cases, parity, [STATELESS, *loop_notes(model.graph)])

    def _pairs(self, reference: SequenceReference) -> list[SequencePair]:
        """The user's sequences, to which the file itself gives the user's outputs. Raises
        Refused."""
        if self.request.golden is None:
            return []
        pairs, window = read_sequence_pairs(self.request.golden, self.layout), self.request.window
        if window and any(len(each) != window for pair in pairs for each in pair.inputs.values()):
            raise Refused(f"--golden: with --window {window} each sequence has {window} rows")
        check_sequence_pairs(pairs, [reference.answer(pair.inputs) for pair in pairs])
        return pairs

    def _sequences_of(self, count: int, steps: int) -> dict[str, Array]:
        """Random rows [count, steps, *shape] of each input."""
        return self.trial.sequences(self.layout.inputs, count, steps)

    def _write(
        self,
        model: onnx.ModelProto,
        graph: StepGraph,
        spec: ModelSpec,
        cases: dict[str, Golden],
        parity: dict[str, Any],
        notes: list[str],
        taps: tuple[Tap, ...] = (),
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
            notes=(*self.source.notes, *self.roles.notes, *self.layout.notes, *notes),
            taps=taps,
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
    alone, many = (stream.kernel.cost.of(1, size) / 1e6 for size in (1, MANY))
    return [
        f"sessions of a batch run one by one: here a step takes {alone:.2g} ms, and a batch of "
        f"{MANY} sessions {many:.2g} ms"
    ]
