"""Recognises y = head(lstm(x)) in a traced step, so that the model becomes one of kind "lstm".

It reads the trace backwards from the only output to the only input, and takes what an LstmSpec can
say and nothing else; between the layers, nodes may move an axis of length 1. It computes nothing
and proves nothing: a network that it returns is a proposal, which the export compares with
forward(). It must not know the user's classes, only the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from lstmserve_export.arrays import Array
from lstmserve_export.lstm.network import Network, Norm, make_activation
from lstmserve_export.module.graph.chain import (
    BATCH,
    LAYERS,
    MOVES,
    ONE,
    WIDTH,
    Graph,
    Node,
    NotRecognised,
    Value,
    check,
    take_entry,
)
from lstmserve_export.module.graph.trace import DOMAIN, Trace
from lstmserve_export.module.recurrent import Layer
from lstmserve_export.module.signature.signature import Signature

NOTE: Final = "recognised as head(lstm(x)): its graph is built from the weights"
ACTIVATIONS: Final = {"Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid", "Softmax": "softmax"}
OUTPUT: Final = "y"  # what kind "lstm" calls its output

Floats = npt.NDArray[np.float64]


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
        self._affine: _Affine | None = None  # of the side that is being read
        self._input_norm: Norm | None = None

    def network(self) -> Network:
        """The network. Raises NotRecognised."""
        source, output = self._signature.inputs[0], self._signature.outputs[0].spec
        value = Value((BATCH, WIDTH), source.spec.size)
        if source.spec.dtype == "int64":
            value = Value((BATCH,), 1)
        if len(source.spec.shape) != len(value.axes) - 1:
            raise NotRecognised
        for node, name in self._graph.path(source.spec.name, output.name):
            value = self._read(node, name, value)
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
            notes=(NOTE,) if source.name == named else (NOTE, renamed),
        )

    def _read(self, node: onnx.NodeProto, name: str, value: Value) -> Value:
        """The value `name`, which the node makes of the one before it. Raises NotRecognised."""
        if node.domain == DOMAIN:
            return self._read_layer(node, name, value)
        if (move := MOVES.get(node.op_type)) is not None:
            return move(Node(node, self._graph), value)
        if node.op_type in ACTIVATIONS:
            if node.op_type == "Softmax":
                check(value.axes[Node(node, self._graph).attribute("axis", -1)] == WIDTH)
            self._append(make_activation(ACTIVATIONS[node.op_type]))
            return value
        if node.op_type in ("MatMul", "Gemm"):
            return self._read_linear(Node(node, self._graph), value)
        if node.op_type in ("Add", "Sub", "Mul", "Div"):
            return self._read_affine(Node(node, self._graph), value)
        if node.op_type == "Gather":
            return self._read_gather(Node(node, self._graph), value)
        raise NotRecognised

    def _read_layer(self, node: onnx.NodeProto, name: str, value: Value) -> Value:
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
        check(self._lstm is not None and self._affine is None)
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
        self._append(_linear(weight.T, None if bias is None else _per_feature(bias, value)))
        return value

    def _read_affine(self, node: Node, value: Value) -> Value:
        """A bias, or a part of a norm."""
        is_second = node.is_constant(1)
        check(is_second or node.op in ("Add", "Mul"))
        array = _per_feature(node.constant(1 if is_second else 0), value)
        last = self._head[-1] if self._head else None
        is_first = node.op == "Add" and self._affine is None
        if is_first and isinstance(last, nn.Linear) and last.bias is None:
            self._head[-1] = _linear(last.weight.numpy(), array)
            return value
        before = self._affine or _Affine(np.ones(value.width), np.zeros(value.width))
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


@dataclass(frozen=True, slots=True)
class _Affine:
    """x * factor + offset, float64 [width] each."""

    factor: Floats
    offset: Floats

    def then(self, op: str, by: Floats) -> _Affine:
        """This, followed by an operation of ONNX with a constant."""
        with np.errstate(all="ignore"):  # back() and forth() refuse what is not finite
            if op in ("Add", "Sub"):
                return _Affine(self.factor, self.offset + by if op == "Add" else self.offset - by)
            by = by if op == "Mul" else 1 / by
            return _Affine(self.factor * by, self.offset * by)

    def back(self) -> Norm:
        """As (x - mean) / scale. In float64, so the float32 that the user wrote comes out again."""
        with np.errstate(all="ignore"):
            return _norm(-self.offset / self.factor, 1 / self.factor)

    def forth(self) -> Norm:
        """As y * scale + mean. Raises NotRecognised."""
        return _norm(self.offset, self.factor)


def _only_layer(traced: Trace, signature: Signature) -> Layer:
    """The LSTM, if the module is one call of it from zeros and has one input and one y."""
    is_alone = len(signature.inputs) == len(signature.memories) == len(traced.calls) == 1
    if not is_alone or signature.passed or len(signature.outputs) != 1:
        raise NotRecognised
    (memory,), ((_, layer),) = signature.memories, traced.calls
    check(isinstance(layer, (nn.LSTM, nn.LSTMCell)) and memory.repeats == 1)
    check(not any(np.any(value) for value in memory.initial))
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


def _per_feature(array: Array, value: Value) -> Floats:
    """A constant that meets the value in an operation of ONNX, float64 [width].

    Raises NotRecognised if it differs along another axis, or adds one.
    """
    check(array.ndim <= len(value.axes) and array.dtype == np.float32)
    shape = (1,) * (len(value.axes) - array.ndim) + array.shape
    for label, size in zip(value.axes, shape, strict=True):
        check(size == 1 or (label == WIDTH and size == value.width))
    check(WIDTH in value.axes)
    return np.broadcast_to(array.reshape(-1).astype(np.float64), value.width)


def _norm(mean: Floats, scale: Floats) -> Norm:
    check(bool(np.isfinite(mean).all() and np.isfinite(scale).all()))
    return Norm(mean + 0.0, scale)  # no -0.0, which would be another fingerprint
