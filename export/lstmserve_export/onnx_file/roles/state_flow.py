"""Finds what the nodes of a graph say about its states, without running it.

An input that reaches the initial state of a recurrent layer is the state that an output has which
comes from the layer's last state. On the way there are only nodes that move values: a Slice, a
Squeeze, a Concat. The layer may be a node LSTM, GRU or RNN, or a cell that is written out:
gate * c + gate * tanh(...). A cache is an output that is a part of a Concat with the input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import onnx

from lstmserve.graph.safety import all_nodes, subgraphs

# Operators that move values of their first input, and those that move values of several.
MOVES: Final = frozenset(
    ("Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "Expand", "Cast")
) | frozenset(("Slice", "Split", "Gather", "Dropout"))
JOINS: Final = {"Concat": None, "ScatterND": (0, 2), "ScatterElements": (0, 2)}  # None: all inputs
RECURRENT: Final = ("LSTM", "GRU", "RNN")
GATES: Final = ("Sigmoid", "HardSigmoid", "Sub")  # Sub: 1 - gate

Place = tuple[str, str]  # a layer, and "h" or "c"


@dataclass(slots=True)
class _Step:
    """Values move from `source` to `target`; `place` is the state that they pass on the way."""

    source: str
    target: str
    is_join: bool = False
    place: Place | None = None


@dataclass(slots=True)
class Flow:
    """The moves within a graph and its subgraphs, by where they begin and where they end."""

    ahead: dict[str, list[_Step]] = field(default_factory=dict)
    back: dict[str, list[_Step]] = field(default_factory=dict)
    _reads: dict[str, frozenset[Place]] = field(default_factory=dict)
    _writes: dict[str, frozenset[Place]] = field(default_factory=dict)
    _joined: dict[str, frozenset[str]] = field(default_factory=dict)

    def reads(self, name: str) -> frozenset[Place]:
        """The states of layers that begin with the input of that name."""
        if name not in self._reads:
            steps = _walk(self.ahead, name, is_ahead=True)
            self._reads[name] = frozenset(step.place for step, _ in steps if step.place)
        return self._reads[name]

    def writes(self, name: str) -> frozenset[Place]:
        """The states of layers that end in the output of that name."""
        if name not in self._writes:
            steps = _walk(self.back, name, is_ahead=False)
            self._writes[name] = frozenset(step.place for step, _ in steps if step.place)
        return self._writes[name]

    def joined(self, name: str) -> frozenset[str]:
        """The values whose parts, joined with others, are the output of that name."""
        if name not in self._joined:
            steps = _walk(self.back, name, is_ahead=False)
            self._joined[name] = frozenset(step.source for step, is_join in steps if is_join)
        return self._joined[name]

    def contradicts(self, before: str, after: str) -> bool:
        """Whether the input and the output are states of layers, and have no layer in common."""
        reads, writes = self.reads(before), self.writes(after)
        return bool(reads and writes) and not reads & writes

    def add(self, step: _Step) -> None:
        """Adds one move."""
        if step.source and step.target:
            self.ahead.setdefault(step.source, []).append(step)
            self.back.setdefault(step.target, []).append(step)


def _walk(
    steps: dict[str, list[_Step]], start: str, *, is_ahead: bool
) -> Iterator[tuple[_Step, bool]]:
    """Every move from or to `start`, and whether values were joined on the way."""
    seen, waiting = set(), [(start, False)]
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        for step in steps.get(at[0], ()):
            is_join = at[1] or step.is_join
            yield step, is_join
            # What ends in a layer's state is known by that layer; its beginning is another thing.
            if is_ahead or step.place is None:
                waiting.append((step.target if is_ahead else step.source, is_join))


def find_flow(graph: onnx.GraphProto) -> Flow:
    """The moves of the graph. Its names must be unique, subgraphs included, as ONNX says."""
    flow, nodes = Flow(), list(all_nodes(graph.node))
    made = {name: node for node in nodes for name in node.output if name}
    for node in nodes:
        for step in _steps(node):
            flow.add(step)
        if node.op_type == "Add":
            for source in _carried(node, made):
                flow.add(_Step(source, node.output[0], place=(node.output[0], "cell")))
    return flow


def _steps(node: onnx.NodeProto) -> Iterator[_Step]:
    if node.domain not in ("", "ai.onnx"):
        return
    inputs, outputs = list(node.input), list(node.output)
    if node.op_type in MOVES and inputs:
        yield from (_Step(inputs[0], each) for each in outputs)
    elif node.op_type in JOINS:
        places = JOINS[node.op_type] or range(len(inputs))
        yield from (_Step(inputs[at], outputs[0], is_join=len(inputs) > 1) for at in places)
    elif node.op_type in RECURRENT:
        for letter, at, to in (("h", 5, 1), ("c", 6, 2)):
            if at < len(inputs) and to < len(outputs):
                yield _Step(inputs[at], outputs[to], place=(node.output[to], letter))
    yield from _subgraph_steps(node)


def _subgraph_steps(node: onnx.NodeProto) -> Iterator[_Step]:
    """The values that go into and come out of the node's subgraphs."""
    for graph in subgraphs(node):
        inner = [each.name for each in graph.input]
        # A Loop's body has an output ahead of the node's own: whether to go on.
        ends = [each.name for each in graph.output][1 if node.op_type == "Loop" else 0 :]
        yield from (_Step(*pair) for pair in zip(node.input, inner, strict=False))
        yield from (_Step(*pair) for pair in zip(ends, node.output, strict=False))


def _carried(node: onnx.NodeProto, made: dict[str, onnx.NodeProto]) -> Iterator[str]:
    """The value v of a sum gate * v + gate * tanh(...), which is what a cell keeps."""
    parts = [made.get(name) for name in node.input]
    if any(part is None or part.op_type != "Mul" for part in parts):
        return
    one, other = (list(part.input) for part in parts if part is not None)
    for kept, fresh in ((one, other), (other, one)):
        kinds = {_origin(name, made) for name in fresh}
        if "Tanh" not in kinds or kinds.isdisjoint(GATES):
            continue
        for value, gate in (kept, kept[::-1]):
            if _origin(gate, made) in GATES and _origin(value, made) not in (*GATES, "Tanh"):
                yield value


def _origin(name: str, made: dict[str, onnx.NodeProto]) -> str:
    """The operator that computed the value, moves left out."""
    while (node := made.get(name)) is not None and node.op_type in MOVES:
        name = node.input[0]
    return node.op_type if node is not None else ""


def find_restarts(graph: onnx.GraphProto) -> list[str]:
    """The recurrent layers that only read forwards, and begin each run from a state that no input
    has a part in: a run does not go on where the one before ended. Layers in subgraphs are left
    out."""
    made = {name: node for node in graph.node for name in node.output if name}
    given = {each.name for each in graph.input} - {each.name for each in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type not in RECURRENT or node.domain not in ("", "ai.onnx"):
            continue
        way = next((each.s for each in node.attribute if each.name == "direction"), b"forward")
        if way == b"forward" and given.isdisjoint(_sources(node.input[5:7], made)):
            found.append(node.name or f"{node.op_type} of {node.output[0] or node.output[1]}")
    return found


def _sources(names: Iterable[str], made: dict[str, onnx.NodeProto]) -> set[str]:
    """These values and all whose values, not only sizes, they are computed from."""
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        node = made.get(name)
        if node is not None and node.op_type not in ("Shape", "Size"):
            waiting += (each for inner in all_nodes([node]) for each in inner.input)
    return seen
