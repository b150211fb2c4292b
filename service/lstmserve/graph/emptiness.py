"""Rewrites the operators that end the process where a tensor has no values, so that the run fails.

A graph of whole sequences computes its lengths from the client's: a sequence that is too short may
leave no row for an inner layer. onnxruntime 1.31 handles that in most operators. In those of ENDS
it aborts, divides by zero or reads no address, which ends the process. Here such an operator reads
its input through nodes that fail if an axis has the length 0: an integer division by zero is an
error that onnxruntime returns. It must not change any result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import onnx
from onnx import helper

# Name of an operator -> places of the inputs that must have values.
ENDS: Final[Mapping[str, tuple[int, ...]]] = {
    "GRU": (0,),
    "LSTM": (0,),
    "DynamicQuantizeLSTM": (0,),
    "Attention": (0,),
    "InstanceNormalization": (0,),
    "ConvTranspose": (0,),
}
FILLED: Final = "/filled"  # no name of a spec has a slash, and the file's names get a prefix


def guard_empty(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes, also of their subgraphs, with safe inputs. The nodes that are given stay."""
    found = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for attribute in copy.attribute:
            for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                body = guard_empty(graph.node)
                del graph.node[:]
                graph.node.extend(body)
        for place in ENDS.get(copy.op_type, ()):
            found += _guard(copy, place)
        found.append(copy)
    return found


def _guard(node: onnx.NodeProto, place: int) -> list[onnx.NodeProto]:
    """Nodes that give the input as it is, and fail if it has no values; the node reads theirs."""
    given = node.input[place]
    name = f"{next(filter(None, node.output))}{FILLED}/{place}"
    node.input[place] = name
    shape, ones, same = (f"{name}/{each}" for each in ("shape", "ones", "same"))
    return [
        helper.make_node("Shape", [given], [shape]),
        helper.make_node("Div", [shape, shape], [ones]),
        helper.make_node("Mul", [shape, ones], [same]),
        helper.make_node("Reshape", [given, same], [name]),
    ]
