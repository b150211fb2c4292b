"""A traced step as one chain of nodes, and what the nodes do to the axes of a value.

recognise.py reads a chain. A value in it has a batch and a width, and any number of axes of length
1, such as the only time step. This file knows which nodes only move those; it must not know layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from lstmserve_export.arrays import Array
from lstmserve_export.module.graph.trace import DOMAIN

# What an axis of a value is. LAYERS is only in a state of an LSTM that has several.
BATCH, ONE, LAYERS, WIDTH = "batch", "one", "layers", "width"


class NotRecognised(Exception):
    """The trace is not head(lstm(x))."""


class Value(NamedTuple):
    """What is known of a value of the graph: its axes, and the sizes of two of them."""

    axes: tuple[str, ...]
    width: int
    layers: int = 1

    def size(self, axis: int) -> int:
        """The size of an axis; -1 for the batch, as ONNX's Reshape has it."""
        label = self.axes[axis]
        return {BATCH: -1, ONE: 1, LAYERS: self.layers, WIDTH: self.width}[label]

    def with_axes(self, axes: Sequence[str]) -> Value:
        """The same values along other axes."""
        return self._replace(axes=tuple(axes))


def check(is_so: bool) -> None:
    """Raises NotRecognised unless it is so."""
    if not is_so:
        raise NotRecognised


class Link(NamedTuple):
    """A node of a path, the value on the path that it gives, and the value that it adds to it."""

    node: onnx.NodeProto
    name: str
    side: str = ""


class Graph:
    """The nodes of a trace by what they compute, and its constants."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers = {name: node for node in graph.node for name in node.output}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        if any(tensor.external_data for tensor in graph.initializer):
            raise NotRecognised

    def constant(self, name: str) -> Array | None:
        """The value, if no input and no state has a part in it."""
        tensor = self._tensors.get(name)
        maker = self._makers.get(name)
        if tensor is None and maker is not None and maker.op_type == "Constant":
            tensor = next((a.t for a in maker.attribute if a.name == "value"), None)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))

    def maker(self, name: str) -> onnx.NodeProto | None:
        """The node that gives the value; None for an input, a state or a constant."""
        return self._makers.get(name)

    def path(self, start: str, end: str, may_fork: bool = True) -> list[Link]:
        """The nodes from `start` to `end` in order.

        If the path `may_fork`, a node may add a value that no layer has a part in: its `side`.
        Raises NotRecognised where a node reads anything else that is no constant.
        """
        found: list[Link] = []
        while end != start:
            node = self._makers.get(end)
            if node is None or len(found) > len(self._makers):
                raise NotRecognised
            sources, side = self._sources(node), ""
            if len(sources) == 2 and node.op_type == "Add" and may_fork:
                sources.sort(key=lambda name: self._is_side(start, name))
                side = sources.pop()
                check(self._is_side(start, side))
            if len(sources) != 1:
                raise NotRecognised
            found.append(Link(node, end, side))
            end = sources[0]
        return found[::-1]

    def _sources(self, node: onnx.NodeProto) -> list[str]:
        """What the node reads, apart from constants and states."""
        read = node.input[:1] if node.domain == DOMAIN else node.input
        found = [name for name in read if name and self._is_variable(name)]
        if node.op_type in ("Mul", "Where"):  # of SiLU and softplus, which read a value twice
            found = [name for name in found if not self._is_part(name, found)]
        return found

    def _is_part(self, name: str, sources: list[str]) -> bool:
        """Whether an operator makes the value from another of the sources."""
        maker = self._makers.get(name)
        if maker is None or maker.op_type not in ("Sigmoid", "Softplus", "Greater"):
            return False
        return maker.input[0] in sources

    def _is_side(self, start: str, end: str) -> bool:
        """Whether there is a path, and no layer on it."""
        try:
            return all(link.node.domain != DOMAIN for link in self.path(start, end, False))
        except NotRecognised:
            return False

    def _is_variable(self, name: str) -> bool:
        return name not in self._tensors and self.constant(name) is None


@dataclass(frozen=True, slots=True)
class Node:
    """A node with its constants and attributes."""

    node: onnx.NodeProto
    graph: Graph

    @property
    def op(self) -> str:
        return self.node.op_type

    def has(self, index: int) -> bool:
        return len(self.node.input) > index and bool(self.node.input[index])

    def is_constant(self, index: int) -> bool:
        return self.has(index) and self.graph.constant(self.node.input[index]) is not None

    def is_variable(self) -> bool:
        """Whether the node reads no constant."""
        return not any(self.is_constant(index) for index in range(len(self.node.input)))

    def made_by(self, name: str, op: str) -> list[str]:
        """What an operator reads that gives the value; nothing if another one gives it."""
        maker = self.graph.maker(name)
        return list(maker.input) if maker is not None and maker.op_type == op else []

    def constant(self, index: int) -> Array:
        """An input. Raises NotRecognised if it is no constant."""
        found = self.graph.constant(self.node.input[index]) if self.has(index) else None
        if found is None:
            raise NotRecognised
        return found

    def integers(self, index: int) -> list[int]:
        """An input that is a constant vector of integers. Raises NotRecognised."""
        found = self.constant(index)
        check(found.ndim == 1)
        return [int(each) for each in found]

    def attribute(self, name: str, otherwise: Any) -> Any:
        found = [a for a in self.node.attribute if a.name == name]
        return onnx.helper.get_attribute_value(found[0]) if found else otherwise


# Nodes that move axes of length 1 and change no value ---------------------------------------------


def _same(node: Node, value: Value) -> Value:
    """Identity, and a Split or Concat of one part."""
    check(len(node.node.output) == len(node.node.input) == 1)
    return value


def _squeeze(node: Node, value: Value) -> Value:
    rank = len(value.axes)
    gone = {axis % rank for axis in node.integers(1)}
    check(all(value.axes[axis] == ONE for axis in gone))
    return value.with_axes([label for axis, label in enumerate(value.axes) if axis not in gone])


def _unsqueeze(node: Node, value: Value) -> Value:
    places = node.integers(1)
    rank = len(value.axes) + len(places)
    new = {place % rank for place in places}
    rest = iter(value.axes)
    return value.with_axes([ONE if axis in new else next(rest) for axis in range(rank)])


def _transpose(node: Node, value: Value) -> Value:
    order = node.attribute("perm", range(len(value.axes))[::-1])
    return value.with_axes([value.axes[axis] for axis in order])


def _reshape(node: Node, value: Value) -> Value:
    """Another number of axes of length 1, where the others stay in their order."""
    left = [axis for axis, label in enumerate(value.axes) if label != ONE]
    found: list[str] = []
    for size in reversed(node.integers(1)):  # so that a width of 1 stays the last axis
        if left and size == value.size(left[-1]):
            found.append(value.axes[left.pop()])
        else:
            check(size == 1)
            found.append(ONE)
    check(not left)
    return value.with_axes(found[::-1])


def _slice(node: Node, value: Value) -> Value:
    """The only time step, or the last layer, as [-1:] gives it."""
    starts, ends = node.integers(1), node.integers(2)
    axes = node.integers(3) if node.has(3) else range(len(starts))
    steps = node.integers(4) if node.has(4) else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        entries = range(max(value.size(axis), 0))
        if entries[start:end:step] != entries or not entries:
            value = _last_entry(value, axis, list(entries[start:end:step]))
    return value


def take_entry(node: Node, value: Value) -> Value:
    """The same as [-1] or [[-1]] gives it."""
    chosen, axis = node.constant(1), node.attribute("axis", 0) % len(value.axes)
    check(chosen.ndim <= 1)
    size = max(value.size(axis), 1)
    value = _last_entry(value, axis, [int(each) % size for each in chosen.reshape(-1)])
    if chosen.ndim == 0:
        return value.with_axes(value.axes[:axis] + value.axes[axis + 1 :])
    return value


def _last_entry(value: Value, axis: int, entries: list[int]) -> Value:
    """The value with only these `entries` of an axis. Raises NotRecognised unless they are the last
    one alone."""
    label = value.axes[axis]
    check(label in (ONE, LAYERS) and entries == [value.size(axis) - 1])
    axes = list(value.axes)
    axes[axis] = ONE
    return value.with_axes(axes)


MOVES: Final[Mapping[str, Callable[[Node, Value], Value]]] = {
    "Identity": _same,
    "Split": _same,
    "Concat": _same,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Slice": _slice,
}
