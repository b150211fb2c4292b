"""Puts each weight of a graph into the graph, or the subgraph, whose nodes read it.

onnxruntime prepacks a weight where it is an initializer of the same graph, or of the graph around
it, but not of one two levels out: then a matrix product has other bits. The server's Scan over time
and a Scan over sessions are two levels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from lstmserve.graph.safety import subgraphs

Weights = Mapping[str, TensorProto]


def place_weights(graph: GraphProto, outer: Weights | None = None) -> None:
    """Changes `graph`: constants become initializers, and each lies with the nodes that read it.
    `outer` are the weights around the graph by name."""
    own = {each.name: each for each in graph.initializer} | _take_constants(graph)
    around = {**(outer or {}), **own}
    for value in graph.input:  # a name of an input hides the same name around the graph
        if value.name not in own:
            around.pop(value.name, None)
    for node in graph.node:
        for each in subgraphs(node):
            place_weights(each, around)
    read = {name for node in graph.node for name in node.input}
    read |= {each.name for each in graph.output}
    del graph.initializer[:]
    graph.initializer.extend(each for name, each in around.items() if name in read)


def _take_constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Takes the Constant nodes out of the graph, and returns what they give."""
    found = {}
    kept = []
    for node in graph.node:
        tensor = _constant(node)
        if tensor is None:
            kept.append(node)
        else:
            tensor.name = node.output[0]
            found[tensor.name] = tensor
    del graph.node[:]
    graph.node.extend(kept)
    return found


def _constant(node: NodeProto) -> TensorProto | None:
    """What a Constant node gives, None for another node and for strings and sparse tensors."""
    if node.op_type != "Constant" or node.domain or not node.attribute:
        return None
    (attribute,) = node.attribute
    tensor = TensorProto()
    if attribute.type == AttributeProto.TENSOR:
        tensor.CopyFrom(attribute.t)
        return tensor
    value = helper.get_attribute_value(attribute)
    dtypes = {
        AttributeProto.FLOAT: "float32",
        AttributeProto.FLOATS: "float32",
        AttributeProto.INT: "int64",
        AttributeProto.INTS: "int64",
    }
    if attribute.type not in dtypes:
        return None
    return numpy_helper.from_array(np.array(value, dtypes[attribute.type]))
