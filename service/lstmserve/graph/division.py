"""Rewrites the integer divisions of a step graph so that none can end the process.

onnxruntime 1.31 checks an integer Div or Mod for a divisor of 0 alone. The smallest number divided
by -1 has no result in its dtype, and the processor ends the process there. Both numbers may come
from a client, so the divisor becomes 1 where these two meet. The results are those of numpy and
torch, which wrap around: Div gives the smallest number, Mod 0. It must not change any other result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lstmserve.graph.reader import InvalidModel
from lstmserve.graph.safety import subgraphs

# The compiler widens smaller integers before it divides them, and unsigned ones have no -1.
Integer = type[np.int32] | type[np.int64]
DTYPES: Final[Mapping[int, Integer]] = {TensorProto.INT32: np.int32, TensorProto.INT64: np.int64}
SAFE: Final = "/safe"  # of a spec's tensor no name has a slash, and the file's names get a prefix


def guard_divisions(model: onnx.ModelProto) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """The nodes of the model's graph with safe divisions, and the constants that they need.

    The model's own nodes stay as they are. Raises InvalidModel where the dtype of a division cannot
    be told.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    constants: dict[str, TensorProto] = {}
    nodes = _guarded(inferred.graph, {}, frozenset(), constants)
    return nodes, list(constants.values())


def _guarded(
    graph: onnx.GraphProto,
    outer_types: Mapping[str, int],
    outer_safe: frozenset[str],
    constants: dict[str, TensorProto],
) -> list[onnx.NodeProto]:
    """The graph's nodes; a subgraph sees the types of the graphs around it."""
    values = (*graph.input, *graph.output, *graph.value_info)
    types = dict(outer_types) | {each.name: each.type.tensor_type.elem_type for each in values}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    inputs = {each.name for each in graph.input}
    fixed = (tensor for tensor in graph.initializer if tensor.name not in inputs)
    safe = outer_safe | {tensor.name for tensor in fixed if _is_safe(tensor)}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for each in subgraphs(node):
            body = _guarded(each, types, safe, constants)
            del each.node[:]
            each.node.extend(body)
        is_division = node.op_type in ("Div", "Mod") and not node.domain
        if is_division and node.input[1] not in safe:
            nodes += _safe_divisor(node, types, constants)
        nodes.append(node)
        safe = safe.union(_safe_constants(node))
    return nodes


def _safe_constants(node: onnx.NodeProto) -> Iterable[str]:
    if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
        return node.output if _is_safe(node.attribute[0].t) else ()
    return ()


def _is_safe(tensor: TensorProto) -> bool:
    """Whether a constant divisor has no -1."""
    return tensor.data_type not in DTYPES or not (numpy_helper.to_array(tensor) == -1).any()


def _safe_divisor(
    node: onnx.NodeProto, types: Mapping[str, int], constants: dict[str, TensorProto]
) -> list[onnx.NodeProto]:
    """Nodes that compute the divisor; the division reads theirs from now on."""
    dividend, divisor = node.input
    found = types.get(dividend) or types.get(divisor) or types.get(node.output[0])
    if not found:
        raise InvalidModel(
            f"model.onnx has a {node.op_type} of {dividend!r} whose dtype cannot be told: Cast it "
            "to the dtype that it has, and export the model again"
        )
    if (dtype := DTYPES.get(found)) is None:
        return []
    low, minus, one = (_constant(constants, dtype, value) for value in (np.iinfo(dtype).min, -1, 1))
    name = node.output[0] + SAFE
    node.input[1] = name
    return [
        helper.make_node("Equal", [dividend, low], [f"{name}/low"]),
        helper.make_node("Equal", [divisor, minus], [f"{name}/minus"]),
        helper.make_node("And", [f"{name}/low", f"{name}/minus"], [f"{name}/meet"]),
        helper.make_node("Where", [f"{name}/meet", one, divisor], [name]),
    ]


def _constant(constants: dict[str, TensorProto], dtype: Integer, value: int) -> str:
    name = f"{np.dtype(dtype).name}{SAFE}/{value}"
    constants.setdefault(name, numpy_helper.from_array(np.array(value, dtype), name))
    return name
