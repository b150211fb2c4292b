"""Writes one call of a recurrent layer for the time steps of a window as nodes of ONNX.

A layer of an nn.LSTM or nn.GRU is one ONNX node over time, for both directions. Any other layer is
a Scan over the nodes of one time step, in each direction. It must not know windows or sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from lstmserve_export.module.graph.nodes import LayerWeights, Nodes, Place
from lstmserve_export.module.graph.steps import OPS, StepCall, is_written
from lstmserve_export.module.recurrent import CallId, Layer, kind_of, state_shapes


class SequenceCall:
    """One call of a sequence layer as nodes. N is the batch, T the time steps, D the directions."""

    def __init__(self, found: Nodes, call: CallId, layer: Layer) -> None:
        self._found = found
        self._call = call
        self._layer = layer
        self._weights = LayerWeights(found, call, layer)
        self._name = self._weights.name + (f".call{call.number + 1}" if call.number else "")
        self._widths = [shape[-1] for shape in state_shapes(layer)]

    def expand(self, node: onnx.NodeProto) -> None:
        """Adds the nodes that compute what the placeholder `node` stands for: x [T, N, I], and
        states [N, layers * D, width] unless they are zeros -> y [T, N, D * width] and states."""
        value, *before = node.input
        y, *after = node.output
        layers = self._layer.num_layers
        starts = [self._parts(state, layers) for state in before]
        layer = self._scans if is_written(self._layer) else self._node
        ends: list[list[str]] = []
        for index in range(layers):
            value, states = layer(index, value, [each[index] for each in starts])
            ends.append(states)
        self._found.rename(value, y)
        for name, parts in zip(after, zip(*ends, strict=True), strict=True):
            self._found.nodes.append(helper.make_node("Concat", parts, [name], axis=1))

    def _parts(self, state: str, count: int) -> list[str]:
        """[N, layers * D, width] -> [N, D, width] of each of the layer's num_layers."""
        if count == 1:
            return [state]
        sizes = self._found.shape(*[len(self._weights.places(0))] * count)
        names = [f"{state}/{index}" for index in range(count)]
        return self._found.add_many("Split", [state, sizes], names, axis=1)

    def _node(self, index: int, x: str, starts: Sequence[str]) -> tuple[str, list[str]]:
        """One ONNX node: x [T, N, I], states [N, D, H] -> y [T, N, D * H], states [N, D, H]."""
        found, layer, name = self._found, self._layer, f"{self._name}/{index}"
        matrices = self._weights.matrices(index)
        letters = "hc"[: len(self._widths)]
        before = [
            found.add("Transpose", [start], f"{name}/{letter}", perm=[1, 0, 2])
            for start, letter in zip(starts, letters, strict=False)
        ]
        attributes: dict[str, Any] = {"hidden_size": layer.hidden_size}
        if layer.bidirectional:
            attributes["direction"] = "bidirectional"
        if kind_of(layer) == "gru":
            attributes["linear_before_reset"] = 1
        weights = [matrices.get(letter, "") for letter in "WRB"]
        given = [x, *weights, *(["", *before] if before else [])]
        names = [f"{name}/y", *(f"{name}/{letter}.end" for letter in letters)]
        raw, *ends = found.add_many(OPS[kind_of(layer)], given, names, **attributes)
        if layer.bidirectional:  # [T, D, N, H]
            raw = found.add("Transpose", [raw], f"{name}/y.rows", perm=[0, 2, 1, 3])
            shape = found.shape(0, 0, 2 * layer.hidden_size)
            y = found.add("Reshape", [raw, shape], f"{name}/y.row")
        else:
            y = found.add("Squeeze", [raw, found.shape(1)], f"{name}/y.row")
        swapped = [found.add("Transpose", [e], f"{e}.row", perm=[1, 0, 2]) for e in ends]
        return y, swapped

    def _scans(self, index: int, x: str, starts: Sequence[str]) -> tuple[str, list[str]]:
        """As _node(), by a Scan in each direction."""
        places = self._weights.places(index)
        starts = list(starts) or [self._zeros(index, x, width) for width in self._widths]
        parts = [self._parts_of_directions(start, len(places)) for start in starts]
        ys, ends = [], []
        for number, place in enumerate(places):
            y, *states = self._scan(place, x, [each[number] for each in parts])
            ys.append(y)
            ends.append(states)
        if len(places) == 1:
            return ys[0], ends[0]
        name = f"{self._name}/{index}"
        return self._found.add("Concat", ys, f"{name}/y.both", axis=-1), [
            self._found.add("Concat", states, f"{name}/{number}.both", axis=1)
            for number, states in enumerate(zip(*ends, strict=True))
        ]

    def _zeros(self, index: int, x: str, width: int) -> str:
        """Zeros [N, D, width]."""
        found, name = self._found, f"{self._name}/{index}/start"
        size = found.add("Shape", [x], f"{name}/size", start=1, end=2)
        rest = found.shape(len(self._weights.places(index)), width)
        shape = found.add("Concat", [size, rest], f"{name}/shape", axis=0)
        return found.add("ConstantOfShape", [shape], f"{name}/zeros")

    def _parts_of_directions(self, state: str, count: int) -> list[str]:
        """[N, D, width] -> [N, 1, width] of each direction."""
        if count == 1:
            return [state]
        names = [f"{state}/forward", f"{state}/reverse"]
        return self._found.add_many("Split", [state, self._found.shape(1, 1)], names, axis=1)

    def _scan(self, place: Place, x: str, starts: Sequence[str]) -> list[str]:
        """x [T, N, I], states [N, 1, width] -> y [T, N, width], states."""
        found, name = self._found, f"{self._name}/{place}"
        body = found.body()
        row = body.name(f"{name}/row")
        before = [body.name(f"{name}/{letter}.before") for letter in "hc"[: len(starts)]]
        step = StepCall(body, self._call, self._layer).written(place, row, before)
        states = [body.add("Identity", [end], f"{end}.after") for end in step.states]
        y = body.add("Identity", [step.y], f"{name}/y.step")
        widths = self._widths
        graph = helper.make_graph(
            body.nodes,
            "step",
            [
                *(_value(n, None, 1, w) for n, w in zip(before, widths, strict=True)),
                helper.make_tensor_value_info(row, TensorProto.FLOAT, [None, None]),
            ],
            [
                *(_value(n, None, 1, w) for n, w in zip(states, widths, strict=True)),
                _value(y, None, widths[0]),
            ],
        )
        names = [*(f"{name}/{letter}.end" for letter in "hc"[: len(starts)]), f"{name}/y"]
        *ends, rows = found.add_many(
            "Scan",
            [*starts, x],
            names,
            body=graph,
            num_scan_inputs=1,
            scan_input_directions=[int(place.is_reverse)],
            scan_output_directions=[int(place.is_reverse)],
        )
        return [rows, *ends]


def _value(name: str, *shape: int | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
