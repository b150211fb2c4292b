"""Builds the pool's graph of a model with a window: an output is of the last W rows alone.

A session's states are its last W - 1 rows and, unless zeros stand for those it has not given yet,
how many there are. In one run of T time steps the new rows follow the old ones, so each session has
W - 1 + T rows. The network reads T windows of them, as if those were T rows of a batch: B * T rows
for the network, each of W rows. The graph is the same for T = 1.

    B  sessions    T  time steps    W  rows of a window    N = B * T  windows
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Final

import numpy as np
import onnx

from lstmserve.graph.builder import DTYPES, GraphBuilder
from lstmserve.graph.fold import renamed
from lstmserve.graph.head import head
from lstmserve.graph.layers import LayerInput, input_layer, lstm_layer
from lstmserve.graph.network import PoolNetwork
from lstmserve.graph.step_graph import StepGraph
from lstmserve.graph.step_layout import (
    FLOATS,
    INTS,
    NET,
    POOL,
    Y_INTS,
    StepLayout,
    Y,
    checked_model,
    renamed_node,
    scatter,
    sides,
)
from lstmserve.graph.weights import INITIAL_STATE, Weights
from lstmserve.spec import KNOWN, MISSING, WINDOW, ModelSpec, TensorSpec

COLUMN: Final = "window/column"  # int64 [T, 1]: 0, 1, ..., T - 1
STEPS: Final = "window/steps"  # int64 [1]: T
SESSIONS: Final = "window/sessions"  # int64 [1]: B
GIVEN: Final = "window/given"  # int64 [B]: rows that each session has given before, up to W - 1
LACKS: Final = "window/lacks"  # int64 [T, B]: rows that the window of a time step lacks
ENDS: Final = "window/ends"  # int64 [B]: lengths


class WindowNetwork(PoolNetwork):
    """What both kinds have in common: the sessions' rows, and what stands for the missing ones."""

    def __init__(self, spec: ModelSpec) -> None:
        assert spec.window
        self.spec = spec
        initial = {each.name: np.zeros(each.shape, each.dtype) for each in spec.states}
        self.layout: StepLayout = StepLayout(spec, initial, is_one_graph=True)

    def build_step(self) -> None:
        return None

    def build_chunk(self) -> onnx.ModelProto:
        g = GraphBuilder("window")
        self.layout.declare_inputs(g, "T")
        g.input("lengths", "int32", ["B"])
        self._add_sizes(g)
        rows = self._add_rows(g)
        self._keep_rows(g, rows)
        for name, value in self._add_network(g, rows).items():
            tensor = next(each for each in self.spec.outputs if each.name == name)
            self._add_output(g, tensor, value)
        self._add_results(g)
        self.layout.declare_outputs(g, "T")
        return self._model(g)

    @abstractmethod
    def _add_network(self, g: GraphBuilder, rows: dict[str, str]) -> dict[str, str]:
        """Adds the network for each window of `rows`, which are [B, W - 1 + T, size] of each input;
        returns the value of each output, [N, ...], time step after time step."""

    @abstractmethod
    def _model(self, g: GraphBuilder) -> onnx.ModelProto:
        """The checked model of the graph."""

    def _add_sizes(self, g: GraphBuilder) -> None:
        """Adds T, B, and what each session and each time step has of its window."""
        x = self.layout.float_input or self.layout.int_input
        shape = g.add("Shape", [x], "window/shape")
        g.add("Gather", [shape, g.integers(0)], STEPS, axis=0)
        g.add("Gather", [shape, g.integers(1)], SESSIONS, axis=0)
        g.add("Cast", ["lengths"], ENDS, to=DTYPES["int64"])
        if self.spec.window_fill == "zeros":
            return
        most = g.constant("window/most", np.array(self.spec.window - 1))
        found = g.add("Gather", [POOL + KNOWN, "read"], "window/read", axis=0)
        zero = g.constant("const.int0", np.array(0))
        # Whatever a state says, no index leaves the rows that there are.
        g.add("Clip", [found, zero, most], GIVEN)
        first = g.add("Sub", [most, GIVEN], "window/first")  # lacks of the time step 0
        lacks = g.add("Sub", [first, _column(g)], "window/left")
        g.add("Max", [lacks, zero], LACKS)
        after = g.add("Min", [g.add("Add", [GIVEN, ENDS], "window/sum"), most], "window/after")
        self._scatter(g, KNOWN, after)

    def _add_rows(self, g: GraphBuilder) -> dict[str, str]:
        """Adds each input's rows [B, W - 1 + T, size], the oldest first: those of the state, then
        x."""
        found = {}
        for side, dtype, _ in sides(self.layout.x, (FLOATS, INTS)):
            tensors = [each for each in self.spec.inputs if each.dtype == dtype]
            swapped = g.add("Transpose", [side], f"{side}/swapped", perm=[1, 0, 2])
            parts = [swapped]
            if len(tensors) > 1:
                sizes = g.integers(*(each.size for each in tensors))
                names = [f"{side}/{each.name}" for each in tensors]
                parts = list(g.add_many("Split", [swapped, sizes], names, axis=-1))
            for part, each in zip(parts, tensors, strict=True):
                state = POOL + each.name + WINDOW
                old = g.add("Gather", [state, "read"], f"old/{each.name}", axis=0)
                flat = g.integers(0, self.spec.window - 1, each.size)
                old = g.add("Reshape", [old, flat], f"old/{each.name}/flat")
                found[each.name] = g.add("Concat", [old, part], f"rows/{each.name}", axis=1)
        return found

    def _keep_rows(self, g: GraphBuilder, rows: dict[str, str]) -> None:
        """Leaves the last W - 1 rows of each session, up to its own length, in its new slot."""
        count = self.spec.window - 1
        begin = g.add("Unsqueeze", [ENDS, g.integers(1)], "window/begin")
        places = g.add("Add", [begin, g.constant("window/kept", np.arange(count))], "window/places")
        places = g.add("Unsqueeze", [places, g.integers(2)], "window/places/indices")
        for each in self.spec.inputs:
            kept = g.add(
                "GatherND", [rows[each.name], places], f"kept/{each.name}/flat", batch_dims=1
            )
            kept = g.add("Reshape", [kept, g.integers(0, count, *each.shape)], f"kept/{each.name}")
            self._scatter(g, each.name + WINDOW, kept)

    def _scatter(self, g: GraphBuilder, state: str, rows: str) -> None:
        tensor = next(each for each in self.layout.tensors if each.name == POOL + state)
        scatter(g, tensor, rows)

    def _add_output(self, g: GraphBuilder, tensor: TensorSpec, value: str) -> None:
        """Adds out/NAME [T, B, size], 0 where the window lacks rows that steps wait for."""
        name = f"out/{tensor.name}"
        shape = g.add("Concat", [STEPS, SESSIONS, g.integers(tensor.size)], f"{name}/shape", axis=0)
        if not self.spec.waits:
            g.add("Reshape", [value, shape], name)
            return
        given = g.add("Reshape", [value, shape], f"{name}/any")
        if not g.has("window/is_given"):
            zero = g.constant("const.int0", np.array(0))
            whole = g.add("Equal", [LACKS, zero], "window/is_whole")
            g.add("Unsqueeze", [whole, g.integers(2)], "window/is_given")
        nothing = g.constant(f"nothing/{tensor.dtype}", np.zeros((), tensor.dtype))
        g.add("Where", ["window/is_given", given, nothing], name)

    def _add_results(self, g: GraphBuilder) -> None:
        """Adds y and y_ints, which have the outputs of a dtype side by side."""
        if self.spec.waits:
            g.add("Unsqueeze", [LACKS, g.integers(2)], f"out/{MISSING}")
        for name, dtype, _ in sides(self.layout.y, (Y, Y_INTS)):
            parts = [f"out/{each.name}" for each in self.spec.results if each.dtype == dtype]
            g.add("Concat", parts, name, axis=-1)


class LstmWindowNetwork(WindowNetwork):
    """Kind "lstm", also a bidirectional one: the network is built from the weights."""

    def __init__(self, spec: ModelSpec, weights: Weights) -> None:
        super().__init__(spec)
        assert spec.lstm is not None
        self.lstm = spec.lstm
        self.weights = weights

    def _model(self, g: GraphBuilder) -> onnx.ModelProto:
        return g.model()

    def _add_network(self, g: GraphBuilder, rows: dict[str, str]) -> dict[str, str]:
        lstm, window = self.lstm, self.spec.window
        (rows_of,) = rows.values()
        if lstm.num_embeddings:
            rows_of = g.add("Squeeze", [rows_of, g.integers(2)], "network/tokens")
        windows = self._add_windows(g, input_layer(g, lstm, self.weights, rows_of))
        count = g.add("Mul", [STEPS, SESSIONS], "window/count")
        lengths = g.constant("window/whole", np.array([window]))
        if self.spec.window_fill == "grow":
            there = g.add("Sub", [lengths, LACKS], "window/there")
            lengths = g.add("Reshape", [there, g.integers(-1)], "window/there/flat")
        else:
            lengths = g.add("Expand", [lengths, count], "window/each")
        given = g.add("Cast", [lengths], "window/lengths", to=DTYPES["int32"])
        value = windows
        for layer in range(lstm.num_layers):
            h0, c0 = self._add_start(g, layer, count)
            value = lstm_layer(g, lstm, self.weights, layer, LayerInput(value, given, h0, c0)).y
        last = self._add_last(g, value, lengths)
        # Also of a window that grows, because it repeats its last row.
        end = g.constant("window/last_row", np.array(window - 1))
        x = g.add("Gather", [windows, end], "network/x", axis=0)
        head(g, lstm, self.weights, last, x, "network/y")
        return {"y": "network/y"}

    def _add_windows(self, g: GraphBuilder, rows: str) -> str:
        """The windows [W, N, I] of rows [B, W - 1 + T, I], time step after time step.

        A window that grows begins with the rows there are; the rest of it repeats its last row.
        """
        window, width = self.spec.window, self.lstm.input_size
        within = g.constant("window/within", np.arange(window).reshape(-1, 1))
        steps = g.add("Squeeze", [_column(g), g.integers(1)], "window/row")
        flat = g.integers(window, -1, width)
        if self.spec.window_fill != "grow":
            major = g.add("Transpose", [rows], "rows/time_major", perm=[1, 0, 2])
            places = g.add("Add", [within, steps], "window/indices")  # [W, T]
            found = g.add("Gather", [major, places], "windows/each", axis=0)  # [W, T, B, I]
            return g.add("Reshape", [found, flat], "windows")
        lacks = g.add("Transpose", [LACKS], "window/lacks/swapped", perm=[1, 0])  # [B, T]
        begin = g.add("Add", [lacks, steps], "window/begins")
        begin = g.add("Unsqueeze", [begin, g.integers(2)], "window/begins/column")
        ends = g.constant("window/end", np.array(window - 1))
        ends = g.add(
            "Unsqueeze",
            [g.add("Add", [steps, ends], "window/last"), g.integers(1)],
            "window/last/column",
        )
        column = g.constant("window/within/row", np.arange(window))
        places = g.add("Add", [begin, column], "window/indices/any")
        places = g.add("Min", [places, ends], "window/indices/ended")
        places = g.add("Unsqueeze", [places, g.integers(3)], "window/indices")  # [B, T, W, 1]
        found = g.add("GatherND", [rows, places], "windows/each", batch_dims=1)  # [B, T, W, I]
        major = g.add("Transpose", [found], "windows/time_major", perm=[2, 1, 0, 3])
        return g.add("Reshape", [major, flat], "windows")

    def _add_start(self, g: GraphBuilder, layer: int, count: str) -> tuple[str, str]:
        """The initial states [D, N, state] and [D, N, H] of a layer for N windows."""
        lstm, found = self.lstm, []
        first, end = (each * lstm.num_directions for each in (layer, layer + 1))
        for state in lstm.states:
            rows = np.zeros((end - first, 1, state.shape[1]), np.float32)
            if lstm.initial_state:
                rows = self.weights[INITIAL_STATE + state.name][first:end, np.newaxis]
            name = f"lstm.{layer}.{state.name}.start"
            shape = g.add("Concat", [g.integers(1), count, g.integers(1)], f"{name}.shape", axis=0)
            found.append(g.add("Expand", [g.constant(f"{name}.row", rows), shape], name))
        h0, c0 = found
        return h0, c0

    def _add_last(self, g: GraphBuilder, value: str, lengths: str) -> str:
        """The last row [N, width] of each window's outputs [W, N, width]."""
        if self.spec.window_fill != "grow":
            last = g.constant("window/last_row", np.array(self.spec.window - 1))
            return g.add("Gather", [value, last], "network/last", axis=0)
        swapped = g.add("Transpose", [value], "network/swapped", perm=[1, 0, 2])
        one = g.constant("const.int1", np.array(1))
        last = g.add("Sub", [lengths, one], "network/ends")
        last = g.add("Unsqueeze", [last, g.integers(1)], "network/ends/column")
        return g.add("GatherND", [swapped, last], "network/last", batch_dims=1)


class GraphWindowNetwork(WindowNetwork):
    """Kind "network": the file's graph, which reads whole windows."""

    def __init__(self, spec: ModelSpec, graph: StepGraph) -> None:
        super().__init__(spec)
        self._graph = graph

    def _model(self, g: GraphBuilder) -> onnx.ModelProto:
        return checked_model(g, self._graph)

    def _add_network(self, g: GraphBuilder, rows: dict[str, str]) -> dict[str, str]:
        window = self.spec.window
        within = g.constant("window/within", np.arange(window))
        places = g.add("Add", [_column(g), within], "window/indices")  # [T, W]
        for each in self.spec.inputs:
            name = f"windows/{each.name}"
            found = g.add("Gather", [rows[each.name], places], name, axis=1)  # [B, T, W, size]
            major = g.add("Transpose", [found], f"{name}/time_major", perm=[1, 0, 2, 3])
            shape = g.integers(-1, window, *each.shape)
            g.add("Reshape", [major, shape], NET + each.name)
        tensors = (*self._graph.initializers.values(), *self._graph.constants)
        g.include(map(renamed_node, self._graph.running), map(renamed, tensors))
        return {each.name: NET + each.name for each in self.spec.outputs}


def _column(g: GraphBuilder) -> str:
    """int64 [T, 1]: the time steps 0, 1, ..., T - 1, once."""
    if g.has(COLUMN):
        return COLUMN
    zero, one = (g.constant(f"const.int{i}", np.array(i)) for i in (0, 1))
    end = g.add("Squeeze", [STEPS, g.integers(0)], "window/end/step")
    steps = g.add("Range", [zero, end, one], "window/steps/each")
    return g.add("Unsqueeze", [steps, g.integers(1)], COLUMN)
