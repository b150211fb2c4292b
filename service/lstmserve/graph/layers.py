"""Builds a model's input end and LSTM layers as ONNX nodes; head.py builds what follows.

An LSTM layer is ONNX's LSTM, or a Scan over time where the layer has a projection, which ONNX's
LSTM does not. Shapes: x [T, B, I], lengths int32 [B], h0 [D, B, state], c0 [D, B, H];
y [T, B, D*state]. Arrays are time major because onnxruntime refuses the LSTM's batch-major layout.
Gates and cell are those that torch.nn.LSTM documents; docs/lstm.md has the formulas. This module
does not know where the state comes from: forms.py connects it to graph inputs or to a pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lstmserve.graph.builder import DTYPES, GraphBuilder
from lstmserve.graph.weights import Weights, suffixes
from lstmserve.spec import LstmSpec


@dataclass(frozen=True, slots=True)
class LayerOutput:
    """y [T, B, D*state], hn [D, B, state] and cn [D, B, H] of a layer or of one direction."""

    y: str
    hn: str
    cn: str


def input_layer(g: GraphBuilder, spec: LstmSpec, weights: Weights, x: str) -> str:
    """Reads x [T, B, I], normalised if the spec says so, or looks up tokens int64 [T, B]."""
    if spec.num_embeddings:
        table = g.constant("embedding", weights["embedding"])
        return g.add("Gather", [table, x], "embedded", axis=0)
    if spec.input_norm:
        mean, scale = (g.constant(n, weights[n]) for n in ("input.mean", "input.scale"))
        return g.add("Div", [g.add("Sub", [x, mean], "x.centred"), scale], "x.scaled")
    return x


@dataclass(frozen=True, slots=True)
class LayerInput:
    """x [T, B, I], lengths int32 [B] of its rows, h0 [D, B, state] and c0 [D, B, H]."""

    x: str
    lengths: str
    h0: str
    c0: str


def lstm_layer(
    g: GraphBuilder, spec: LstmSpec, weights: Weights, layer: int, given: LayerInput
) -> LayerOutput:
    """Adds LSTM layer `layer` (from 0)."""
    if spec.proj_size:
        return _projected(g, spec, weights, layer, given)
    return _plain(g, spec, weights, layer, given)


def _plain(
    g: GraphBuilder, spec: LstmSpec, weights: Weights, layer: int, given: LayerInput
) -> LayerOutput:
    prefix = f"lstm.{layer}."
    names = [g.constant(prefix + kind, weights[prefix + kind]) for kind in ("W", "R")]
    bias = g.constant(prefix + "B", weights[prefix + "B"]) if spec.bias else ""
    raw, hn, cn = (prefix + kind for kind in ("raw", "hn", "cn"))
    # Only hidden_size and direction: any other attribute moves the node off CUDA.
    g.add_many(
        "LSTM",
        [given.x, *names, bias, given.lengths, given.h0, given.c0],
        [raw, hn, cn],
        hidden_size=spec.hidden_size,
        direction="bidirectional" if spec.bidirectional else "forward",
    )
    if not spec.bidirectional:
        return LayerOutput(g.add("Squeeze", [raw, g.integers(1)], prefix + "y"), hn, cn)
    swapped = g.add("Transpose", [raw], prefix + "swapped", perm=[0, 2, 1, 3])
    shape = g.integers(0, 0, spec.lstm_output_size)
    return LayerOutput(g.add("Reshape", [swapped, shape], prefix + "y"), hn, cn)


def _projected(
    g: GraphBuilder, spec: LstmSpec, weights: Weights, layer: int, given: LayerInput
) -> LayerOutput:
    """Adds one Scan per direction. The reverse one reads each row back from its own last step."""
    prefix = f"lstm.{layer}."
    ends = suffixes(spec)
    h0s, c0s = (
        _split(g, each, ends, prefix + n) for n, each in (("h0", given.h0), ("c0", given.c0))
    )
    parts: list[LayerOutput] = []
    for suffix, h0, c0 in zip(ends, h0s, c0s, strict=True):
        x = _reverse(g, given.x, given.lengths, f"{prefix}x{suffix}") if suffix else given.x
        start = LayerInput(x, given.lengths, h0, c0)
        part = _scan_direction(g, spec, weights, prefix, suffix, start)
        y = part.y
        if suffix:
            y = _reverse(g, y, given.lengths, f"{prefix}y{suffix}.forward")
        parts.append(LayerOutput(y, part.hn, part.cn))
    if len(parts) == 1:
        return parts[0]
    return LayerOutput(
        g.add("Concat", [part.y for part in parts], prefix + "y.both", axis=2),
        g.add("Concat", [part.hn for part in parts], prefix + "hn.both", axis=0),
        g.add("Concat", [part.cn for part in parts], prefix + "cn.both", axis=0),
    )


def _split(g: GraphBuilder, state: str, ends: tuple[str, ...], name: str) -> list[str]:
    if len(ends) == 1:
        return [state]
    return list(
        g.add_many("Split", [state], [name + end for end in ends], axis=0, num_outputs=len(ends))
    )


def _reverse(g: GraphBuilder, x: str, lengths: str, name: str) -> str:
    """Reverses each row of x [T, B, *] within its own length; padding stays where it is."""
    lengths = g.add("Cast", [lengths], f"{name}.lengths", to=DTYPES["int64"])
    return g.add("ReverseSequence", [x, lengths], f"{name}.reversed", time_axis=0, batch_axis=1)


def _scan_direction(
    g: GraphBuilder,
    spec: LstmSpec,
    weights: Weights,
    prefix: str,
    suffix: str,
    given: LayerInput,
) -> LayerOutput:
    """x [T, B, I], h0 [1, B, P], c0 [1, B, H] -> y [T, B, P], hn [1, B, P], cn [1, B, H].

    Sak, Senior, Beaufays 2014 (arXiv:1402.1128), as torch.nn.LSTM has it:
        i, o, f, g = split(x_t W + h R + b);  c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = (sigmoid(o) tanh(c')) P
    Folding P into R would be as exact within a batch, but not across chunks (docs/ARCHITECTURE.md
    has the figures). The body uses the outer graph's initializers as constants. A row keeps its h
    and c after its last time step.
    """

    def name(kind: str) -> str:
        return f"{prefix}{kind}{suffix}"

    def constant(kind: str) -> str:
        return g.constant(name(kind), weights[name(kind)])

    gates = g.add("MatMul", [given.x, constant("W")], name("xW"))
    if spec.bias:
        gates = g.add("Add", [gates, constant("B")], name("gates"))
    axis = g.integers(0)
    h = g.add("Squeeze", [given.h0, axis], name("h_first"))
    c = g.add("Squeeze", [given.c0, axis], name("c_first"))
    hn, cn, y = g.add_many(
        "Scan",
        [h, c, gates, _valid(g, given)],
        [name("h_last"), name("c_last"), name("y")],
        body=_body(spec, constant("R"), constant("P")).graph(),
        num_scan_inputs=2,
    )
    return LayerOutput(
        y, g.add("Unsqueeze", [hn, axis], name("hn")), g.add("Unsqueeze", [cn, axis], name("cn"))
    )


def _valid(g: GraphBuilder, given: LayerInput) -> str:
    """The mask [T, B, 1], made once per graph: is time step t within the row's length?"""
    if g.has("valid"):
        return "valid"
    shape = g.add("Shape", [given.x], "time.shape", start=0, end=1)
    end = g.add("Squeeze", [shape, g.integers(0)], "time.end")
    zero, one = (g.constant(f"const.int{i}", np.array(i, np.int64)) for i in (0, 1))
    steps = g.add("Range", [zero, end, one], "time.steps")
    column = g.add("Unsqueeze", [steps, g.integers(1)], "time.column")
    lengths = g.add("Cast", [given.lengths], "time.lengths", to=DTYPES["int64"])
    within = g.add("Less", [column, lengths], "time.within")
    return g.add("Unsqueeze", [within, g.integers(2)], "valid")


def _body(spec: LstmSpec, r: str, p: str) -> GraphBuilder:
    """Builds one time step: h [B, P], c [B, H], xw [B, 4H], valid [B, 1] -> h, c, y."""
    b = GraphBuilder("step")
    h = b.input("h", "float32", ["B", spec.proj_size])
    c = b.input("c", "float32", ["B", spec.hidden_size])
    xw = b.input("xw", "float32", ["B", 4 * spec.hidden_size])
    valid = b.input("is_valid", "bool", ["B", 1])
    z = b.add("Add", [xw, b.add("MatMul", [h, r], "hR")], "z")
    i, o, f, g = b.add_many("Split", [z], ["zi", "zo", "zf", "zg"], axis=1, num_outputs=4)
    forget = b.add("Mul", [b.add("Sigmoid", [f], "f"), c], "forget")
    learn = b.add("Mul", [b.add("Sigmoid", [i], "i"), b.add("Tanh", [g], "g")], "learn")
    c_new = b.add("Add", [forget, learn], "c_new")
    shown = b.add("Mul", [b.add("Sigmoid", [o], "o"), b.add("Tanh", [c_new], "c_tanh")], "shown")
    h_new = b.add("MatMul", [shown, p], "h_new")
    b.add("Where", [valid, h_new, h], "h_next")
    b.add("Where", [valid, c_new, c], "c_next")
    b.add("Identity", ["h_next"], "y_step")
    b.output("h_next", "float32", ["B", spec.proj_size])
    b.output("c_next", "float32", ["B", spec.hidden_size])
    b.output("y_step", "float32", ["B", spec.proj_size])
    return b
