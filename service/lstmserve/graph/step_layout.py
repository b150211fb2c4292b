"""How the tensors of a step graph lie in the pool, in rows of x and y, and in the pool's graphs.

Every value of the step graph gets the prefix net/ there, which no name of ours has and no name of a
spec can have, so the two graphs cannot meet in a name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from lstmserve.graph.builder import GraphBuilder
from lstmserve.graph.fold import ROWS
from lstmserve.graph.forms import NEXT_SLOTS
from lstmserve.graph.network import Arguments, PoolLayout, PoolTensor, States
from lstmserve.graph.reader import InvalidModel
from lstmserve.graph.safety import one_line, subgraphs
from lstmserve.graph.step_graph import StepGraph
from lstmserve.rows import RowFormat
from lstmserve.spec import ModelSpec, TensorSpec

NET: Final = ROWS
POOL: Final = "pool/"
FLOATS, INTS = "floats", "ints"  # x [T, B, values], all inputs of a dtype side by side
Y, Y_INTS = "y", "y_ints"


class StepLayout(PoolLayout):
    """The pool has one tensor for each state, which is called pool/NAME."""

    def __init__(
        self, spec: ModelSpec, initial: Mapping[str, npt.NDArray[Any]], is_one_graph: bool
    ) -> None:
        """`initial` has each state's value in a new session, [*shape]. `is_one_graph` says that the
        graph of chunks, which takes lengths, runs single time steps as well."""
        tensors = (PoolTensor(POOL + each.name, each.shape, each.dtype) for each in spec.states)
        super().__init__(spec, tensors)
        self._is_one_graph = is_one_graph
        self._initial = {name: each[np.newaxis] for name, each in initial.items()}
        self.x, self.y = RowFormat(spec.inputs), RowFormat(spec.results)
        self.float_input = FLOATS if self.x.floats else ""
        self.int_input = INTS if self.x.ints else ""
        self.float_output = Y if self.y.floats else ""
        self.int_output = Y_INTS if self.y.ints else ""

    def arguments(self, length: int, size: int) -> Arguments:
        found = _values(self.x, (FLOATS, INTS), length, size)
        if length > 1 or self._is_one_graph:
            found["lengths"] = (np.int32, (size,))
        return found | {"read": (np.int64, (size,)), "write": (np.int64, (size, 1))}

    def results(self, length: int, size: int) -> Arguments:
        return _values(self.y, (Y, Y_INTS), length, size)

    def initial(self) -> States:
        """The states' values in the step graph's initializers, one row of each."""
        return self._initial

    def to_rows(self, states: States) -> States:
        """The same arrays [N, *shape] by the names of the pool's tensors."""
        return {POOL + name: each for name, each in states.items()}

    def to_states(self, rows: States) -> States:
        """The same arrays [N, *shape] by the names of the states."""
        return {each.name: rows[POOL + each.name] for each in self.spec.states}

    def declare_inputs(self, g: GraphBuilder, length: int | str) -> None:
        """Declares x, `read`, `write` and the pool's tensors; the graph for any T also takes
        `lengths`, which its builder declares."""
        for name, dtype, width in sides(self.x, (FLOATS, INTS)):
            g.input(name, dtype, [length, "B", width])
        g.input("read", "int64", ["B"])
        g.input("write", "int64", ["B", 1])
        for tensor in self.tensors:
            g.input(tensor.name, tensor.dtype, ["S", *tensor.shape])

    def declare_outputs(self, g: GraphBuilder, length: int | str) -> None:
        """Declares y and the pool's tensors after the run."""
        for name, dtype, width in sides(self.y, (Y, Y_INTS)):
            g.output(name, dtype, [length, "B", width])
        for tensor in self.tensors:
            g.output(tensor.name + NEXT_SLOTS, tensor.dtype, ["S", *tensor.shape])


def scatter(g: GraphBuilder, tensor: PoolTensor, rows: str) -> None:
    """Writes `rows` [B, *shape] to the slots `write` of one of the pool's tensors."""
    g.add("ScatterND", [tensor.name, "write", rows], tensor.name + NEXT_SLOTS)


def checked_model(g: GraphBuilder, graph: StepGraph) -> onnx.ModelProto:
    """The model around nodes of a step graph. Raises InvalidModel where they do not fit."""
    try:
        return g.model(graph.opsets, graph.ir_version)
    except Exception as error:  # the checker's classes have no base of their own
        raise InvalidModel(f"model.onnx does not fit the pool: {one_line(error)}") from error


def _values(form: RowFormat, names: tuple[str, str], length: int, size: int) -> Arguments:
    found: Arguments = {}
    for name, dtype, width in sides(form, names):
        found[name] = (np.dtype(dtype).type, (length, size, width))
    return found


def sides(form: RowFormat, names: tuple[str, str]) -> Iterator[tuple[str, str, int]]:
    """Name, dtype and width of the graph's input or output for each dtype that the rows have."""
    for name, dtype, width in zip(names, ("float32", "int64"), form.sizes, strict=True):
        if width:
            yield name, dtype, width


def divide(
    outer: GraphBuilder, g: GraphBuilder, source: str, tensors: Sequence[TensorSpec]
) -> None:
    """Adds net/NAME [B, *shape] of each of these, which lie side by side in `source`."""
    parts = [source]
    if len(tensors) > 1:
        sizes = outer.integers(*(each.size for each in tensors))
        names = [f"{source}/{each.name}" for each in tensors]
        parts = list(g.add_many("Split", [source, sizes], names, axis=-1))
    for part, each in zip(parts, tensors, strict=True):
        g.add("Reshape", [part, outer.integers(-1, *each.shape)], NET + each.name)


def unite(
    outer: GraphBuilder, g: GraphBuilder, result: str, tensors: Sequence[TensorSpec], lead: int
) -> None:
    """Adds `result`, which has net/NAME of each of these side by side."""
    names = [result] if len(tensors) == 1 else [f"{result}/{each.name}" for each in tensors]
    for name, each in zip(names, tensors, strict=True):
        shape = outer.integers(*[1] * lead, -1, each.size)
        g.add("Reshape", [NET + each.name, shape], name)
    if len(names) > 1:
        g.add("Concat", names, result, axis=-1)


def renamed_node(node: onnx.NodeProto) -> onnx.NodeProto:
    """The node with NET ahead of each name in it and in its subgraphs."""
    found = onnx.NodeProto()
    found.CopyFrom(node)
    found.name = node.name and NET + node.name
    found.doc_string = ""
    for names in (found.input, found.output):
        names[:] = [name and NET + name for name in names]  # "" is an input that is not given
    for graph in subgraphs(found):
        _rename_graph(graph)
    return found


def _rename_graph(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output):
        value.name = NET + value.name
    for tensor in graph.initializer:
        tensor.name = NET + tensor.name
    del graph.value_info[:]
    nodes = [renamed_node(node) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
