"""Rewrites the operators that end the process where a tensor has no values, so that the run fails.

A tensor may lose all of its values where a client decides on its shape: a graph of whole sequences
computes its lengths from the sequence's, and a few operators make shapes of values. onnxruntime
1.31 handles that in most operators. In those of ENDS it aborts, divides by zero or reads no
address, which ends the process. Here such an operator reads its input through nodes that fail if an
axis has the length 0: an integer division by zero is an error that onnxruntime returns. It must not
change any result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import onnx
from onnx import helper

from lstmserve.graph.safety import subgraphs

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
# Operators whose outputs have shapes that depend on values, and places of inputs whose values are a
# shape, or decide on one.
BY_VALUES: Final = frozenset(
    ("Compress", "Loop", "NonMaxSuppression", "NonZero", "SequenceAt", "SplitToSequence", "Unique")
)
SHAPES: Final[Mapping[str, tuple[int, ...]]] = {
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "If": (0,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
}


def has_shapes_of_values(graph: onnx.GraphProto) -> bool:
    """Whether a shape in the graph may depend on values of its inputs, and not on their shapes
    alone."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = {each.name for each in graph.input} - constants
    return _makes_shapes(graph.node, inputs)


def _makes_shapes(nodes: Iterable[onnx.NodeProto], known: Iterable[str]) -> bool:
    """`known` are the names of values that are computed from the inputs' values."""
    values = set(known)
    for node in nodes:
        places = (i for i in SHAPES.get(node.op_type, ()) if i < len(node.input))
        if node.op_type in BY_VALUES or any(node.input[i] in values for i in places):
            return True
        graphs = list(subgraphs(node))
        for graph in graphs:
            if _makes_shapes(graph.node, values.union(each.name for each in graph.input)):
                return True
        if graphs or (node.op_type not in ("Shape", "Size") and values.intersection(node.input)):
            values.update(node.output)
    return False


def guard_empty(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes, also of their subgraphs, with safe inputs. The nodes that are given stay."""
    found = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for graph in subgraphs(copy):
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
