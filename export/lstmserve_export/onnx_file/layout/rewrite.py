"""Rewrites a graph that has a batch of one baked into it, so that it takes any batch.

It runs node after node with several rows, each alone and all together. Where the rows together do
not give what they give alone, it tries small changes of that node: another target of a Reshape, a
constant repeated for each row, two axes of length 1 swapped. Whether the whole graph then answers
as before is for the experiment of any other graph to prove (batch_axis.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lstmserve.graph.safety import subgraphs
from lstmserve.runtime import ort, plain_session
from lstmserve_export.arrays import Array, Arrays
from lstmserve_export.onnx_file.layout.row_shapes import Axes
from lstmserve_export.onnx_file.layout.runner import reason

TOLERANCE: Final = 1e-3  # of one node; the proof of the whole graph is tight
ATTEMPTS_MAX: Final = 96  # changes of one node
MOVED_MAX: Final = 2  # inputs of a node of which the rows move
NODES_MAX: Final = 20_000
PREFIX: Final = "batched/"
COUNT: Final = "batched/count"  # int64 [1]: the rows of a batch
RECURRENT: Final = ("GRU", "LSTM", "RNN")


class CannotRewrite(Exception):
    """No change of a node makes it take several rows; the message names the node."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The changed graph; `changed` counts the operators around which it was changed."""

    model: onnx.ModelProto
    changed: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Value:
    """A tensor of the rows alone, and of all together, where row after row lies along `axis`; None:
    it is the same for every row, or has sizes."""

    alone: Sequence[Array]
    together: Array
    axis: int | None

    @property
    def is_pure(self) -> bool:
        """Whether the rows share no axis with anything else."""
        return self.axis is None or self.of(0).shape[self.axis] == 1

    def of(self, row: int) -> Array:
        """The value of a row alone."""
        return self.alone[row % len(self.alone)]


@dataclass(frozen=True, slots=True)
class _Attempt:
    """Nodes in place of one, and the constants that they need."""

    nodes: Sequence[onnx.NodeProto]
    constants: Mapping[str, Array]


class Rewriting:
    """One rewriting. `rows` are the feeds of each row alone, `axes` where they shall lie."""

    def __init__(
        self, model: onnx.ModelProto, constants: Arrays, rows: Sequence[Arrays], axes: Axes
    ) -> None:
        self._model, self._axes, self._rows = model, axes, len(rows)
        self._values = {
            each.name: _same(numpy_helper.to_array(each)) for each in model.graph.initializer
        }
        self._values |= {name: _same(each) for name, each in constants.items()}
        self._values[""] = _same(np.zeros(0))
        self._values[COUNT] = _same(np.array([len(rows)]))
        for name, axis in axes.items():
            alone = [row[name] for row in rows]
            self._values[name] = _Value(alone, np.concatenate(alone, axis), axis)
        self._sessions: dict[bytes, ort.InferenceSession] = {}
        self._new: dict[str, Array] = {}
        self._changed: Counter[str] = Counter()
        self._number = 0
        self._results = {each.name for each in model.graph.output}

    def run(self) -> Rewritten:
        """Raises CannotRewrite."""
        graph = self._model.graph
        if len(graph.node) > NODES_MAX:
            raise CannotRewrite(f"the graph has more than {NODES_MAX} nodes")
        if any(name.startswith(PREFIX) for node in graph.node for name in node.output):
            raise CannotRewrite(f"the graph has names that begin with {PREFIX}")
        left = Counter(name for node in graph.node for name in _reads(node))
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            nodes += self._rewritten(node)
            for name in _reads(node):
                left[name] -= 1
                if not left[name] and name:
                    del self._values[name]
        found = onnx.ModelProto()
        found.CopyFrom(self._model)
        del found.graph.node[:]
        del found.graph.value_info[:]
        found.graph.node.extend([*self._count_nodes(nodes), *nodes])
        found.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in self._new.items())
        return Rewritten(found, self._changed)

    def _count_nodes(self, nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        if not any(COUNT in node.input for node in nodes):
            return []
        name, axis = next(iter(self._axes.items()))
        shape, at = self._name(), self._name()
        return [
            helper.make_node("Shape", [name], [shape]),
            helper.make_node("Constant", [], [at], value_ints=[axis]),
            helper.make_node("Gather", [shape, at], [COUNT]),
        ]

    def _rewritten(self, node: onnx.NodeProto) -> Sequence[onnx.NodeProto]:
        """The nodes in place of this one. Raises CannotRewrite."""
        inputs = {name: self._values[name] for name in _reads(node)}
        if not any(each.axis is not None or len(each.alone) > 1 for each in inputs.values()):
            found = self._evaluate([node], {name: each.together for name, each in inputs.items()})
            self._values |= {name: _same(each) for name, each in found.items()}
            return [node]
        alone = [
            self._evaluate([node], {name: each.of(row) for name, each in inputs.items()})
            for row in range(self._rows)
        ]
        attempt, values = self._choose(node, inputs, alone)
        for name in self._results & values.keys():
            attempt = self._part(attempt, values, name)
        self._values |= values
        self._new |= attempt.constants
        if len(attempt.nodes) > 1 or attempt.constants:
            self._changed[node.op_type] += 1
        return attempt.nodes

    def _part(self, attempt: _Attempt, values: dict[str, _Value], name: str) -> _Attempt:
        """Gives the rows of a result of the graph an axis of their own, where it has one."""
        value = values[name]
        shape = value.of(0).shape
        if value.is_pure or value.axis is None:
            return attempt
        free = (
            at for at in range(len(shape)) if shape[at] == 1 and _is_next(shape, value.axis, at)
        )
        axis = next(free, None)
        if axis is None:
            raise CannotRewrite(f"the rows of {name} share an axis with its values")
        target = np.array([*shape[:axis], -1, *shape[axis + 1 :]], np.int64)
        last = onnx.NodeProto()
        last.CopyFrom(attempt.nodes[-1])
        shared, sizes = self._name(), self._name()
        last.output[:] = [shared if each == name else each for each in last.output]
        part = helper.make_node("Reshape", [shared, sizes], [name])
        values[name] = _Value(value.alone, value.together.reshape(target), axis)
        return _Attempt([*attempt.nodes[:-1], last, part], {**attempt.constants, sizes: target})

    def _choose(
        self, node: onnx.NodeProto, inputs: Mapping[str, _Value], alone: Sequence[Arrays]
    ) -> tuple[_Attempt, dict[str, _Value]]:
        """The first attempt after which the rows together give what they give alone. Of a Reshape
        rather one that leaves the rows an axis of their own. Raises CannotRewrite."""
        together = {name: each.together for name, each in inputs.items()}
        together[COUNT] = self._values[COUNT].together
        second: tuple[_Attempt, dict[str, _Value]] | None = None
        for attempt in islice(self._attempts(node, inputs, alone[0]), ATTEMPTS_MAX):
            try:
                found = self._evaluate(attempt.nodes, {**together, **attempt.constants})
                values = {
                    name: _matched([row[name] for row in alone], found[name])
                    for name in node.output
                    if name
                }
            except CannotRewrite:
                continue
            if node.op_type != "Reshape" or all(each.is_pure for each in values.values()):
                return attempt, values
            second = second or (attempt, values)
        if second is None:
            raise CannotRewrite(f"{node.op_type} {node.name}".strip() + " takes one row alone")
        return second

    # Changes of one node --------------------------------------------------------------------------

    def _attempts(
        self, node: onnx.NodeProto, inputs: Mapping[str, _Value], results: Arrays
    ) -> Iterator[_Attempt]:
        """The node as it is first."""
        for moves in islice(self._moves(node, inputs), ATTEMPTS_MAX):
            yield _joined(node, moves, {})
            if node.op_type == "Reshape":
                shape = results[node.output[0]].shape
                for axis in range(len(shape)):
                    target = np.array([*shape[:axis], -1, *shape[axis + 1 :]], np.int64)
                    yield _joined(node, moves, {1: self._name()}, [target])
            for tiles in self._tiles(node, inputs):
                yield _joined(node, [*moves, *tiles], {})
        if node.op_type == "ScatterND":
            yield from self._scatters(node, inputs)

    def _moves(
        self, node: onnx.NodeProto, inputs: Mapping[str, _Value]
    ) -> Iterator[list[tuple[int, onnx.NodeProto]]]:
        """Moves the rows of no input to another axis, then of one, then of two."""
        choices = [
            found
            for at, name in enumerate(node.input)
            if (found := self._moves_of(at, name, inputs[name]))
        ]
        for count in range(MOVED_MAX + 1):
            for chosen in combinations(choices, count):
                for moves in product(*chosen):
                    yield [part for move in moves for part in move]

    def _moves_of(
        self, at: int, name: str, value: _Value
    ) -> list[list[tuple[int, onnx.NodeProto]]]:
        """The ways in which the rows of the input at a place may lie along another axis."""
        if value.axis is None:
            return []
        shape, found = value.of(0).shape, []
        for other, size in enumerate(shape):
            if other == value.axis:
                continue
            if size == 1 == shape[value.axis]:
                order = list(range(len(shape)))
                order[other], order[value.axis] = value.axis, other
                moved = helper.make_node("Transpose", [name], [self._name()], perm=order)
                found.append([(at, moved)])
            elif 1 in (size, shape[value.axis]) and _is_next(shape, value.axis, other):
                target = [int(n) for n in (*shape[:other], -1, *shape[other + 1 :])]
                sizes = self._name()
                constant = helper.make_node("Constant", [], [sizes], value_ints=target)
                moved = helper.make_node("Reshape", [name, sizes], [self._name()])
                found.append([(-1, constant), (at, moved)])
        return found

    def _tiles(
        self, node: onnx.NodeProto, inputs: Mapping[str, _Value]
    ) -> Iterator[list[tuple[int, onnx.NodeProto]]]:
        """Repeats inputs that are the same for all rows."""
        same = [
            at
            for at, name in enumerate(node.input)
            if name and inputs[name].axis is None and inputs[name].together.ndim
        ]
        if node.op_type in RECURRENT:
            starts = [at for at in same if at >= 5]
            yield [part for at in starts for part in self._tile(at, node.input[at], 1)]
            return
        for at in same:
            for axis in range(inputs[node.input[at]].together.ndim):
                yield self._tile(at, node.input[at], axis)

    def _tile(self, at: int, name: str, axis: int) -> list[tuple[int, onnx.NodeProto]]:
        rank = self._values[name].together.ndim
        repeats, tiled = self._name(), self._name()
        parts: list[tuple[int, onnx.NodeProto]] = []
        names = [COUNT]
        for count, place in ((axis, 0), (rank - axis - 1, 2)):
            if count:
                ones = self._name()
                names.insert(place, ones)
                parts.append((-1, helper.make_node("Constant", [], [ones], value_ints=[1] * count)))
        parts.append((-1, helper.make_node("Concat", names, [repeats], axis=0)))
        return [*parts, (at, helper.make_node("Tile", [name, repeats], [tiled]))]

    def _scatters(self, node: onnx.NodeProto, inputs: Mapping[str, _Value]) -> Iterator[_Attempt]:
        """Where constant indices name the row 0: without it, with the rows on the last axis."""
        data, indices, updates = (inputs[name] for name in node.input)
        at = indices.together
        if data.axis is None or updates.axis is None or data.axis >= at.shape[-1]:
            return
        if at.shape[updates.axis] != 1 or at[..., data.axis].any():
            return
        names = [self._name() for _ in range(4)]
        parts = []
        for name, value, moved in ((node.input[0], data, 0), (node.input[2], updates, 2)):
            order = [each for each in range(value.together.ndim) if each != value.axis]
            order.append(value.axis or 0)
            parts.append(helper.make_node("Transpose", [name], [names[moved]], perm=order))
        order = list(range(data.together.ndim - 1))
        order.insert(data.axis, len(order))
        scatter = onnx.NodeProto()
        scatter.CopyFrom(node)
        scatter.input[:], scatter.output[:] = names[:3], names[3:]
        back = helper.make_node("Transpose", [names[3]], list(node.output), perm=order)
        rest = np.delete(at, data.axis, -1).squeeze(updates.axis)
        yield _Attempt([*parts, scatter, back], {names[1]: rest})

    def _name(self) -> str:
        self._number += 1
        return f"{PREFIX}{self._number}"

    # One node -------------------------------------------------------------------------------------

    def _evaluate(self, nodes: Sequence[onnx.NodeProto], values: Arrays) -> dict[str, Array]:
        """What the nodes give, one after the other. Raises CannotRewrite."""
        values = dict(values)
        found: dict[str, Array] = {}
        for node in nodes:
            feeds = {name: values[name] for name in _reads(node) if name}
            try:
                outputs = self._session(node, feeds).run(None, feeds)
            except Exception as error:  # onnxruntime's own have no base but this one
                raise CannotRewrite(reason(error)) from error
            found |= dict(zip(filter(None, node.output), outputs, strict=True))
            values |= found
        if not all(isinstance(each, np.ndarray) for each in found.values()):
            raise CannotRewrite(f"{nodes[-1].op_type} gives no tensor")
        return found

    def _session(self, node: onnx.NodeProto, feeds: Arrays) -> ort.InferenceSession:
        key = node.SerializeToString(deterministic=True)
        if key not in self._sessions:
            inputs = [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(each.dtype), None
                )
                for name, each in feeds.items()
            ]
            outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
            graph = helper.make_graph([node], "node", inputs, outputs)
            model = helper.make_model(
                graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version
            )
            session = plain_session(model.SerializeToString(), is_optimized=False)
            self._sessions = {key: session}  # of the last node: a large graph has many
        return self._sessions[key]


def _same(array: Array) -> _Value:
    return _Value([array], array, None)


def _joined(
    node: onnx.NodeProto,
    parts: Sequence[tuple[int, onnx.NodeProto]],
    replaced: Mapping[int, str],
    constants: Sequence[Array] = (),
) -> _Attempt:
    """The node behind `parts`: each gives the input at a place of the node, or -1."""
    if not parts and not replaced:
        return _Attempt([node], {})
    found = onnx.NodeProto()
    found.CopyFrom(node)
    for at, part in parts:
        if at >= 0:
            found.input[at] = part.output[0]
    for at, name in replaced.items():
        found.input[at] = name
    names = dict(zip(replaced.values(), constants, strict=True))
    return _Attempt([*(part for _, part in parts), found], names)


def _matched(alone: Sequence[Array], together: Array) -> _Value:
    """Finds where the rows lie. Raises CannotRewrite."""
    first = alone[0]
    if any(each.shape != first.shape for each in alone) or first.ndim != together.ndim:
        raise CannotRewrite("the rows have other sizes")
    if together.shape == first.shape:
        if all(_equal(each, together) for each in alone):
            return _Value([together], together, None)
        if np.issubdtype(together.dtype, np.integer) and together.ndim <= 1:
            return _Value(alone, together, None)  # sizes, of which the rows' number is one
    for axis, size in enumerate(first.shape):
        shape = (*first.shape[:axis], size * len(alone), *first.shape[axis + 1 :])
        if together.shape == shape and all(
            _equal(one, part)
            for one, part in zip(alone, np.split(together, len(alone), axis), strict=True)
        ):
            return _Value(alone, together, axis)
    raise CannotRewrite("the rows are not those alone")


def _equal(one: Array, other: Array) -> bool:
    if not np.issubdtype(one.dtype, np.floating):
        return np.array_equal(one, other)
    largest = float(np.abs(one).max(initial=0)) + 1e-3
    return bool(np.abs(one - other).max(initial=0) <= TOLERANCE * largest)


def _is_next(shape: Sequence[int], axis: int, other: int) -> bool:
    """Whether rows that lie first along an axis lie first along the other, if it takes them."""
    low, high = sorted((axis, other))
    return shape[low] == 1 and all(size == 1 for size in shape[low + 1 : high])


def _reads(node: onnx.NodeProto) -> list[str]:
    """The values that a node and its subgraphs read from outside, each once."""
    found = dict.fromkeys(node.input)
    for graph in subgraphs(node):
        found |= dict.fromkeys(_captured(graph))
    return list(found)


def _captured(graph: onnx.GraphProto) -> list[str]:
    own = {each.name for each in graph.input} | {each.name for each in graph.initializer}
    found = []
    for node in graph.node:
        found += [name for name in _reads(node) if name and name not in own]
        own |= {*node.output}
    return found + [each.name for each in graph.output if each.name not in own]
