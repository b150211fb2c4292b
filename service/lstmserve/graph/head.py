"""Builds what follows the LSTM as ONNX nodes: the head's layers, the residual, the output norm.

A row must have the same bits in any batch. onnxruntime's Elu, Softplus and Log break that: they
round the last values of a tensor by other code than the rest, and which values are the last
depends on the batch. So ELU and softplus are built from nodes that keep it. docs/ARCHITECTURE.md
has the figures ("Bits do not depend on the batch"). This module does not know where the LSTM's
output comes from, or which of its rows are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from lstmserve.graph.builder import GraphBuilder
from lstmserve.graph.weights import Weights
from lstmserve.head_layers import BatchNorm, Elu, HeadLayer, LayerNorm, LeakyRelu, Linear
from lstmserve.spec import LstmSpec

# The activations that are one node: its operator and attributes.
NODES: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "relu": ("Relu", {}),
    "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}),
    "softmax": ("Softmax", {"axis": -1}),
    "log_softmax": ("LogSoftmax", {"axis": -1}),
    "gelu": ("Gelu", {}),
    "gelu_tanh": ("Gelu", {"approximate": "tanh"}),
}


def head(g: GraphBuilder, spec: LstmSpec, weights: Weights, hidden: str, x: str, y: str) -> None:
    """Applies the head to each row of `hidden` [*, D*state]; `y` names y [*, O].

    `x` [*, I] has the same rows of what the first LSTM layer reads, for the residual.
    """
    value, width = hidden, spec.lstm_output_size
    for index, layer in enumerate(spec.head):
        value = _layer(g, weights, layer, value, f"head.{index}", width)
        width = layer.out_features if isinstance(layer, Linear) else width
    if spec.residual:
        if spec.residual != tuple(range(spec.input_size)):
            columns = g.constant("residual.columns", np.array(spec.residual, np.int64))
            x = g.add("Gather", [x, columns], "residual", axis=-1)
        value = g.add("Add", [value, x], "y.with_residual")
    if spec.output_norm:
        mean, scale = (g.constant(n, weights[n]) for n in ("output.mean", "output.scale"))
        value = g.add("Add", [g.add("Mul", [value, scale], "y.scaled"), mean], "y.denormalised")
    g.add("Identity", [value], y)


def _layer(
    g: GraphBuilder, weights: Weights, layer: HeadLayer, x: str, name: str, width: int
) -> str:
    """Adds one layer, whose tensors are NAME.*, to x [*, width]; returns its result."""

    def tensor(part: str) -> str:
        return g.constant(f"{name}.{part}", weights[f"{name}.{part}"])

    match layer:
        case Linear():
            # A 2-D constant, so that onnxruntime prepacks it: a batch of one has the same bits.
            x = g.add("MatMul", [x, tensor("weight")], name)
            return g.add("Add", [x, tensor("bias")], f"{name}.biased") if layer.bias else x
        case LayerNorm():
            ones = np.ones(width, np.float32)
            scale = tensor("weight") if layer.weight else g.constant(f"{name}.ones", ones)
            inputs = [x, scale, *([tensor("bias")] if layer.bias else [])]
            return g.add("LayerNormalization", inputs, name, axis=-1, epsilon=layer.eps)
        case BatchNorm():
            scaled = g.add("Mul", [x, tensor("factor")], f"{name}.scaled")
            return g.add("Add", [scaled, tensor("offset")], name)
        case LeakyRelu():
            return g.add("LeakyRelu", [x], name, alpha=layer.negative_slope)
        case Elu():
            return _elu(g, x, name, layer.alpha)
        case "silu":
            return _silu(g, x, name)
        case "softplus":
            return _softplus(g, x, name)
        case "hardtanh":
            return g.add("Clip", [x, g.scalar(-1), g.scalar(1)], name)
        case _:
            op, attributes = NODES[layer]
            return g.add(op, [x], f"{name}.{layer}", **attributes)


def _elu(g: GraphBuilder, x: str, name: str, alpha: float) -> str:
    """max(x, 0) + alpha * (exp(z) - 1) with z = min(x, 0).

    exp(z) - 1 = 2 t / (1 - t) with t = tanh(z / 2) loses no digits near 0.
    """
    z = g.add("Min", [x, g.scalar(0)], f"{name}.below")
    t = g.add("Tanh", [g.add("Mul", [z, g.scalar(0.5)], f"{name}.half")], f"{name}.tanh")
    rest = g.add(
        "Mul", [g.add("Sub", [g.scalar(1), t], f"{name}.rest"), g.scalar(0.5)], f"{name}.d"
    )
    below = g.add("Div", [t, rest], f"{name}.expm1")
    if alpha != 1:
        below = g.add("Mul", [below, g.scalar(alpha)], f"{name}.scaled")
    return g.add("Add", [g.add("Relu", [x], f"{name}.above"), below], name)


def _silu(g: GraphBuilder, x: str, name: str) -> str:
    """x / (1 + exp(-x)). Of x * Sigmoid(x) no digit is right below -18, where Sigmoid is 0."""
    power = g.add("Exp", [g.add("Neg", [x], f"{name}.negative")], f"{name}.exp")
    return g.add("Div", [x, g.add("Add", [power, g.scalar(1)], f"{name}.divisor")], name)


def _softplus(g: GraphBuilder, x: str, name: str) -> str:
    """log(1 + exp(x)), the negative of the second value of log_softmax((x, 0))."""
    last = g.integers(-1)
    column = g.add("Unsqueeze", [x, last], f"{name}.column")
    pairs = g.add("Pad", [column, g.integers(0, 1), "", last], f"{name}.pairs")
    logs = g.add("LogSoftmax", [pairs], f"{name}.logs", axis=-1)
    second = g.add("Gather", [logs, g.integers(1)], f"{name}.second", axis=-1)
    return g.add("Neg", [g.add("Squeeze", [second, last], f"{name}.log")], name)
