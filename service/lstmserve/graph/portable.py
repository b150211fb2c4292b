"""Builds the portable form: what model.onnx is, and anyone with onnxruntime can run."""

from __future__ import annotations

import numpy as np
import onnx

from lstmserve.graph.builder import GraphBuilder
from lstmserve.graph.ends import front, head
from lstmserve.graph.lstm import lstm_layer
from lstmserve.graph.weights import Weights
from lstmserve.spec import ModelSpec


def build_portable(spec: ModelSpec, weights: Weights) -> onnx.ModelProto:
    """x [batch, time, I], lengths int32 [batch], h0, c0 -> y [batch, time, O], hn, cn.

    h0, hn [num_layers*D, batch, proj_size or hidden_size]; c0, cn [.., batch, hidden_size].
    tokens int64 [batch, time] stand for x where the model has an embedding. y past a row's length
    is what the head makes of zeros; a row of length 0 gives its h0 and c0 back (onnxruntime's own
    LSTM would give zeros).
    """
    g = GraphBuilder("portable")
    layers = spec.num_layers * spec.num_directions
    if spec.num_embeddings:
        x = g.input("tokens", "int64", ["batch", "time"])
    else:
        x = g.input("x", "float32", ["batch", "time", spec.input_size])
    g.input("lengths", "int32", ["batch"])
    g.input("h0", "float32", [layers, "batch", spec.state_size])
    g.input("c0", "float32", [layers, "batch", spec.hidden_size])
    perm = [1, 0] if spec.num_embeddings else [1, 0, 2]
    value = front(g, spec, weights, g.add("Transpose", [x], "x_time_major", perm=perm))
    h0s, c0s = (_per_layer(g, spec, name) for name in ("h0", "c0"))
    hns, cns = [], []
    for layer in range(spec.num_layers):
        out = lstm_layer(g, spec, weights, layer, value, h0s[layer], c0s[layer])
        value = out.y
        hns.append(out.hn)
        cns.append(out.cn)
    head(g, spec, weights, value, "y_time_major")
    g.add("Transpose", ["y_time_major"], "y", perm=[1, 0, 2])
    zero = g.constant("const.int32_0", np.array(0, np.int32))
    is_empty = g.add("Equal", ["lengths", zero], "is_empty")
    keep = g.add("Unsqueeze", [is_empty, g.integers(1)], "keep")
    for name, parts, before in (("hn", hns, "h0"), ("cn", cns, "c0")):
        stacked = parts[0] if len(parts) == 1 else g.add("Concat", parts, f"{name}.all", axis=0)
        g.add("Where", [keep, before, stacked], name)
    g.output("y", "float32", ["batch", "time", spec.output_size])
    g.output("hn", "float32", [layers, "batch", spec.state_size])
    g.output("cn", "float32", [layers, "batch", spec.hidden_size])
    return g.model()


def _per_layer(g: GraphBuilder, spec: ModelSpec, state: str) -> list[str]:
    if spec.num_layers == 1:
        return [state]
    names = [f"{state}.{layer}" for layer in range(spec.num_layers)]
    return list(g.add_many("Split", [state], names, axis=0, num_outputs=spec.num_layers))
