"""Builds what stands before and after the LSTM: normalisation, embedding, head."""

from __future__ import annotations

from lstmserve.graph.builder import GraphBuilder
from lstmserve.graph.weights import Weights
from lstmserve.spec import Activation, Linear, ModelSpec

OPS: dict[Activation, str] = {
    "relu": "Relu",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "softmax": "Softmax",
}


def front(g: GraphBuilder, spec: ModelSpec, weights: Weights, x: str) -> str:
    """x [T, B, I], or tokens int64 [T, B] looked up, normalised where the spec says so."""
    if spec.num_embeddings:
        table = g.constant("embedding", weights["embedding"])
        return g.add("Gather", [table, x], "embedded", axis=0)
    if spec.input_norm:
        mean, scale = (g.constant(n, weights[n]) for n in ("input.mean", "input.scale"))
        return g.add("Div", [g.add("Sub", [x, mean], "x.centred"), scale], "x.scaled")
    return x


def head(g: GraphBuilder, spec: ModelSpec, weights: Weights, x: str, output: str) -> None:
    """The head on every time step of x [T, B, D*state], named `output` [T, B, O]."""
    for index, layer in enumerate(spec.head):
        name = f"head.{index}"
        if not isinstance(layer, Linear):
            axis = {"axis": -1} if layer == "softmax" else {}
            x = g.add(OPS[layer], [x], f"{name}.{layer}", **axis)
            continue
        # A 2-D constant, so that onnxruntime prepacks it: a batch of one has the same bits.
        x = g.add("MatMul", [x, g.constant(f"{name}.weight", weights[f"{name}.weight"])], name)
        if layer.bias:
            bias = g.constant(f"{name}.bias", weights[f"{name}.bias"])
            x = g.add("Add", [x, bias], f"{name}.biased")
    if spec.output_norm:
        mean, scale = (g.constant(n, weights[n]) for n in ("output.mean", "output.scale"))
        x = g.add("Add", [g.add("Mul", [x, scale], "y.scaled"), mean], "y.denormalised")
    g.add("Identity", [x], output)
