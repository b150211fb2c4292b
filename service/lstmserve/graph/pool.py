"""Builds the pool form: the same LSTM with its state gathered from slots and scattered to slots.

What must hold for the update to be in place (docs/ARCHITECTURE.md, "State never leaves the
device"): every pool input has exactly two readers, the Gather and the ScatterND, and nothing
stands between graph input, ScatterND and graph output. test_graph holds the graph to it.
"""

from __future__ import annotations

import onnx

from lstmserve.graph.builder import GraphBuilder
from lstmserve.graph.ends import front, head
from lstmserve.graph.lstm import lstm_layer
from lstmserve.graph.weights import Weights
from lstmserve.spec import ModelSpec


def state_widths(spec: ModelSpec) -> dict[str, int]:
    """The pool's tensors, name -> width, each [slots, width]: `h.0`, `c.0`, `h.1`, ..."""
    widths: dict[str, int] = {}
    for layer in range(spec.num_layers):
        widths |= {f"h.{layer}": spec.state_size, f"c.{layer}": spec.hidden_size}
    return widths


def build_pool(spec: ModelSpec, weights: Weights) -> onnx.ModelProto:
    """x [T, B, I] (tokens int64 [T, B]), lengths int32 [B], read int64 [1, B], write int64
    [1, B, 1] and the pool's tensors -> y [T, B, O] and `NAME.next` for each pool tensor.

    Row b starts from slot read[0, b] and leaves its state in slot write[0, b, 0]. Raises
    ValueError for a bidirectional model: it has no state to keep between steps.
    """
    if spec.bidirectional:
        raise ValueError("a bidirectional model reads whole sequences; it has no pool")
    g = GraphBuilder("pool")
    if spec.num_embeddings:
        g.input("x_time_major", "int64", ["T", "B"])
    else:
        g.input("x_time_major", "float32", ["T", "B", spec.input_size])
    g.input("lengths", "int32", ["B"])
    g.input("read", "int64", [1, "B"])
    g.input("write", "int64", [1, "B", 1])
    for name, width in state_widths(spec).items():
        g.input(name, "float32", ["S", width])
    value = front(g, spec, weights, "x_time_major")
    for layer in range(spec.num_layers):
        h, c = f"h.{layer}", f"c.{layer}"
        h0 = g.add("Gather", [h, "read"], f"{h}.now", axis=0)
        c0 = g.add("Gather", [c, "read"], f"{c}.now", axis=0)
        out = lstm_layer(g, spec, weights, layer, value, h0, c0)
        value = out.y
        g.add("ScatterND", [h, "write", out.hn], f"{h}.next")
        g.add("ScatterND", [c, "write", out.cn], f"{c}.next")
    head(g, spec, weights, value, "y")
    g.output("y", "float32", ["T", "B", spec.output_size])
    for name, width in state_widths(spec).items():
        g.output(f"{name}.next", "float32", ["S", width])
    return g.model()
