"""Builds the two small graphs that read a pool's rows and write them, on any device."""

from __future__ import annotations

import onnx

from lstmserve.graph.builder import GraphBuilder
from lstmserve.graph.pool import state_widths
from lstmserve.spec import ModelSpec


def build_read(spec: ModelSpec) -> onnx.ModelProto:
    """slots int64 [N] and the pool's tensors -> `NAME.rows` [N, width] for each of them."""
    g = GraphBuilder("read")
    g.input("slots", "int64", ["N"])
    for name, width in state_widths(spec).items():
        g.input(name, "float32", ["S", width])
        g.add("Gather", [name, "slots"], f"{name}.rows", axis=0)
        g.output(f"{name}.rows", "float32", ["N", width])
    return g.model()


def build_write(spec: ModelSpec) -> onnx.ModelProto:
    """slots int64 [N, 1], the pool's tensors and `NAME.rows` [N, width] -> `NAME.next`."""
    g = GraphBuilder("write")
    g.input("slots", "int64", ["N", 1])
    for name, width in state_widths(spec).items():
        g.input(name, "float32", ["S", width])
        g.input(f"{name}.rows", "float32", ["N", width])
        g.add("ScatterND", [name, "slots", f"{name}.rows"], f"{name}.next")
        g.output(f"{name}.next", "float32", ["S", width])
    return g.model()
