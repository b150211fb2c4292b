"""Recognises y = head(lstm(x)) in a traced step, so that the model becomes one of kind "lstm".

It reads the trace backwards from the only output to the only input, and takes what an LstmSpec can
say and nothing else; between the layers, nodes may move an axis of length 1. It computes nothing
and proves nothing: a network that it returns is a proposal, which the export compares with
forward() by pairs(). It must not know the user's classes, only the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from lstmserve.golden import Golden
from lstmserve_export.lstm.network import Network, Norm, make_activation
from lstmserve_export.lstm.pairs import SEQUENCE_COUNT_MAX
from lstmserve_export.module.recurrent import Layer
from lstmserve_export.module.signature import Array, Signature
from lstmserve_export.module.trace import DOMAIN, Trace

NOTE: Final = "recognised as head(lstm(x)): its graph is built from the weights"
ACTIVATIONS: Final = {"Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid", "Softmax": "softmax"}
# What an axis of a value is. LAYERS is only in a state of an LSTM that has several.
BATCH, ONE, LAYERS, WIDTH = "batch", "one", "layers", "width"
OUTPUT: Final = "y"  # what kind "lstm" calls its output

Floats = npt.NDArray[np.float64]


class _Other(Exception):
    """The trace is another network."""


class _Value(NamedTuple):
    """What is known of a value of the graph: its axes, and the sizes of two of them."""

    axes: tuple[str, ...]
    width: int
    layers: int = 1

    def size(self, axis: int) -> int:
        """The size of an axis; -1 for the batch, as ONNX's Reshape has it."""
        label = self.axes[axis]
        return {BATCH: -1, ONE: 1, LAYERS: self.layers, WIDTH: self.width}[label]

    def with_axes(self, axes: Sequence[str]) -> _Value:
        """The same values along other axes."""
        return self._replace(axes=tuple(axes))


def recognise(traced: Trace, signature: Signature) -> Network | None:
    """The network of kind "lstm" that the trace is, or None if it is another."""
    try:
        return _Reader(traced, signature).network()
    except _Other:
        return None


def pairs(cases: Mapping[str, Golden]) -> dict[str, Array]:
    """The module's own answers, as the export of kind "lstm" takes a user's pairs.

    Of all cases together it takes as many sequences as pairs may have.
    """
    found: dict[str, list[Array]] = {"x": [], "y": [], "lengths": []}
    steps = max(case.lengths.max() for case in cases.values())
    for case in cases.values():
        for name, group in (("x", case.inputs), ("y", case.outputs)):
            (array,) = group.values()
            past = [(0, 0), (0, steps - array.shape[1]), *[(0, 0)] * (array.ndim - 2)]
            found[name].append(np.pad(array, past))
        found["lengths"].append(case.lengths)
    whole = {n: np.concatenate(parts)[:SEQUENCE_COUNT_MAX] for n, parts in found.items()}
    if whole["x"].dtype.kind == "i":
        whole["tokens"] = whole.pop("x")
    return whole


class _Graph:
    """The nodes of a trace by what they compute, and its constants."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers = {name: node for node in graph.node for name in node.output}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        if any(tensor.external_data for tensor in graph.initializer):
            raise _Other

    def constant(self, name: str) -> Array | None:
        """The value, if no input and no state has a part in it."""
        tensor = self._tensors.get(name)
        maker = self._makers.get(name)
        if tensor is None and maker is not None and maker.op_type == "Constant":
            tensor = next((a.t for a in maker.attribute if a.name == "value"), None)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))

    def path(self, start: str, end: str) -> list[tuple[onnx.NodeProto, str]]:
        """The nodes from `start` to `end` in order, each with the name of the value on the path.

        Raises _Other where a node reads anything else that is no constant.
        """
        found: list[tuple[onnx.NodeProto, str]] = []
        while end != start:
            node = self._makers.get(end)
            if node is None or len(found) > len(self._makers):
                raise _Other
            found.append((node, end))
            is_layer = node.domain == DOMAIN  # which also reads the states
            read = node.input[:1] if is_layer else node.input
            sources = [name for name in read if name and self._is_variable(name)]
            if len(sources) != 1:
                raise _Other
            end = sources[0]
        return found[::-1]

    def _is_variable(self, name: str) -> bool:
        return name not in self._tensors and self.constant(name) is None


class _Reader:
    """One reading of a trace from its input to its output, which collects the network's parts."""

    def __init__(self, traced: Trace, signature: Signature) -> None:
        self._signature = signature
        self._graph = _Graph(traced.model.graph)
        self._layer = _only_layer(traced, signature)
        self._lstm: nn.LSTM | None = None  # once its call is read
        self._head: list[nn.Module] = []
        self._embedding: nn.Embedding | None = None
        self._affine: _Affine | None = None  # of the side that is being read
        self._input_norm: Norm | None = None

    def network(self) -> Network:
        """The network. Raises _Other."""
        source, output = self._signature.inputs[0], self._signature.outputs[0].spec
        value = _Value((BATCH, WIDTH), source.spec.size)
        if source.spec.dtype == "int64":
            value = _Value((BATCH,), 1)
        if len(source.spec.shape) != len(value.axes) - 1:
            raise _Other
        for node, name in self._graph.path(source.spec.name, output.name):
            value = self._read(node, name, value)
        if self._lstm is None or value.axes != (BATCH, WIDTH) or output.shape != (value.width,):
            raise _Other
        named = "x" if self._embedding is None else "tokens"
        renamed = f"forward()'s {source.name} is the input {named}"
        return Network(
            lstm=self._lstm,
            head=nn.Sequential(*self._head).eval().requires_grad_(False),
            embedding=self._embedding,
            input_norm=self._input_norm,
            output_norm=self._affine.forth() if self._affine is not None else None,
            notes=(NOTE,) if source.name == named else (NOTE, renamed),
        )

    def _read(self, node: onnx.NodeProto, name: str, value: _Value) -> _Value:
        """The value `name`, which the node makes of the one before it. Raises _Other."""
        if node.domain == DOMAIN:
            return self._read_layer(node, name, value)
        if (move := MOVES.get(node.op_type)) is not None:
            return move(_Node(node, self._graph), value)
        if node.op_type in ACTIVATIONS:
            if node.op_type == "Softmax":
                _check(value.axes[_Node(node, self._graph).attribute("axis", -1)] == WIDTH)
            self._append(make_activation(ACTIVATIONS[node.op_type]))
            return value
        if node.op_type in ("MatMul", "Gemm"):
            return self._read_linear(_Node(node, self._graph), value)
        if node.op_type in ("Add", "Sub", "Mul", "Div"):
            return self._read_affine(_Node(node, self._graph), value)
        if node.op_type == "Gather":
            return self._read_gather(_Node(node, self._graph), value)
        raise _Other

    def _read_layer(self, node: onnx.NodeProto, name: str, value: _Value) -> _Value:
        """The call of the LSTM; `name` is its output or its state h."""
        (memory,) = self._signature.memories
        _check(self._lstm is None and value.axes == (BATCH, WIDTH))
        _check(list(node.input[1:]) == [spec.name for spec in memory.specs])
        self._lstm = _as_lstm(self._layer)
        if self._affine is not None:
            _check(self._embedding is None)
            self._input_norm, self._affine = self._affine.back(), None
        width = self._lstm.proj_size or self._lstm.hidden_size
        if name == node.output[0] or isinstance(self._layer, nn.LSTMCell):
            _check(name in node.output[:2])
            return _Value((BATCH, WIDTH), width)
        _check(name == node.output[1])
        count = self._lstm.num_layers
        return _Value((BATCH, ONE if count == 1 else LAYERS, WIDTH), width, count)

    def _append(self, layer: nn.Module) -> None:
        """A layer of the head, which nothing may precede that is no layer."""
        _check(self._lstm is not None and self._affine is None)
        self._head.append(layer)

    def _read_linear(self, node: _Node, value: _Value) -> _Value:
        weight, bias = node.constant(1), None
        _check(value.axes[-1] == WIDTH and weight.ndim == 2)
        if node.op == "Gemm":
            is_plain = node.attribute("alpha", 1.0) == node.attribute("beta", 1.0) == 1
            _check(is_plain and not node.attribute("transA", 0) and len(value.axes) == 2)
            weight = weight.T if node.attribute("transB", 0) else weight
            bias = node.constant(2) if node.has(2) else None
        _check(weight.shape[0] == value.width)
        value = value._replace(width=weight.shape[1])
        self._append(_linear(weight.T, None if bias is None else _per_feature(bias, value)))
        return value

    def _read_affine(self, node: _Node, value: _Value) -> _Value:
        """A bias, or a part of a norm."""
        is_second = node.is_constant(1)
        _check(is_second or node.op in ("Add", "Mul"))
        array = _per_feature(node.constant(1 if is_second else 0), value)
        last = self._head[-1] if self._head else None
        is_first = node.op == "Add" and self._affine is None
        if is_first and isinstance(last, nn.Linear) and last.bias is None:
            self._head[-1] = _linear(last.weight.numpy(), array)
            return value
        before = self._affine or _Affine(np.ones(value.width), np.zeros(value.width))
        self._affine = before.then(node.op, array)
        return value

    def _read_gather(self, node: _Node, value: _Value) -> _Value:
        """An embedding of tokens, or the choice of one entry of an axis."""
        if node.is_constant(1):
            return _take_entry(node, value)
        table = node.constant(0)
        _check(table.ndim == 2 and node.attribute("axis", 0) == 0)
        _check(self._lstm is None and self._affine is None and WIDTH not in value.axes)
        self._embedding = nn.Embedding(*table.shape).requires_grad_(False)
        self._embedding.weight.copy_(_tensor(table))
        return _Value((*value.axes, WIDTH), table.shape[1])


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
        """As y * scale + mean. Raises _Other."""
        return _norm(self.offset, self.factor)


@dataclass(frozen=True, slots=True)
class _Node:
    """A node with its constants and attributes."""

    node: onnx.NodeProto
    graph: _Graph

    @property
    def op(self) -> str:
        return self.node.op_type

    def has(self, index: int) -> bool:
        return len(self.node.input) > index and bool(self.node.input[index])

    def is_constant(self, index: int) -> bool:
        return self.has(index) and self.graph.constant(self.node.input[index]) is not None

    def constant(self, index: int) -> Array:
        """An input. Raises _Other if it is no constant."""
        found = self.graph.constant(self.node.input[index]) if self.has(index) else None
        if found is None:
            raise _Other
        return found

    def integers(self, index: int) -> list[int]:
        """An input that is a constant vector of integers. Raises _Other."""
        found = self.constant(index)
        _check(found.ndim == 1)
        return [int(each) for each in found]

    def attribute(self, name: str, otherwise: Any) -> Any:
        found = [a for a in self.node.attribute if a.name == name]
        return onnx.helper.get_attribute_value(found[0]) if found else otherwise


# Nodes that move axes of length 1 and change no value ---------------------------------------------


def _same(node: _Node, value: _Value) -> _Value:
    """Identity, and a Split or Concat of one part."""
    _check(len(node.node.output) == len(node.node.input) == 1)
    return value


def _squeeze(node: _Node, value: _Value) -> _Value:
    rank = len(value.axes)
    gone = {axis % rank for axis in node.integers(1)}
    _check(all(value.axes[axis] == ONE for axis in gone))
    return value.with_axes([label for axis, label in enumerate(value.axes) if axis not in gone])


def _unsqueeze(node: _Node, value: _Value) -> _Value:
    places = node.integers(1)
    rank = len(value.axes) + len(places)
    new = {place % rank for place in places}
    rest = iter(value.axes)
    return value.with_axes([ONE if axis in new else next(rest) for axis in range(rank)])


def _transpose(node: _Node, value: _Value) -> _Value:
    order = node.attribute("perm", range(len(value.axes))[::-1])
    return value.with_axes([value.axes[axis] for axis in order])


def _reshape(node: _Node, value: _Value) -> _Value:
    """Another number of axes of length 1, where the others stay in their order."""
    left = [axis for axis, label in enumerate(value.axes) if label != ONE]
    found: list[str] = []
    for size in reversed(node.integers(1)):  # so that a width of 1 stays the last axis
        if left and size == value.size(left[-1]):
            found.append(value.axes[left.pop()])
        else:
            _check(size == 1)
            found.append(ONE)
    _check(not left)
    return value.with_axes(found[::-1])


def _slice(node: _Node, value: _Value) -> _Value:
    """The only time step, or the last layer, as [-1:] gives it."""
    starts, ends = node.integers(1), node.integers(2)
    axes = node.integers(3) if node.has(3) else range(len(starts))
    steps = node.integers(4) if node.has(4) else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        entries = range(max(value.size(axis), 0))
        if entries[start:end:step] != entries or not entries:
            value = _last_entry(value, axis, list(entries[start:end:step]))
    return value


def _take_entry(node: _Node, value: _Value) -> _Value:
    """The same as [-1] or [[-1]] gives it."""
    chosen, axis = node.constant(1), node.attribute("axis", 0) % len(value.axes)
    _check(chosen.ndim <= 1)
    size = max(value.size(axis), 1)
    value = _last_entry(value, axis, [int(each) % size for each in chosen.reshape(-1)])
    if chosen.ndim == 0:
        return value.with_axes(value.axes[:axis] + value.axes[axis + 1 :])
    return value


def _last_entry(value: _Value, axis: int, entries: list[int]) -> _Value:
    """The value with an axis of which only `entries` are left. Raises _Other unless they are the
    last one alone."""
    label = value.axes[axis]
    _check(label in (ONE, LAYERS) and entries == [value.size(axis) - 1])
    axes = list(value.axes)
    axes[axis] = ONE
    return value.with_axes(axes)


MOVES: Final[Mapping[str, Callable[[_Node, _Value], _Value]]] = {
    "Identity": _same,
    "Split": _same,
    "Concat": _same,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Slice": _slice,
}

# Parts of the network -----------------------------------------------------------------------------


def _only_layer(traced: Trace, signature: Signature) -> Layer:
    """The LSTM, if the module is one call of it from zeros and has one input and one y."""
    is_alone = len(signature.inputs) == len(signature.memories) == len(traced.calls) == 1
    if not is_alone or signature.passed or len(signature.outputs) != 1:
        raise _Other
    (memory,), ((_, layer),) = signature.memories, traced.calls
    _check(isinstance(layer, (nn.LSTM, nn.LSTMCell)) and memory.repeats == 1)
    _check(not any(np.any(value) for value in memory.initial))
    _check(signature.outputs[0].spec.name == OUTPUT)
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
    """A copy in float32. Raises _Other for a constant of another kind."""
    _check(array.dtype in (np.float32, np.float64))
    return torch.from_numpy(np.array(array, np.float32))


def _per_feature(array: Array, value: _Value) -> Floats:
    """A constant that meets the value in an operation of ONNX, float64 [width].

    Raises _Other if it differs along another axis, or adds one.
    """
    _check(array.ndim <= len(value.axes) and array.dtype == np.float32)
    shape = (1,) * (len(value.axes) - array.ndim) + array.shape
    for label, size in zip(value.axes, shape, strict=True):
        _check(size == 1 or (label == WIDTH and size == value.width))
    _check(WIDTH in value.axes)
    return np.broadcast_to(array.reshape(-1).astype(np.float64), value.width)


def _norm(mean: Floats, scale: Floats) -> Norm:
    _check(bool(np.isfinite(mean).all() and np.isfinite(scale).all()))
    return Norm(mean + 0.0, scale)  # no -0.0, which would be another fingerprint


def _check(is_so: bool) -> None:
    """Raises _Other unless it is so."""
    if not is_so:
        raise _Other
