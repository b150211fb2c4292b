"""Writes one call of a recurrent layer for one time step as nodes of ONNX.

A layer of an nn.LSTM or nn.GRU, and a cell, is one ONNX node over a sequence of one time step, with
its weights as initializers: onnxruntime prepacks those, and the server can run the node over time.
An nn.RNN and a projection are written out. Formulas as in torch.nn.LSTM, GRU and RNN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import onnx
from onnx import helper

from lstmserve.spec import Tap
from lstmserve_export.module.graph.nodes import LayerWeights, Nodes, Place
from lstmserve_export.module.recurrent import CELLS, CallId, Layer, kind_of, state_names

OPS: Final = {"lstm": "LSTM", "gru": "GRU"}


class Step(NamedTuple):
    """The names that one layer has in the graph: the value that it reads, its output [N, width],
    its states [N, 1, width] or [N, width], and its weights by letter."""

    input: str
    y: str
    states: tuple[str, ...]
    weights: Mapping[str, str]


class StepCall:
    """One call of a layer as nodes. expand() gives a Tap for each layer of it."""

    def __init__(
        self, found: Nodes, call: CallId, layer: Layer, states: Iterable[str] = ()
    ) -> None:
        """`states` are those of the spec that the call begins from."""
        self._found = found
        self._layer = layer
        self._call = call
        self._kind = kind_of(layer)
        self._states = tuple(states)
        self._is_cell = isinstance(layer, CELLS)
        self._op = "Relu" if getattr(layer, "nonlinearity", "") == "relu" else "Tanh"
        self._weights = LayerWeights(found, call, layer)
        self._prefix = self._weights.name + (f".call{call.number + 1}" if call.number else "")

    def expand(self, node: onnx.NodeProto) -> Iterator[Tap]:
        """Adds the nodes that compute what the placeholder `node` stands for: x [N, I] and states
        [N, *shape] -> y [N, width] and states."""
        x, *before = node.input
        y, *after = node.output
        count = 1 if self._is_cell else self._layer.num_layers
        step = self.written if is_written(self._layer) else self._node
        ends: list[tuple[str, ...]] = []
        value = x
        for index, starts in enumerate(zip(*(self._split(s, count) for s in before), strict=True)):
            source, value, states, weights = step(Place(index), value, starts)
            ends.append(states)
            # An RNN with Relu has another formula, and a state may be made in each step.
            if len(self._states) == len(state_names(self._layer)) and self._op != "Relu":
                yield Tap(self._call.layer, index, self._kind, source, self._states, weights)
        self._found.rename(value, y)
        for name, parts in zip(after, zip(*ends, strict=True), strict=True):
            if len(parts) == 1:
                self._found.rename(parts[0], name)
            else:
                self._found.nodes.append(helper.make_node("Concat", parts, [name], axis=1))

    def _split(self, state: str, count: int) -> list[str]:
        """[N, layers, width] -> [N, 1, width] of each layer; a cell has [N, width]."""
        if count == 1:
            return [state]
        names = [f"{state}/{index}" for index in range(count)]
        return self._found.add_many(
            "Split", [state, self._found.shape(*[1] * count)], names, axis=1
        )

    def _end(self, state: str, width: int) -> str:
        """A layer's state after the step as a session has it: [N, 1, width], or [N, width] of a
        cell. `state` has these values in any axes."""
        shape = (-1, width) if self._is_cell else (-1, 1, width)
        return self._found.add("Reshape", [state, self._found.shape(*shape)], f"{state}.row")

    def _node(self, place: Place, x: str, starts: Sequence[str]) -> Step:
        """One ONNX node: x [N, I], states -> y [N, H], states [N, H]."""
        found, name = self._found, f"{self._prefix}/{place}"
        lead = found.shape(0)
        sequence = found.add("Unsqueeze", [x, lead], f"{name}/x")
        matrices = self._weights.matrices(place.index)
        row = found.shape(1, -1, self._layer.hidden_size)
        named = list(zip(starts, "hc", strict=False))
        before = [found.add("Reshape", [start, row], f"{name}/{k}") for start, k in named]
        attributes: dict[str, Any] = {"hidden_size": self._layer.hidden_size}
        if self._kind == "gru":
            attributes["linear_before_reset"] = 1
        weights = [matrices.get(letter, "") for letter in "WRB"]
        given = [sequence, *weights, "", *before]
        names = [f"{name}/y", *(f"{name}/{k}.end" for _, k in named)]
        raw, *ends = found.add_many(OPS[self._kind], given, names, **attributes)
        y = found.add("Squeeze", [raw, found.shape(0, 1)], f"{name}/y.row")
        states = tuple(self._end(end, self._layer.hidden_size) for end in ends)
        return Step(sequence, y, states, matrices)

    def written(self, place: Place, x: str, starts: Sequence[str]) -> Step:
        """A layer for which onnxruntime has no node that serves: see is_written()."""
        step = self._elman if self._kind == "rnn" else self._projected
        return step(place, x, starts)

    def _sum(self, place: Place, x: str, h: str) -> tuple[str, dict[str, str]]:
        """The gates before their activations, W x + R h + b [N, G*H], and the names of the
        weights."""
        found, name = self._found, f"{self._prefix}/{place}"
        matrices = self._weights.transposed(place)
        parts = [
            found.add("MatMul", [value, matrices[letter]], f"{name}/{letter}")
            for value, letter in ((x, "W"), (h, "R"))
        ]
        gates = found.add("Add", parts, f"{name}/gates")
        if "B" in matrices:
            gates = found.add("Add", [gates, matrices["B"]], f"{name}/biased")
        return gates, matrices

    def _row(self, state: str, place: Place, letter: str, width: int) -> str:
        """[N, width] of a state [N, 1, width]."""
        shape = self._found.shape(-1, width)
        return self._found.add("Reshape", [state, shape], f"{self._prefix}/{place}/{letter}")

    def _elman(self, place: Place, x: str, starts: Sequence[str]) -> Step:
        """An nn.RNN layer: x [N, I], h [N, H] -> y = h."""
        h = self._row(starts[0], place, "h", self._layer.hidden_size)
        gates, matrices = self._sum(place, x, h)
        y = self._found.add(self._op, [gates], f"{self._prefix}/{place}/y")
        return Step(x, y, (self._end(y, self._layer.hidden_size),), matrices)

    def _projected(self, place: Place, x: str, starts: Sequence[str]) -> Step:
        """An LSTM layer with a projection: x [N, I], h [N, P], c [N, H] -> y = h [N, P], h, c."""
        found, name, layer = self._found, f"{self._prefix}/{place}", self._layer
        h = self._row(starts[0], place, "h", layer.proj_size)
        c = self._row(starts[1], place, "c", layer.hidden_size)
        gates, matrices = self._sum(place, x, h)
        widths = found.shape(*[layer.hidden_size] * 4)
        names = [f"{name}/{gate}" for gate in "iofg"]
        parts = found.add_many("Split", [gates, widths], names, axis=1)
        i, o, f = (found.add("Sigmoid", [part], f"{part}.on") for part in parts[:3])
        g = found.add("Tanh", [parts[3]], f"{parts[3]}.on")
        kept = found.add("Mul", [f, c], f"{name}/kept")
        new = found.add("Mul", [i, g], f"{name}/new")
        after = found.add("Add", [kept, new], f"{name}/c.end")
        u = found.add("Mul", [o, found.add("Tanh", [after], f"{name}/squashed")], f"{name}/u")
        row = found.add("MatMul", [u, matrices["P"]], f"{name}/P")
        states = self._end(row, layer.proj_size), self._end(after, layer.hidden_size)
        return Step(x, row, states, matrices)


def is_written(layer: Layer) -> bool:
    """Whether a layer is written out. onnxruntime does not prepack the weights of ONNX's RNN, and
    so gives a batch of one other bits; ONNX's LSTM has no projection."""
    return kind_of(layer) == "rnn" or bool(getattr(layer, "proj_size", 0))
