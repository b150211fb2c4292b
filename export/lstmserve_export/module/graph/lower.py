"""Replaces the recurrent calls of a trace by nodes of ONNX, and tidies the graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import onnx
from onnx import helper

from lstmserve.graph.safety import subgraphs
from lstmserve.spec import INITIAL, Tap
from lstmserve_export.module.graph.nodes import Nodes
from lstmserve_export.module.graph.sequences import SequenceCall
from lstmserve_export.module.graph.steps import StepCall
from lstmserve_export.module.graph.trace import DOMAIN, SEQUENCE, Trace
from lstmserve_export.module.signature.signature import Signature
from lstmserve_export.refusal import Refused
from lstmserve_export.target import ONNX_BYTES_MAX, TOO_LARGE

NET: Final = "net."  # the name of the module in the trace
IR_VERSION: Final = 10


def lower(traced: Trace, signature: Signature) -> tuple[onnx.ModelProto, tuple[Tap, ...]]:
    """The graph of a step or a window, which step_graph.read_step_graph() reads, and the layers of
    a step. Raises Refused."""
    graph = traced.model.graph
    if any(tensor.external_data for tensor in graph.initializer):
        raise Refused(TOO_LARGE)
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {value.name for value in (*graph.input, *graph.output)}
    found = Nodes(taken)
    taps: list[Tap] = []
    states = {} if signature.window else signature.states_by_call()
    for node in graph.node:
        if node.domain != DOMAIN:
            found.nodes.append(node)
            continue
        call, layer = traced.calls[next(a.i for a in node.attribute if a.name == "call")]
        if node.op_type == SEQUENCE:
            SequenceCall(found, call, layer).expand(node)
        else:
            taps += StepCall(found, call, layer, states.get(call, ())).expand(node)
    for name, value in signature.initial.items():
        if np.any(value):
            found.weight(name + INITIAL, value)
    return _model(traced.model, found), tuple(taps)


def _model(traced: onnx.ModelProto, found: Nodes) -> onnx.ModelProto:
    """A model with these nodes in place of the traced ones, without what only a tool reads."""
    graph = traced.graph
    renamed = {
        tensor.name: tensor.name.removeprefix(NET)
        for tensor in graph.initializer
        if tensor.name.removeprefix(NET) not in found.taken
    }
    for node in found.nodes:
        node.name = node.doc_string = ""
        del node.metadata_props[:]
        node.input[:] = [renamed.get(name, name) for name in node.input]
    used = _used(found.nodes, graph.output)
    initializers = []
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
        tensor.doc_string = ""
        del tensor.metadata_props[:]
        if tensor.name in used:
            initializers.append(tensor)
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    initializers += [
        tensor
        for name, tensor in found.initializers.items()
        if name in used or name.endswith(INITIAL)
    ]
    made = helper.make_graph(found.nodes, "step", graph.input, graph.output, initializers)
    opsets = [each for each in traced.opset_import if each.domain != DOMAIN]
    model = helper.make_model(
        made, opset_imports=opsets, ir_version=IR_VERSION, producer_name="lstmserve"
    )
    if model.ByteSize() > ONNX_BYTES_MAX:
        raise Refused(TOO_LARGE)
    return model


def _used(nodes: Iterable[onnx.NodeProto], outputs: Iterable[onnx.ValueInfoProto]) -> set[str]:
    """Every name that a node of the graph or of its subgraphs reads."""
    found = {value.name for value in outputs}
    for node in nodes:
        found |= set(node.input)
        for graph in subgraphs(node):
            found |= _used(graph.node, graph.output)
    return found
