"""Recognises y = head(lstm(x)) in a traced step, so that the model becomes one of kind "lstm".

It reads the trace backwards from the only output to the only input, and takes what an LstmSpec can
say and nothing else; between the layers, nodes may move an axis of length 1. It computes nothing
and proves nothing: a network that it returns is a proposal, which the export compares with
forward(). It must not know the user's classes, only the graph.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
import torch
from torch import nn

from lstmserve_export.arrays import Array
from lstmserve_export.lstm.network import Floats, Network, Norm, make_activation, take_state
from lstmserve_export.module.graph.chain import (
    BATCH,
    LAYERS,
    MOVES,
    ONE,
    WIDTH,
    Graph,
    Link,
    Node,
    NotRecognised,
    Value,
    check,
    take_entry,
)
from lstmserve_export.module.graph.columns import (
    AFFINE,
    Affine,
    per_feature,
    read_affine,
    read_columns,
)
from lstmserve_export.module.graph.trace import DOMAIN, Trace
from lstmserve_export.module.recurrent import Layer
from lstmserve_export.module.signature.signature import Signature

NOTE: Final = "recognised as head(lstm(x)): its graph is built from the weights"
# The activations that are one node without parameters.
ACTIVATIONS: Final = {
    "Relu": "relu",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
}
OUTPUT: Final = "y"  # what kind "lstm" calls its output
SOFTPLUS_THRESHOLD: Final = 20  # torch's default


def recognise(traced: Trace, signature: Signature) -> Network | None:
    """The network of kind "lstm" that the trace is, or None if it is another."""
    try:
        return _Reader(traced, signature).network()
    except NotRecognised:
        return None


class _Reader:
    """One reading of a trace from its input to its output, which collects the network's parts."""

    def __init__(self, traced: Trace, signature: Signature) -> None:
        self._signature = signature
        self._graph = Graph(traced.model.graph)
        self._layer = _only_layer(traced, signature)
        self._lstm: nn.LSTM | None = None  # once its call is read
        self._head: list[nn.Module] = []
        self._embedding: nn.Embedding | None = None
        self._affine: Affine | None = None  # of the end that is being read
        self._input_norm: Norm | None = None
        self._residual: tuple[int, ...] = ()

    def network(self) -> Network:
        """The network. Raises NotRecognised."""
        source, output = self._signature.inputs[0], self._signature.outputs[0].spec
        value = Value((BATCH, WIDTH), source.spec.size)
        if source.spec.dtype == "int64":
            value = Value((BATCH,), 1)
        if len(source.spec.shape) != len(value.axes) - 1:
            raise NotRecognised
        for link in self._graph.path(source.spec.name, output.name):
            value = self._read(link, value)
        if self._lstm is None or value.axes != (BATCH, WIDTH) or output.shape != (value.width,):
            raise NotRecognised
        named = "x" if self._embedding is None else "tokens"
        renamed = f"the argument {source.name} of forward() is the input {named}"
        return Network(
            lstm=self._lstm,
            head=nn.Sequential(*self._head).eval().requires_grad_(False),
            embedding=self._embedding,
            input_norm=self._input_norm,
            output_norm=self._affine.forth() if self._affine is not None else None,
            residual=self._residual,
            initial_state=self._initial_state(),
            notes=(NOTE,) if source.name == named else (NOTE, renamed),
        )

    def _initial_state(self) -> tuple[Floats, Floats] | None:
        assert self._lstm is not None
        (memory,) = self._signature.memories
        h0, c0 = (each.reshape(self._lstm.num_layers, -1) for each in memory.initial)
        return take_state((h0, c0), self._lstm)

    def _read(self, link: Link, value: Value) -> Value:
        """The value of the link, which its node makes of the one before it. Raises
        NotRecognised."""
        node = Node(link.node, self._graph)
        if link.side:
            return self._read_residual(link.side, value)
        if link.node.domain == DOMAIN:
            return self._read_lstm(link.node, link.name, value)
        if (move := MOVES.get(node.op)) is not None:
            return move(node, value)
        if (layer := _layer(node, value)) is not None:
            self._append(layer)
            return value
        if node.op in ("MatMul", "Gemm"):
            return self._read_linear(node, value)
        if node.op in AFFINE:
            return self._read_affine(node, value)
        if node.op == "Gather":
            return self._read_gather(node, value)
        raise NotRecognised

    def _read_residual(self, side: str, value: Value) -> Value:
        """Columns of what the LSTM reads, added to what the head gives."""
        check(self._lstm is not None and self._embedding is None)
        check(self._affine is None and not self._residual)
        (source,) = self._signature.inputs
        found = read_columns(self._graph, source.spec.name, side, source.spec.size)
        check(found.value.axes == value.axes and len(found.columns) in (1, value.width))
        norms = None if found.affine is None else found.affine.back(), self._input_norm
        given = [norm for norm in norms if norm is not None]
        check(len(given) in (0, 2) and len({_content(norm) for norm in given}) < 2)
        columns = found.columns
        self._residual = columns if len(columns) == value.width else columns * value.width
        return value

    def _read_lstm(self, node: onnx.NodeProto, name: str, value: Value) -> Value:
        """The call of the LSTM; `name` is its output or its state h."""
        (memory,) = self._signature.memories
        check(self._lstm is None and value.axes == (BATCH, WIDTH))
        check(list(node.input[1:]) == [spec.name for spec in memory.specs])
        self._lstm = _as_lstm(self._layer)
        if self._affine is not None:
            check(self._embedding is None)
            self._input_norm, self._affine = self._affine.back(), None
        width = self._lstm.proj_size or self._lstm.hidden_size
        if name == node.output[0] or isinstance(self._layer, nn.LSTMCell):
            check(name in node.output[:2])
            return Value((BATCH, WIDTH), width)
        check(name == node.output[1])
        count = self._lstm.num_layers
        return Value((BATCH, ONE if count == 1 else LAYERS, WIDTH), width, count)

    def _append(self, layer: nn.Module) -> None:
        """A layer of the head, which nothing may precede that is no layer."""
        check(self._lstm is not None and self._affine is None and not self._residual)
        self._head.append(layer)

    def _read_linear(self, node: Node, value: Value) -> Value:
        weight, bias = node.constant(1), None
        check(value.axes[-1] == WIDTH and weight.ndim == 2)
        if node.op == "Gemm":
            is_plain = node.attribute("alpha", 1.0) == node.attribute("beta", 1.0) == 1
            check(is_plain and not node.attribute("transA", 0) and len(value.axes) == 2)
            weight = weight.T if node.attribute("transB", 0) else weight
            bias = node.constant(2) if node.has(2) else None
        check(weight.shape[0] == value.width)
        value = value._replace(width=weight.shape[1])
        self._append(_linear(weight.T, None if bias is None else per_feature(bias, value)))
        return value

    def _read_affine(self, node: Node, value: Value) -> Value:
        """A bias, or a part of a norm."""
        array = read_affine(node, value)
        last = self._head[-1] if self._head else None
        is_first = node.op == "Add" and self._affine is None and not self._residual
        if is_first and isinstance(last, nn.Linear) and last.bias is None:
            self._head[-1] = _linear(last.weight.numpy(), array)
            return value
        before = self._affine or Affine.none(value.width)
        self._affine = before.then(node.op, array)
        return value

    def _read_gather(self, node: Node, value: Value) -> Value:
        """An embedding of tokens, or the choice of one entry of an axis."""
        if node.is_constant(1):
            return take_entry(node, value)
        table = node.constant(0)
        check(table.ndim == 2 and node.attribute("axis", 0) == 0)
        check(self._lstm is None and self._affine is None and WIDTH not in value.axes)
        self._embedding = nn.Embedding(*table.shape).requires_grad_(False)
        self._embedding.weight.copy_(_tensor(table))
        return Value((*value.axes, WIDTH), table.shape[1])


def _layer(node: Node, value: Value) -> nn.Module | None:
    """The activation or norm that the node is, if it is one. Raises NotRecognised."""
    match node.op:
        case "Softmax" | "LogSoftmax":
            check(value.axes[node.attribute("axis", -1)] == WIDTH)
        case "Elu":
            return nn.ELU(_decimal(node.attribute("alpha", 1.0)))
        case "LeakyRelu":
            return nn.LeakyReLU(_decimal(node.attribute("alpha", 0.01)))
        case "Gelu":
            is_tanh = node.attribute("approximate", b"none") == b"tanh"
            return make_activation("gelu_tanh" if is_tanh else "gelu")
        case "Clip":
            check([float(node.constant(each)) for each in (1, 2)] == [-1, 1])
            return nn.Hardtanh()
        case "Mul" | "Where" if node.is_variable():
            return _of_two_readers(node)
        case "LayerNormalization":
            return _layer_norm(node, value)
        case "BatchNormalization":
            return _batch_norm(node, value)
    return make_activation(ACTIVATIONS[node.op]) if node.op in ACTIVATIONS else None


def _of_two_readers(node: Node) -> nn.Module:
    """SiLU, x * sigmoid(x), or softplus, which is x itself beyond a threshold."""
    *condition, one, other = node.node.input
    if not condition:
        x, part = (one, other) if node.made_by(other, "Sigmoid") else (other, one)
        check(node.made_by(part, "Sigmoid") == [x])
        return nn.SiLU()
    check(node.made_by(other, "Softplus") == [one])
    x, limit = node.made_by(condition[0], "Greater") or ("", "")
    threshold = node.graph.constant(limit)
    check(x == one and threshold is not None and threshold == SOFTPLUS_THRESHOLD)
    return nn.Softplus()


def _layer_norm(node: Node, value: Value) -> nn.LayerNorm:
    weight, bias = node.constant(1), node.constant(2) if node.has(2) else None
    check(node.attribute("axis", -1) in (-1, len(value.axes) - 1) and value.axes[-1] == WIDTH)
    check(weight.shape == (value.width,))
    eps = _decimal(node.attribute("epsilon", 1e-5))
    # torch gives ones where the layer has no weight.
    has_weight = bias is not None or not (weight == 1).all()
    norm = nn.LayerNorm(value.width, eps, has_weight, bias is not None)
    if has_weight:
        norm.weight.data.copy_(_tensor(weight))
    if bias is not None:
        check(bias.shape == (value.width,))
        norm.bias.data.copy_(_tensor(bias))
    return norm


def _batch_norm(node: Node, value: Value) -> nn.BatchNorm1d:
    check(len(value.axes) > 1 and value.axes[1] == WIDTH and len(node.node.output) == 1)
    norm = nn.BatchNorm1d(value.width, _decimal(node.attribute("epsilon", 1e-5)))
    tensors = norm.state_dict()
    for index, name in enumerate(("weight", "bias", "running_mean", "running_var"), 1):
        array = node.constant(index)
        check(array.shape == (value.width,))
        tensors[name].copy_(_tensor(array))
    return norm


def _decimal(value: float) -> float:
    """The number that the user wrote, of which ONNX has the float32."""
    return float(str(np.float32(value)))


def _content(norm: Norm) -> tuple[bytes, bytes]:
    return norm.mean.tobytes(), norm.scale.tobytes()


def _only_layer(traced: Trace, signature: Signature) -> Layer:
    """The LSTM, if the module is one call of it and has one input and one y."""
    is_alone = len(signature.inputs) == len(signature.memories) == len(traced.calls) == 1
    if not is_alone or signature.passed or len(signature.outputs) != 1:
        raise NotRecognised
    (memory,), ((_, layer),) = signature.memories, traced.calls
    check(isinstance(layer, (nn.LSTM, nn.LSTMCell)) and memory.repeats == 1)
    check(signature.outputs[0].spec.name == OUTPUT)
    return layer


def _as_lstm(layer: Layer) -> nn.LSTM:
    """An nn.LSTM with the weights of an LSTM or an LSTMCell; parametrizations are applied."""
    is_cell = isinstance(layer, nn.LSTMCell)
    lstm = nn.LSTM(
        layer.input_size,
        layer.hidden_size,
        1 if is_cell else layer.num_layers,
        bias=bool(layer.bias),
        batch_first=True,
        proj_size=0 if is_cell else layer.proj_size,
    )
    lstm.load_state_dict(
        {
            name: getattr(layer, name.removesuffix("_l0") if is_cell else name)
            for name in lstm.state_dict()
        }
    )
    return lstm.eval().requires_grad_(False)


def _linear(weight: Array, bias: Array | None) -> nn.Linear:
    """The layer of a weight [out, in] and a bias [out]."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None).requires_grad_(False)
    linear.weight.copy_(_tensor(weight))
    if bias is not None:
        linear.bias.copy_(_tensor(bias))
    return linear


def _tensor(array: Array) -> torch.Tensor:
    """A copy in float32. Raises NotRecognised for a constant of another kind."""
    check(array.dtype in (np.float32, np.float64))
    return torch.from_numpy(np.array(array, np.float32))
