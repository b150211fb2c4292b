"""Builds the ONNX forms of a model of kind "lstm" from its weights and spec.

The portable form is model.onnx, which anyone with onnxruntime can run. The pool form is the same
network with its state gathered from slots and scattered to slots. Nothing here runs a graph.

The pool is updated in place (docs/ARCHITECTURE.md, "State never leaves the device") only while
every pool input has exactly two readers, the Gather and the ScatterND, and nothing stands between
graph input, ScatterND and graph output. test_graph checks that.
"""

from __future__ import annotations

import numpy as np
import onnx

from lstmserve.graph.builder import GraphBuilder
from lstmserve.graph.head import head
from lstmserve.graph.layers import LayerInput, input_layer, lstm_layer
from lstmserve.graph.weights import INITIAL_STATE, Weights
from lstmserve.spec import LstmSpec

NEXT_SLOTS = "/next"  # the output NAME/next is the pool's tensor NAME after the run


def build_portable(spec: LstmSpec, weights: Weights) -> onnx.ModelProto:
    """x [batch, time, I], lengths int32 [batch], h0, c0 -> y [batch, time, O], hn, cn.

    h0, hn [num_layers*D, batch, proj_size or hidden_size]; c0, cn [.., batch, hidden_size].
    A model with an embedding takes tokens int64 [batch, time] instead of x. Past a row's length y
    has no meaning. A row of length 0 returns its h0 and c0, where onnxruntime's own LSTM would
    return zeros. A learned initial state, which callers give as h0 and c0 for a new session, is in
    the constant outputs initial.h [num_layers*D, proj_size or hidden_size] and initial.c.
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
    x = g.add("Transpose", [x], "x_time_major", perm=perm)
    value = first = input_layer(g, spec, weights, x)
    h0s, c0s = (_per_layer(g, spec, name) for name in ("h0", "c0"))
    hns, cns = [], []
    for layer in range(spec.num_layers):
        start = LayerInput(value, "lengths", h0s[layer], c0s[layer])
        out = lstm_layer(g, spec, weights, layer, start)
        value = out.y
        hns.append(out.hn)
        cns.append(out.cn)
    head(g, spec, weights, value, first, "y_time_major")
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
    if spec.initial_state:
        for state in spec.states:
            name = INITIAL_STATE + state.name
            g.output(g.constant(name, weights[name]), "float32", state.shape)
    return g.model()


def _per_layer(g: GraphBuilder, spec: LstmSpec, state: str) -> list[str]:
    if spec.num_layers == 1:
        return [state]
    names = [f"{state}.{layer}" for layer in range(spec.num_layers)]
    return list(g.add_many("Split", [state], names, axis=0, num_outputs=spec.num_layers))


def state_widths(spec: LstmSpec) -> dict[str, int]:
    """Name -> width of the pool's tensors [slots, width], in order: `h.0`, `c.0`, `h.1`, ..."""
    widths: dict[str, int] = {}
    for layer in range(spec.num_layers):
        widths |= {f"h.{layer}": spec.state_size, f"c.{layer}": spec.hidden_size}
    return widths


def build_pool(spec: LstmSpec, weights: Weights) -> onnx.ModelProto:
    """x [T, B, I] (tokens int64 [T, B]), lengths int32 [B], read int64 [1, B], write int64
    [1, B, 1] and the pool's tensors -> y [T, B, O] and `NAME/next` for each pool tensor.

    Row b starts from slot read[0, b] and leaves its state in slot write[0, b, 0]. Raises
    ValueError for a bidirectional model, which has no state to keep between steps.
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
    value = first = input_layer(g, spec, weights, "x_time_major")
    for layer in range(spec.num_layers):
        h, c = f"h.{layer}", f"c.{layer}"
        h0 = g.add("Gather", [h, "read"], f"{h}.now", axis=0)
        c0 = g.add("Gather", [c, "read"], f"{c}.now", axis=0)
        out = lstm_layer(g, spec, weights, layer, LayerInput(value, "lengths", h0, c0))
        value = out.y
        g.add("ScatterND", [h, "write", out.hn], h + NEXT_SLOTS)
        g.add("ScatterND", [c, "write", out.cn], c + NEXT_SLOTS)
    head(g, spec, weights, value, first, "y")
    g.output("y", "float32", ["T", "B", spec.output_size])
    for name, width in state_widths(spec).items():
        g.output(name + NEXT_SLOTS, "float32", ["S", width])
    return g.model()
