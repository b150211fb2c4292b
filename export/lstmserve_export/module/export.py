"""Builds, proves and writes a model from a module as it is.

It is of kind "network", or of kind "lstm" where the module computes head(lstm(x)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import onnx
import torch
from torch import nn

from lstmserve.golden import Golden, dump_golden
from lstmserve.graph import (
    GraphWindowNetwork,
    InvalidModel,
    LstmWindowNetwork,
    PoolNetwork,
    StepNetwork,
)
from lstmserve.graph.step_graph import StepGraph, fingerprint, read_step_graph
from lstmserve.manifest import GOLDEN, MODEL, Manifest, sha256
from lstmserve.spec import WINDOW_FILLS, WINDOW_MAX, ModelSpec, Tap, WindowFill
from lstmserve_export.lstm.convert import convert
from lstmserve_export.lstm.export import NO_WINDOW, export_network
from lstmserve_export.lstm.network import describe
from lstmserve_export.module.forward import Axes, Forward
from lstmserve_export.module.graph.lower import lower
from lstmserve_export.module.graph.recognise import recognise
from lstmserve_export.module.graph.trace import trace
from lstmserve_export.module.graph.window import trace_window
from lstmserve_export.module.proof.cases import further, pairs_of, random_case
from lstmserve_export.module.proof.causes import explain
from lstmserve_export.module.proof.reference import Reference
from lstmserve_export.module.proof.running import choice_notes
from lstmserve_export.module.proof.windows import WindowReference
from lstmserve_export.module.recurrent import find_layers
from lstmserve_export.module.signature.checks import check_weights
from lstmserve_export.module.signature.scaled import probe_scaled
from lstmserve_export.module.signature.signature import Signature
from lstmserve_export.refusal import Refused
from lstmserve_export.scalers.sides import UNSCALED, Scalers
from lstmserve_export.sequences import chaos_notes
from lstmserve_export.streaming import Mismatch, Stream, prove
from lstmserve_export.taps import check_taps
from lstmserve_export.target import Exported, Target, package_versions

SMALL: Final = 4_000_000  # parameters
Progress = Callable[[str], None]
LOOKS_LIKE: Final = "it looks like head(lstm(x)) and keeps the traced graph, because"


def export_module(
    module: nn.Module,
    example: Any,
    target: Target,
    *,
    states: Sequence[str] = (),
    output_names: Sequence[str] = (),
    axes: Axes | None = None,
    scalers: Scalers = UNSCALED,
    window: int = 0,
    window_fill: WindowFill | None = None,
    is_guess: bool = False,
    progress: Progress = lambda stage: None,
) -> Exported:
    """Traces, proves and writes; calls `progress` as each stage begins. Raises Refused.

    With a `window` of W rows an answer is forward()'s to the last W rows; `window_fill` is "wait"
    by default. `is_guess` says that the example is no user's.
    """
    if not window and window_fill is not None:
        raise Refused(NO_WINDOW)
    target.choose_version()
    check_weights(module)
    with _threads_for(module):
        named = {"states": states, "output_names": output_names, "axes": axes}
        job = _Job(Forward(module, example), scalers, named, target, progress)
        if window:
            return job.windows(window, window_fill or "wait")
        return job.stream(is_guess=is_guess)


@dataclass(frozen=True, slots=True)
class _Job:
    """One export of a module. `named` has further arguments of probe()."""

    forward: Forward
    scalers: Scalers
    named: Mapping[str, Any]
    target: Target
    progress: Progress

    def stream(self, *, is_guess: bool) -> Exported:
        """The module with a running state."""
        forward, progress = self.forward, self.progress
        signature = self._probe()
        progress("trace one time step")
        traced = trace(forward, signature)
        recognised = self.scalers.exact(recognise(traced, signature))
        model, taps = lower(traced, signature)
        graph = _read(model, signature)
        check_taps(model, signature.spec, taps)
        progress("parity: torch's own answers")
        answers = _Answers.of(Reference(forward, signature), signature)
        network = StepNetwork(signature.spec, graph)
        parity = self._prove(network, answers, signature)
        choice = choice_notes(network, forward, signature, is_guess=is_guess)
        answers = replace(answers, notes=(*answers.notes, *choice))
        # Only now, since pairs of kind "lstm" have neither odd values nor long sequences.
        if recognised is not None:
            try:
                noted = replace(recognised, notes=(*recognised.notes, *answers.notes))
                return export_network(noted, self.target, pairs_of(answers.cases), progress)
            except Refused as error:
                note = f"{LOOKS_LIKE}: {error}"
                answers = replace(answers, notes=(*answers.notes, note))
        notes = _scan_notes(network)
        return self._write(model, graph, signature, answers, parity, notes, taps)

    def windows(self, window: int, fill: WindowFill) -> Exported:
        """The module's answers to the last `window` rows."""
        if type(window) is not int or not 2 <= window <= WINDOW_MAX:
            raise Refused(
                f"window is {window!r}, must be an integer in [2, {WINDOW_MAX}]: the number of "
                "rows that forward() was trained on at a time"
            )
        if fill not in WINDOW_FILLS:
            raise Refused(f"window_fill is {fill!r}, must be one of {', '.join(WINDOW_FILLS)}")
        found = self._recognise(window, fill)
        if isinstance(found, Exported):
            return found
        if fill == "grow":
            raise Refused(
                "window_fill grow is for head(lstm(x)) alone, and this module is not recognised as "
                f"that{': ' * bool(found)}{found}; take wait, or zeros if it was trained on rows "
                "with zeros in front"
            )
        signature = self._probe(window, fill)
        self.progress(f"trace a window of {window} rows")
        model, _ = lower(trace_window(self.forward, signature), signature)
        graph = _read(model, signature)
        self.progress("parity: torch's own answers")
        answers = _Answers.of(WindowReference(self.forward, signature), signature)
        network = GraphWindowNetwork(signature.spec, graph)
        parity = self._prove(network, answers, signature)
        notes = (f"{LOOKS_LIKE}: {found}",) if found else ()
        return self._write(model, graph, signature, answers, parity, notes, ())

    def _probe(self, window: int = 0, fill: WindowFill | None = None) -> Signature:
        self.progress("find inputs, outputs and states")
        windows = {"window": window, "window_fill": fill}
        return probe_scaled(self.forward, self.scalers, **self.named, **windows)

    def _recognise(self, window: int, fill: WindowFill) -> Exported | str:
        """Exports a module that is head(lstm(x)) where it streams. Otherwise says why a module that
        looks like it is not; "" for any other."""
        layers = list(find_layers(self.forward.module).values())
        if len(layers) != 1 or getattr(layers[0], "bidirectional", False):
            return ""
        try:
            signature = self._probe()
            network = self.scalers.exact(recognise(trace(self.forward, signature), signature))
        except Refused:
            return ""
        if network is None:
            return ""
        lstm = describe(network)
        spec = ModelSpec.of_lstm(lstm, window, fill)
        (source,) = signature.inputs
        signature = replace(
            signature,
            inputs=(replace(source, spec=spec.inputs[0]),),
            memories=(),
            window=window,
            window_fill=fill,
        )
        self.progress("parity: torch's own answers")
        answers = _Answers.of(WindowReference(self.forward, signature), signature)
        windows = LstmWindowNetwork(spec, convert(network, lstm))
        try:
            prove(Stream(windows), answers.cases, answers.more, self.progress)
            noted = replace(network, notes=(*network.notes, *answers.notes))
            return export_network(
                noted, self.target, None, self.progress, window=window, window_fill=fill
            )
        except (Mismatch, Refused) as error:
            return str(error)

    def _prove(
        self, network: PoolNetwork, answers: _Answers, signature: Signature
    ) -> dict[str, Any]:
        """The parity report. Raises Refused, which says why the stream is not forward()."""
        try:
            return prove(Stream(network), answers.cases, answers.more, self.progress)
        except Mismatch as error:
            case = {**answers.cases, **answers.more}[error.case]
            raise Refused(explain(error, case, self.forward, signature)) from error

    def _write(
        self,
        model: onnx.ModelProto,
        graph: StepGraph,
        signature: Signature,
        answers: _Answers,
        parity: dict[str, Any],
        notes: tuple[str, ...],
        taps: tuple[Tap, ...],
    ) -> Exported:
        files = {MODEL: _content(model), GOLDEN: dump_golden(answers.cases)}
        manifest = Manifest(
            name=self.target.name,
            version=self.target.choose_version(),
            spec=signature.spec,
            fingerprint=fingerprint(signature.spec, graph),
            sha256={file: sha256(data) for file, data in files.items()},
            versions=package_versions(),
            parity=parity,
            notes=(*answers.notes, *notes, *chaos_notes(answers.torch_error)),
            taps=taps,
        )
        self.progress("write the folder")
        return self.target.write(manifest, files)


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
        what = "window" if signature.window else "step"
        raise Refused(f"the traced {what} is not served: {error}") from error


@dataclass(frozen=True, slots=True)
class _Answers:
    """The golden cases, which are forward()'s own answers, those that only the export checks,
    remarks for the operator, and torch's error on the random rows."""

    cases: dict[str, Golden]
    more: dict[str, Golden]
    notes: tuple[str, ...]
    torch_error: float

    @classmethod
    def of(cls, reference: Reference, signature: Signature) -> _Answers:
        """Raises Refused."""
        case, torch_error = random_case(reference)
        cases = {"random": case, "example": reference.example_case()}
        notes = list(signature.notes)
        if not reference.has_double:
            notes.append(
                "forward() does not run in float64, so torch's own error is not known: the check "
                "allows 1e-5 + 2e-5 of each value"
            )
        more, more_notes = further(reference, signature)
        return cls(cases, more, (*notes, *more_notes), torch_error)
