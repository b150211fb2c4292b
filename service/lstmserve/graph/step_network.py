"""Builds the pool's graphs of kind "network" around a step graph: for one time step, and for many.

For one time step the step graph stands between Gather and ScatterND of each state. For many, time
is folded into the batch (fold.py), if the step graph allows that. Otherwise the step graph is the
body of a Scan over time, which keeps a row's states as they are once t reaches its length; its
weights are initializers of the outer graph, where onnxruntime prepacks them as well.

Every value of the step graph gets the prefix net/, which no name of ours has and no name of a spec
can have, so the two graphs cannot meet in a name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from lstmserve.graph.builder import GraphBuilder
from lstmserve.graph.fold import AFTER, BEFORE, ROWS, Fold, renamed
from lstmserve.graph.forms import NEXT_SLOTS
from lstmserve.graph.network import Arguments, PoolLayout, PoolNetwork, PoolTensor, States
from lstmserve.graph.reader import InvalidModel
from lstmserve.graph.row_wise import Unfoldable
from lstmserve.graph.step_graph import StepGraph, one_line
from lstmserve.rows import RowFormat
from lstmserve.spec import NEXT, ModelSpec, TensorSpec

NET: Final = ROWS
POOL: Final = "pool/"
FLOATS, INTS = "floats", "ints"  # x [T, B, values], all inputs of a dtype side by side
Y, Y_INTS = "y", "y_ints"
LIVE: Final = "live"  # [T, B]: whether the time step is within the row's length
# Weights from which on one graph runs all lengths. It makes a single time step 2 to 3 us longer.
ONE_GRAPH_BYTES: Final = 1 << 20
AT_T: Final = "_t"  # of what a Scan's body has at one time step


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
        self.x, self.y = RowFormat(spec.inputs), RowFormat(spec.outputs)
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


def _values(form: RowFormat, names: tuple[str, str], length: int, size: int) -> Arguments:
    found: Arguments = {}
    for name, dtype, width in _sides(form, names):
        found[name] = (np.dtype(dtype).type, (length, size, width))
    return found


class StepNetwork(PoolNetwork):
    """Kind "network". Without a Scan, a large network has one graph; any other has its weights
    twice in memory, in a graph for T = 1 and one for T > 1.

    Inputs of the graphs: `floats` [T, B, F] and `ints` [T, B, K], `lengths` int32 [B] (but in the
    graph for T = 1 alone), `read` int64 [B], `write` int64 [B, 1], and the pool's tensors. Building
    raises InvalidModel.
    """

    def __init__(self, spec: ModelSpec, graph: StepGraph) -> None:
        self._spec = spec
        self._graph = graph
        self._fold: Fold | None = None
        self.scans_because = ""  # why chunks need the Scan; "" where they do not
        try:
            self._fold = Fold(spec, graph)
        except Unfoldable as error:
            self.scans_because = str(error)
        size = sum(tensor.ByteSize() for tensor in graph.initializers.values())
        self._is_one_graph = self._fold is not None and size >= ONE_GRAPH_BYTES
        self.layout: StepLayout = StepLayout(spec, graph.initial, self._is_one_graph)

    def build_step(self) -> onnx.ModelProto | None:
        if self._is_one_graph:
            return None
        g = self._begin(1)
        for state, tensor in self._states():
            g.add("Gather", [tensor.name, "read"], NET + state.name, axis=0)
        self._add_step(g, g, "", 1)
        for state, tensor in self._states():
            self._scatter(g, tensor, NET + state.name + NEXT)
        return self._end(g, 1)

    def build_chunk(self) -> onnx.ModelProto:
        g = self._begin("T")
        g.input("lengths", "int32", ["B"])
        for state, tensor in self._states():
            g.add("Gather", [tensor.name, "read"], BEFORE + state.name, axis=0)
        if self._fold:
            self._add_folded(g, self._fold)
        else:
            self._add_scan(g)
        for state, tensor in self._states():
            self._scatter(g, tensor, AFTER + state.name + NEXT)
        return self._end(g, "T")

    def _add_folded(self, g: GraphBuilder, fold: Fold) -> None:
        for name, dtype, _ in _sides(self.layout.x, (FLOATS, INTS)):
            _divide(g, g, name, [t for t in self._spec.inputs if t.dtype == dtype])
        fold.add(g, self.layout.float_input or self.layout.int_input)
        for name, dtype, _ in _sides(self.layout.y, (Y, Y_INTS)):
            tensors = [t for t in self._spec.outputs if t.dtype == dtype]
            parts = [fold.over_time(g, NET + each.name, each.size) for each in tensors]
            g.add("Concat", parts, name, axis=-1)

    def _add_scan(self, g: GraphBuilder) -> None:
        layout = self.layout
        xs = [name for name in (layout.float_input, layout.int_input) if name]
        ys = [name for name in (layout.float_output, layout.int_output) if name]
        scanned = [*xs, _is_live(g, xs[0])]
        states = [each.name for each in self._spec.states]
        before = [BEFORE + name for name in states]
        after = [AFTER + name + NEXT for name in states]
        g.add_many(
            "Scan",
            [*before, *scanned],
            [*after, *ys],
            body=self._body(g),
            num_scan_inputs=len(scanned),
        )

    def _begin(self, length: int | str) -> GraphBuilder:
        g = GraphBuilder("pool")
        for name, dtype, width in _sides(self.layout.x, (FLOATS, INTS)):
            g.input(name, dtype, [length, "B", width])
        g.input("read", "int64", ["B"])
        g.input("write", "int64", ["B", 1])
        for tensor in self.layout.tensors:
            g.input(tensor.name, tensor.dtype, ["S", *tensor.shape])
        tensors = (*self._graph.initializers.values(), *self._graph.constants)
        g.include((), map(renamed, tensors))
        return g

    def _end(self, g: GraphBuilder, length: int | str) -> onnx.ModelProto:
        for name, dtype, width in _sides(self.layout.y, (Y, Y_INTS)):
            g.output(name, dtype, [length, "B", width])
        for tensor in self.layout.tensors:
            g.output(tensor.name + NEXT_SLOTS, tensor.dtype, ["S", *tensor.shape])
        try:
            return g.model(self._graph.opsets, self._graph.ir_version)
        except Exception as error:  # the checker's classes have no base of their own
            raise InvalidModel(f"model.onnx does not fit the pool: {one_line(error)}") from error

    def _states(self) -> list[tuple[TensorSpec, PoolTensor]]:
        return list(zip(self._spec.states, self.layout.tensors, strict=True))

    def _scatter(self, g: GraphBuilder, tensor: PoolTensor, rows: str) -> None:
        g.add("ScatterND", [tensor.name, "write", rows], tensor.name + NEXT_SLOTS)

    def _add_step(self, outer: GraphBuilder, g: GraphBuilder, at: str, lead: int) -> None:
        """Adds the step graph to `g`, from `floats` and `ints` to `y` and `y_ints`, whose names
        end with `at` and which have `lead` axes of length 1 ahead of [B, values].

        `outer` has our constants: it is `g` itself, or the graph whose Scan has the body `g`.
        """
        for name, dtype, _ in _sides(self.layout.x, (FLOATS, INTS)):
            _divide(outer, g, name + at, [t for t in self._spec.inputs if t.dtype == dtype])
        g.include(_renamed(node) for node in self._graph.running)
        for name, dtype, _ in _sides(self.layout.y, (Y, Y_INTS)):
            _unite(outer, g, name + at, [t for t in self._spec.outputs if t.dtype == dtype], lead)

    def _body(self, outer: GraphBuilder) -> onnx.GraphProto:
        """One time step: states [B, *shape], x [B, values], is_live [B] -> states, y [B, values].

        A body may not have the name of an outer value.
        """
        b = GraphBuilder("step")
        for state in self._spec.states:
            b.input(NET + state.name, state.dtype, ["B", *state.shape])
        for name, dtype, width in _sides(self.layout.x, (FLOATS, INTS)):
            b.input(name + AT_T, dtype, ["B", width])
        b.input(LIVE + AT_T, "bool", ["B"])
        self._add_step(outer, b, AT_T, 0)
        for state in self._spec.states:
            b.output(_kept(outer, b, state), state.dtype, ["B", *state.shape])
        for name, dtype, width in _sides(self.layout.y, (Y, Y_INTS)):
            b.output(name + AT_T, dtype, ["B", width])
        return b.graph()


def _sides(form: RowFormat, names: tuple[str, str]) -> Iterator[tuple[str, str, int]]:
    """Name, dtype and width of the graph's input or output for each dtype that the rows have."""
    for name, dtype, width in zip(names, ("float32", "int64"), form.sizes, strict=True):
        if width:
            yield name, dtype, width


def _divide(
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


def _unite(
    outer: GraphBuilder, g: GraphBuilder, result: str, tensors: Sequence[TensorSpec], lead: int
) -> None:
    """Adds `result`, which has net/NAME of each of these side by side."""
    names = [result] if len(tensors) == 1 else [f"{result}/{each.name}" for each in tensors]
    for name, each in zip(names, tensors, strict=True):
        shape = outer.integers(*[1] * lead, -1, each.size)
        g.add("Reshape", [NET + each.name, shape], name)
    if len(names) > 1:
        g.add("Concat", names, result, axis=-1)


def _is_live(g: GraphBuilder, x: str) -> str:
    """The mask [T, B] of the time steps within their row's length."""
    zero, one = (g.constant(f"const.int{i}", np.array(i)) for i in (0, 1))
    end = g.add("Gather", [g.add("Shape", [x], "time/shape"), zero], "time/end", axis=0)
    steps = g.add("Range", [zero, end, one], "time/steps")
    column = g.add("Reshape", [steps, g.integers(-1, 1)], "time/column")
    ends = g.add("Cast", ["lengths"], "time/lengths", to=TensorProto.INT64)
    return g.add("Less", [column, ends], LIVE)


def _kept(outer: GraphBuilder, b: GraphBuilder, state: TensorSpec) -> str:
    """The state after time step t, or as it was where the row has ended."""
    before, after, live = NET + state.name, NET + state.name + NEXT, LIVE + AT_T
    if state.shape:
        shape = outer.integers(-1, *[1] * len(state.shape))
        live = b.add("Reshape", [live, shape], f"live/{state.name}")
    if state.dtype != "bool":
        return b.add("Where", [live, after, before], f"kept/{state.name}")
    # onnxruntime's Where takes no bool.
    new = b.add("And", [live, after], f"new/{state.name}")
    ended = b.add("Not", [live], f"ended/{state.name}")
    old = b.add("And", [ended, before], f"old/{state.name}")
    return b.add("Or", [new, old], f"kept/{state.name}")


def _renamed(node: onnx.NodeProto) -> onnx.NodeProto:
    """The node with NET ahead of each name in it and in its subgraphs."""
    found = onnx.NodeProto()
    found.CopyFrom(node)
    found.name = node.name and NET + node.name
    found.doc_string = ""
    for names in (found.input, found.output):
        names[:] = [name and NET + name for name in names]  # "" is an input that is not given
    for attribute in found.attribute:
        if attribute.HasField("g"):
            _rename_graph(attribute.g)
        for graph in attribute.graphs:
            _rename_graph(graph)
    return found


def _rename_graph(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output):
        value.name = NET + value.name
    for tensor in graph.initializer:
        tensor.name = NET + tensor.name
    del graph.value_info[:]
    nodes = [_renamed(node) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
