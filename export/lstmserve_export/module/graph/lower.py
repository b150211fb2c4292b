"""Replaces the recurrent calls of a trace by nodes of ONNX, and tidies the graph.

A layer of an nn.LSTM or nn.GRU, and a cell, is one ONNX node over a sequence of one time step, with
its weights as initializers: onnxruntime prepacks those, and the server can run the node over time.
An nn.RNN and a projection are written out. Formulas as in torch.nn.LSTM, GRU and RNN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lstmserve.spec import INITIAL, Tap
from lstmserve_export.arrays import Array
from lstmserve_export.module.graph.trace import DOMAIN, RECURRENT, Trace
from lstmserve_export.module.recurrent import CELLS, CallId, Layer, kind_of, state_names
from lstmserve_export.module.signature.signature import Signature
from lstmserve_export.refusal import Refused
from lstmserve_export.target import ONNX_BYTES_MAX, TOO_LARGE

OPS: Final = {"lstm": "LSTM", "gru": "GRU"}
# The order of the gates in ONNX's rows, as positions in torch's (i f g o; r z n; one).
GATES: Final = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}
NET: Final = "net."  # the name of the module in the trace
IR_VERSION: Final = 10


class Step(NamedTuple):
    """The names that one layer has in the graph: the value that it reads, its output [N, width],
    its states [N, 1, width] or [N, width], and its weights by letter."""

    input: str
    y: str
    states: tuple[str, ...]
    weights: Mapping[str, str]


@dataclass(slots=True)
class _Nodes:
    """Collects nodes and initializers, with names that no other value has."""

    taken: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def name(self, wanted: str) -> str:
        """The name, or it with a number where it is taken."""
        name, number = wanted, 2
        while name in self.taken:
            name, number = f"{wanted}.{number}", number + 1
        self.taken.add(name)
        return name

    def weight(self, name: str, array: Array) -> str:
        """An initializer, which two calls of one layer share."""
        if name not in self.initializers:
            tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
            self.initializers[name] = tensor
            self.taken.add(name)
        return name

    def shape(self, *values: int) -> str:
        """An int64 vector."""
        return self.weight(f"shape/{'_'.join(map(str, values))}", np.array(values, np.int64))

    def add(self, op: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        """A node with one output; returns its name."""
        name = self.name(output)
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def rename(self, old: str, new: str) -> None:
        """Renames a value that the nodes so far compute."""
        for node in self.nodes:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]


def lower(traced: Trace, signature: Signature) -> tuple[onnx.ModelProto, tuple[Tap, ...]]:
    """The step graph, which step_graph.read_step_graph() reads, and its layers. Raises Refused."""
    graph = traced.model.graph
    if any(tensor.external_data for tensor in graph.initializer):
        raise Refused(TOO_LARGE)
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {value.name for value in (*graph.input, *graph.output)}
    found = _Nodes(taken)
    taps: list[Tap] = []
    states = signature.states_by_call()
    for node in graph.node:
        if node.domain == DOMAIN and node.op_type == RECURRENT:
            number = next(a.i for a in node.attribute if a.name == "call")
            call, layer = traced.calls[number]
            taps += _Call(found, call, layer, states.get(call, ())).expand(node)
        else:
            found.nodes.append(node)
    for name, value in signature.initial.items():
        if np.any(value):
            found.weight(name + INITIAL, value)
    return _model(traced.model, found), tuple(taps)


def _model(traced: onnx.ModelProto, found: _Nodes) -> onnx.ModelProto:
    """A model with these nodes in place of the traced ones, without what only a tool reads."""
    graph = traced.graph
    renamed = {
        tensor.name: tensor.name.removeprefix(NET)
        for tensor in graph.initializer
        if tensor.name.removeprefix(NET) not in found.taken
    }
    for node in found.nodes:
        node.name = node.doc_string = ""
        del node.metadata_props[:]
        node.input[:] = [renamed.get(name, name) for name in node.input]
    used = _used(found.nodes, graph.output)
    initializers = []
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
        tensor.doc_string = ""
        del tensor.metadata_props[:]
        if tensor.name in used:
            initializers.append(tensor)
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    initializers += [
        tensor
        for name, tensor in found.initializers.items()
        if name in used or name.endswith(INITIAL)
    ]
    made = helper.make_graph(found.nodes, "step", graph.input, graph.output, initializers)
    opsets = [each for each in traced.opset_import if each.domain != DOMAIN]
    model = helper.make_model(
        made, opset_imports=opsets, ir_version=IR_VERSION, producer_name="lstmserve"
    )
    if model.ByteSize() > ONNX_BYTES_MAX:
        raise Refused(TOO_LARGE)
    return model


def _used(nodes: Iterable[onnx.NodeProto], outputs: Iterable[onnx.ValueInfoProto]) -> set[str]:
    """Every name that a node of the graph or of its subgraphs reads."""
    found = {value.name for value in outputs}
    for node in nodes:
        found |= set(node.input)
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.HasField("g") else attribute.graphs
            for graph in graphs:
                found |= _used(graph.node, graph.output)
    return found


class _Call:
    """One call of a layer as nodes. expand() gives a Tap for each layer of it."""

    def __init__(self, found: _Nodes, call: CallId, layer: Layer, states: Iterable[str]) -> None:
        self._found = found
        self._layer = layer
        self._call = call
        self._kind = kind_of(layer)
        self._states = tuple(states)
        self._is_cell = isinstance(layer, CELLS)
        self._op = "Relu" if getattr(layer, "nonlinearity", "") == "relu" else "Tanh"
        self._weights = call.layer or "layer"
        self._prefix = self._weights + (f".call{call.number + 1}" if call.number else "")

    def expand(self, node: onnx.NodeProto) -> Iterator[Tap]:
        """Adds the nodes that compute what the placeholder `node` stands for: x [N, I] and states
        [N, *shape] -> y [N, width] and states."""
        x, *before = node.input
        y, *after = node.output
        count = 1 if self._is_cell else self._layer.num_layers
        step = self._node
        if self._kind == "rnn":
            step = self._elman
        elif getattr(self._layer, "proj_size", 0):
            step = self._projected
        ends: list[tuple[str, ...]] = []
        value = x
        for index, starts in enumerate(zip(*(self._split(s, count) for s in before), strict=True)):
            source, value, states, weights = step(index, value, starts)
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
        found = self._found
        if count == 1:
            return [state]
        parts = [found.name(f"{state}/{index}") for index in range(count)]
        sizes = found.shape(*[1] * count)
        found.nodes.append(helper.make_node("Split", [state, sizes], parts, axis=1))
        return parts

    def _end(self, state: str, width: int) -> str:
        """A layer's state after the step as a session has it: [N, 1, width], or [N, width] of a
        cell. `state` has these values in any axes."""
        shape = (-1, width) if self._is_cell else (-1, 1, width)
        return self._found.add("Reshape", [state, self._found.shape(*shape)], f"{state}.row")

    def _node(self, index: int, x: str, starts: Sequence[str]) -> Step:
        """One ONNX node: x [N, I], states -> y [N, H], states [N, H]."""
        found, name = self._found, f"{self._prefix}/{index}"
        lead = found.shape(0)
        sequence = found.add("Unsqueeze", [x, lead], f"{name}/x")
        matrices = self._matrices(index)
        row = found.shape(1, -1, self._layer.hidden_size)
        named = list(zip(starts, "hc", strict=False))
        before = [found.add("Reshape", [start, row], f"{name}/{k}") for start, k in named]
        ends = [found.name(f"{name}/{k}.end") for _, k in named]
        raw = found.name(f"{name}/y")
        attributes: dict[str, Any] = {"hidden_size": self._layer.hidden_size}
        if self._kind == "gru":
            attributes["linear_before_reset"] = 1
        weights = [matrices.get(letter, "") for letter in "WRB"]
        given = [sequence, *weights, "", *before]
        found.nodes.append(helper.make_node(OPS[self._kind], given, [raw, *ends], **attributes))
        y = found.add("Squeeze", [raw, found.shape(0, 1)], f"{name}/y.row")
        states = tuple(self._end(end, self._layer.hidden_size) for end in ends)
        return Step(sequence, y, states, matrices)

    def _parameter(self, kind: str, index: int) -> Array:
        """A parameter of the layer by torch's name; parametrizations are applied."""
        suffix = "" if isinstance(self._layer, CELLS) else f"_l{index}"
        return np.asarray(getattr(self._layer, kind + suffix).detach().numpy())

    def _gates(self, kind: str, index: int) -> Array:
        """A parameter whose rows are in the order of ONNX's gates."""
        parts = np.split(self._parameter(kind, index), len(GATES[self._kind]))
        return np.concatenate([parts[gate] for gate in GATES[self._kind]])

    def _matrices(self, index: int) -> dict[str, str]:
        """Names of W [1, G*H, I], R [1, G*H, H], and with a bias B [1, 2*G*H]."""
        found, name = self._found, f"{self._weights}.{index}"
        values = {"W": self._gates("weight_ih", index)[None]}
        values["R"] = self._gates("weight_hh", index)[None]
        if self._layer.bias:
            biases = [self._gates(kind, index) for kind in ("bias_ih", "bias_hh")]
            values["B"] = np.concatenate(biases)[None]
        return {k: found.weight(f"{name}.{k}", value) for k, value in values.items()}

    def _sum(self, index: int, x: str, h: str) -> tuple[str, dict[str, str]]:
        """The gates before their activations, W x + R h + b [N, G*H], and the names of W [I, G*H],
        R [P, G*H] and B [G*H]: matrices that onnxruntime prepacks."""
        found, name, weights = self._found, f"{self._prefix}/{index}", f"{self._weights}.{index}"
        matrices = {
            letter: found.weight(f"{weights}.{letter}", self._gates(kind, index).T)
            for letter, kind in (("W", "weight_ih"), ("R", "weight_hh"))
        }
        parts = [
            found.add("MatMul", [value, matrices[letter]], f"{name}/{letter}")
            for value, letter in ((x, "W"), (h, "R"))
        ]
        gates = found.add("Add", parts, f"{name}/gates")
        if self._layer.bias:
            both = self._gates("bias_ih", index) + self._gates("bias_hh", index)
            matrices["B"] = found.weight(f"{weights}.B", both)
            gates = found.add("Add", [gates, matrices["B"]], f"{name}/biased")
        return gates, matrices

    def _row(self, state: str, index: int, letter: str, width: int) -> str:
        """[N, width] of a state [N, 1, width]."""
        shape = self._found.shape(-1, width)
        return self._found.add("Reshape", [state, shape], f"{self._prefix}/{index}/{letter}")

    def _elman(self, index: int, x: str, starts: Sequence[str]) -> Step:
        """An nn.RNN layer: x [N, I], h [N, H] -> y = h. ONNX's RNN is not used, because onnxruntime
        does not prepack its weights, and so gives a batch of one other bits."""
        h = self._row(starts[0], index, "h", self._layer.hidden_size)
        gates, matrices = self._sum(index, x, h)
        y = self._found.add(self._op, [gates], f"{self._prefix}/{index}/y")
        return Step(x, y, (self._end(y, self._layer.hidden_size),), matrices)

    def _projected(self, index: int, x: str, starts: Sequence[str]) -> Step:
        """An LSTM layer with a projection: x [N, I], h [N, P], c [N, H] -> y = h [N, P], h, c."""
        found, name, layer = self._found, f"{self._prefix}/{index}", self._layer
        h = self._row(starts[0], index, "h", layer.proj_size)
        c = self._row(starts[1], index, "c", layer.hidden_size)
        gates, matrices = self._sum(index, x, h)
        parts = [found.name(f"{name}/{gate}") for gate in "iofg"]
        widths = found.shape(*[layer.hidden_size] * 4)
        found.nodes.append(helper.make_node("Split", [gates, widths], parts, axis=1))
        i, o, f = (found.add("Sigmoid", [part], f"{part}.on") for part in parts[:3])
        g = found.add("Tanh", [parts[3]], f"{parts[3]}.on")
        kept = found.add("Mul", [f, c], f"{name}/kept")
        new = found.add("Mul", [i, g], f"{name}/new")
        after = found.add("Add", [kept, new], f"{name}/c.end")
        u = found.add("Mul", [o, found.add("Tanh", [after], f"{name}/squashed")], f"{name}/u")
        matrix = found.weight(f"{self._weights}.{index}.P", self._parameter("weight_hr", index).T)
        row = found.add("MatMul", [u, matrix], f"{name}/P")
        states = self._end(row, layer.proj_size), self._end(after, layer.hidden_size)
        return Step(x, row, states, matrices | {"P": matrix})
