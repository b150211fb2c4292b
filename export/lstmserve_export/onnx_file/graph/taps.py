"""Names the LSTM, GRU and RNN nodes of a graph, so that a session's gates can be shown later.

A node has a tap if it begins from what its session left, reads forwards, and computes by the
formulas of taps.py; the others are counted in notes, with the reason. It reads the graph that the
server runs, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper

from lstmserve.graph.safety import subgraphs
from lstmserve.graph.step_layout import NET
from lstmserve.spec import LAYER_STATES, LayerKind, ModelSpec, Tap
from lstmserve_export.onnx_file.graph.splice import names_read
from lstmserve_export.refusal import Refused, shorten
from lstmserve_export.taps import wrong_taps

KINDS: Final[Mapping[str, LayerKind]] = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn"}
ACTIVATIONS: Final = {
    "lstm": [b"sigmoid", b"tanh", b"tanh"],
    "gru": [b"sigmoid", b"tanh"],
    "rnn": [b"tanh"],
}
LETTERS: Final = ("W", "R", "B")  # inputs 1 to 3 of a node
LENGTHS, STARTS, PEEPHOLES = 4, 5, 7  # of its other inputs
TAPS_MAX: Final = 256  # a manifest is small
NONE: Final = "no LSTM, GRU or RNN node: lstmserve cannot show its gates"
NO_MEMORY: Final = "begins each step from the same state"


@dataclass(frozen=True, slots=True)
class Taps:
    """What the manifest says of the recurrent nodes."""

    taps: tuple[Tap, ...]
    notes: tuple[str, ...]


def find_taps(model: onnx.ModelProto, spec: ModelSpec, rows: Mapping[str, Any]) -> Taps:
    """Of the step graph `model`, which runs once for N sessions with the inputs [N, *shape]
    `rows`."""
    taps: list[Tap] = []
    left: dict[str, list[str]] = {}
    for place in _places(model.graph, spec):
        for node in place.nodes:
            name = node.output[0].removeprefix(NET)
            label = node.name.removeprefix(NET) or f"{node.op_type} of {name}"
            found = place.tap(node, label)
            if isinstance(found, str):
                left.setdefault(found, []).append(label)
            elif len(taps) == TAPS_MAX:
                left.setdefault(f"comes after the first {TAPS_MAX}", []).append(label)
            else:
                taps.append(found)
    why = "gives other states than its formulas"
    try:
        wrong = wrong_taps(model, spec, taps, rows)
    except Refused:
        why, wrong = "has values that onnxruntime does not give out", taps
    if wrong:
        left[why] = [each.layer for each in wrong]
        taps = [each for each in taps if each not in wrong]
    if not taps and not left:
        return Taps((), (NONE,))
    notes = (f"gates cannot be shown of {shorten(e)}: each {why}" for why, e in left.items())
    return Taps(tuple(taps), tuple(notes))


@dataclass(frozen=True, slots=True)
class _Place:
    """Recurrent nodes of one graph.

    `weights` have the dtypes of the constants that are seen there. `remembers` are the values that
    depend on the states of a session. `inside` is as in Tap. `lies_in` is the operator whose
    subgraph this is, unless that is the Scan over the sessions.
    """

    nodes: tuple[NodeProto, ...]
    weights: Mapping[str, int]
    remembers: Collection[str]
    inside: str = ""
    lies_in: str = ""

    def tap(self, node: NodeProto, label: str) -> Tap | str:
        """The tap, or why there is none, as the end of a sentence."""
        kind = KINDS[node.op_type]
        count = LAYER_STATES[kind]
        given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        inputs = [*node.input, *[""] * (PEEPHOLES + 1 - len(node.input))]
        outputs = [*node.output, *[""] * (3 - len(node.output))]
        weights = {letter: name for letter, name in zip(LETTERS, inputs[1:], strict=False) if name}
        before, after = inputs[STARTS : STARTS + count], outputs[1 : 1 + count]
        if why := _unlike(kind, given, inputs):
            return why
        if self.lies_in:
            return f"lies in a node {self.lies_in}"
        if before[0] not in self.remembers or "" in before:
            return NO_MEMORY
        if not set(weights.values()) <= set(self.weights):
            return "has weights that are computed in each step"
        if self.weights[inputs[1]] != TensorProto.FLOAT:
            return "computes in another dtype than float32"
        if "" in after:
            return "does not give its last state"
        return Tap(
            layer=label,
            index=0,
            kind=kind,
            input=inputs[0],
            states=(),
            weights=weights,
            before=tuple(before),
            after=tuple(after),
            inside=self.inside,
            linear_before_reset=kind != "gru" or bool(given.get("linear_before_reset", 0)),
        )


def _unlike(kind: LayerKind, given: Mapping[str, Any], inputs: list[str]) -> str:
    """What the node does that the formulas do not; "": nothing."""
    if (direction := given.get("direction", b"forward")) != b"forward":
        return "reads backwards" if direction == b"reverse" else "reads in both directions"
    activations = [each.lower() for each in given.get("activations", ACTIVATIONS[kind])]
    if activations != ACTIVATIONS[kind]:
        return "has other activations"
    if given.get("clip") or given.get("input_forget") or given.get("layout"):
        return "has a clip, coupled gates or another layout"
    if inputs[LENGTHS] or (kind == "lstm" and inputs[PEEPHOLES]):
        return "has lengths or peepholes"
    return ""


def _places(graph: GraphProto, spec: ModelSpec) -> Iterator[_Place]:
    """The graph, the body of its Scan over the sessions, and all other subgraphs."""
    states = {each.name for each in spec.states}
    tensors = states | {each.name for each in spec.inputs}
    remembers = _reached(graph.node, states)
    weights = {each.name: each.data_type for each in graph.initializer}
    yield _Place(_recurrent(graph.node), weights, remembers)
    for node in graph.node:
        if node.op_type == "Scan" and set(node.input) <= tensors:
            (body,) = subgraphs(node)
            pairs = zip(node.input, body.input, strict=True)
            reached = _reached(body.node, [inner.name for name, inner in pairs if name in states])
            known = weights | {each.name: each.data_type for each in body.initializer}
            yield _Place(_recurrent(body.node), known, reached, inside=node.output[0])
            for each in body.node:
                yield from _deeper(each)
        else:
            yield from _deeper(node)


def _deeper(node: NodeProto) -> Iterator[_Place]:
    for graph in subgraphs(node):
        yield _Place(_recurrent(graph.node), {}, (), lies_in=node.op_type)
        for each in graph.node:
            yield from _deeper(each)


def _recurrent(nodes: Iterable[NodeProto]) -> tuple[NodeProto, ...]:
    return tuple(each for each in nodes if each.op_type in KINDS and not each.domain)


def _reached(nodes: Iterable[NodeProto], names: Collection[str]) -> set[str]:
    """The values that depend on these."""
    found = set(names)
    for node in nodes:
        if not found.isdisjoint(names_read([node])):
            found.update(node.output)
    return found
