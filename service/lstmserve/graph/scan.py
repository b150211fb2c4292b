"""Builds one direction of a projected LSTM layer as a Scan over time.

Sak, Senior, Beaufays 2014 (arXiv:1402.1128), as torch.nn.LSTM has it:
    i, o, f, g = split(x_t W + h R + b);  c' = sigmoid(f) c + sigmoid(i) tanh(g)
    h' = (sigmoid(o) tanh(c')) P
Folding P into R instead would be as exact within a batch, but not across chunks
(docs/ARCHITECTURE.md has the numbers).
"""

from __future__ import annotations

import numpy as np

from lstmserve.graph.builder import DTYPES, GraphBuilder
from lstmserve.graph.layer_output import LayerOutput
from lstmserve.graph.weights import Weights
from lstmserve.spec import ModelSpec


def scan_direction(
    g: GraphBuilder,
    spec: ModelSpec,
    weights: Weights,
    prefix: str,
    suffix: str,
    x: str,
    h0: str,
    c0: str,
) -> LayerOutput:
    """x [T, B, I], h0 [1, B, P], c0 [1, B, H] -> y [T, B, P], hn [1, B, P], cn [1, B, H].

    The body's constants are the outer graph's initializers. A row past its length keeps h and c.
    """

    def name(kind: str) -> str:
        return f"{prefix}{kind}{suffix}"

    def constant(kind: str) -> str:
        return g.constant(name(kind), weights[name(kind)])

    gates = g.add("MatMul", [x, constant("W")], name("xW"))
    if spec.bias:
        gates = g.add("Add", [gates, constant("B")], name("gates"))
    axis = g.integers(0)
    h = g.add("Squeeze", [h0, axis], name("h_first"))
    c = g.add("Squeeze", [c0, axis], name("c_first"))
    hn, cn, y = g.add_many(
        "Scan",
        [h, c, gates, _valid(g)],
        [name("h_last"), name("c_last"), name("y")],
        body=_body(spec, constant("R"), constant("P")).graph(),
        num_scan_inputs=2,
    )
    return LayerOutput(
        y, g.add("Unsqueeze", [hn, axis], name("hn")), g.add("Unsqueeze", [cn, axis], name("cn"))
    )


def _valid(g: GraphBuilder) -> str:
    """The mask [T, B, 1]: is time step t within the row's length; once per graph."""
    if g.has("valid"):
        return "valid"
    shape = g.add("Shape", ["x_time_major"], "time.shape", start=0, end=1)
    end = g.add("Squeeze", [shape, g.integers(0)], "time.end")
    zero, one = (g.constant(f"const.int{i}", np.array(i, np.int64)) for i in (0, 1))
    steps = g.add("Range", [zero, end, one], "time.steps")
    column = g.add("Unsqueeze", [steps, g.integers(1)], "time.column")
    lengths = g.add("Cast", ["lengths"], "time.lengths", to=DTYPES["int64"])
    within = g.add("Less", [column, lengths], "time.within")
    return g.add("Unsqueeze", [within, g.integers(2)], "valid")


def _body(spec: ModelSpec, r: str, p: str) -> GraphBuilder:
    """One time step: h [B, P], c [B, H], xw [B, 4H], valid [B, 1] -> h, c, y."""
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
