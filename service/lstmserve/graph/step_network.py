"""Builds the pool's graphs of kind "network" around a step graph: for one time step, and for many.

For one time step the step graph stands between Gather and ScatterND of each state. For many, time
is folded into the batch (fold.py), if the step graph allows that. Otherwise the step graph is the
body of a Scan over time, which keeps a row's states as they are once t reaches its length; its
weights are initializers of the body: onnxruntime computes a Conv of weights around it by other code
than in a graph of its own, and with other bits.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto

from lstmserve.graph.builder import GraphBuilder
from lstmserve.graph.fold import AFTER, BEFORE, Fold, renamed
from lstmserve.graph.network import PoolNetwork, PoolTensor
from lstmserve.graph.row_wise import Unfoldable
from lstmserve.graph.step_graph import StepGraph
from lstmserve.graph.step_layout import (
    FLOATS,
    INTS,
    NET,
    Y_INTS,
    StepLayout,
    Y,
    checked_model,
    divide,
    renamed_node,
    scatter,
    sides,
    unite,
)
from lstmserve.spec import NEXT, ModelSpec, TensorSpec

LIVE: Final = "live"  # [T, B]: whether the time step is within the row's length
# Weights from which on one graph runs all lengths. It makes a single time step 2 to 3 us longer.
ONE_GRAPH_BYTES: Final = 1 << 20
AT_T: Final = "_t"  # of what a Scan's body has at one time step


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
        g = GraphBuilder("pool")
        self.layout.declare_inputs(g, 1)
        self._add_weights(g)
        for state, tensor in self._states():
            g.add("Gather", [tensor.name, "read"], NET + state.name, axis=0)
        self._add_step(g, g, "", 1)
        for state, tensor in self._states():
            scatter(g, tensor, NET + state.name + NEXT)
        return self._end(g, 1)

    def build_chunk(self) -> onnx.ModelProto:
        g = GraphBuilder("pool")
        self.layout.declare_inputs(g, "T")
        g.input("lengths", "int32", ["B"])
        if self._fold:
            self._add_weights(g)
        for state, tensor in self._states():
            g.add("Gather", [tensor.name, "read"], BEFORE + state.name, axis=0)
        if self._fold:
            self._add_folded(g, self._fold)
        else:
            self._add_scan(g)
        for state, tensor in self._states():
            scatter(g, tensor, AFTER + state.name + NEXT)
        return self._end(g, "T")

    def _add_folded(self, g: GraphBuilder, fold: Fold) -> None:
        for name, dtype, _ in sides(self.layout.x, (FLOATS, INTS)):
            divide(g, g, name, [t for t in self._spec.inputs if t.dtype == dtype])
        fold.add(g, self.layout.float_input or self.layout.int_input)
        for name, dtype, _ in sides(self.layout.y, (Y, Y_INTS)):
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

    def _add_weights(self, g: GraphBuilder) -> None:
        tensors = (*self._graph.initializers.values(), *self._graph.constants)
        g.include((), map(renamed, tensors))

    def _end(self, g: GraphBuilder, length: int | str) -> onnx.ModelProto:
        self.layout.declare_outputs(g, length)
        return checked_model(g, self._graph)

    def _states(self) -> list[tuple[TensorSpec, PoolTensor]]:
        return list(zip(self._spec.states, self.layout.tensors, strict=True))

    def _add_step(self, outer: GraphBuilder, g: GraphBuilder, at: str, lead: int) -> None:
        """Adds the step graph to `g`, from `floats` and `ints` to `y` and `y_ints`, whose names
        end with `at` and which have `lead` axes of length 1 ahead of [B, values].

        `outer` has our constants: it is `g` itself, or the graph whose Scan has the body `g`.
        """
        for name, dtype, _ in sides(self.layout.x, (FLOATS, INTS)):
            divide(outer, g, name + at, [t for t in self._spec.inputs if t.dtype == dtype])
        g.include(renamed_node(node) for node in self._graph.running)
        for name, dtype, _ in sides(self.layout.y, (Y, Y_INTS)):
            unite(outer, g, name + at, [t for t in self._spec.outputs if t.dtype == dtype], lead)

    def _body(self, outer: GraphBuilder) -> onnx.GraphProto:
        """One time step: states [B, *shape], x [B, values], is_live [B] -> states, y [B, values].

        A body may not have the name of an outer value.
        """
        b = GraphBuilder("step")
        for state in self._spec.states:
            b.input(NET + state.name, state.dtype, ["B", *state.shape])
        for name, dtype, width in sides(self.layout.x, (FLOATS, INTS)):
            b.input(name + AT_T, dtype, ["B", width])
        b.input(LIVE + AT_T, "bool", ["B"])
        self._add_weights(b)
        self._add_step(outer, b, AT_T, 0)
        for state in self._spec.states:
            b.output(_kept(outer, b, state), state.dtype, ["B", *state.shape])
        for name, dtype, width in sides(self.layout.y, (Y, Y_INTS)):
            b.output(name + AT_T, dtype, ["B", width])
        return b.graph()


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
