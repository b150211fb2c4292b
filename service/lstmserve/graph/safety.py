"""Refuses ONNX graphs that a server must not run, before onnxruntime sees them.

A server reads every tensor from the file itself, runs the operators of ONNX and com.microsoft
alone, and answers the same step with the same bits. It runs nothing, and knows no spec.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from lstmserve.graph.reader import InvalidModel

DOMAINS: Final = ("", "com.microsoft")
# EPContext names files with code of an engine. The others answer the same step with other bits.
REFUSED_OPS: Final = frozenset(
    (
        "EPContext",
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    )
)
FLOATS: Final = frozenset(
    (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
)
AGAIN: Final = "export the model again"
NAMED_MAX: Final = 8  # operators that a message names
Function = tuple[str, str]  # domain and name


def check_safe(model: onnx.ModelProto, file: str) -> None:
    """Raises InvalidModel, whose message names `file`. Reads every tensor of the model.

    Operators that are functions of the model may be of any domain: what is in them is checked too.
    """
    functions = {(each.domain, each.name) for each in model.functions}
    bodies = [each.node for each in model.functions]
    nodes = [node for body in (model.graph.node, *bodies) for node in all_nodes(body)]
    _check_sides(model.graph, file)
    for node in nodes:
        _check_node(node, file)
    _check_operators(nodes, functions, file)
    for tensor in _tensors(model.graph, file):
        _check_tensor(tensor, file)
    for body in bodies:
        for tensor in _tensors_of_nodes(body, file):
            _check_tensor(tensor, file)


def shorten_domains(model: onnx.ModelProto) -> None:
    """ONNX's own domain has two names, of which its checker knows one."""
    for opset in model.opset_import:
        if opset.domain == "ai.onnx":
            opset.domain = ""
    for node in all_nodes(model.graph.node):
        if node.domain == "ai.onnx":
            node.domain = ""


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from all_nodes(graph.node)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The node's own, without those in them."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def one_line(error: Exception) -> str:
    """Its message, cut."""
    return " ".join(str(error).split())[:200]


def _check_node(node: onnx.NodeProto, file: str) -> None:
    sides = (*node.input, *node.output, *(each.name for each in node.attribute))
    _check_text(file, node.op_type, node.domain, node.name, *sides)
    for graph in subgraphs(node):
        _check_sides(graph, file)
    for attribute in node.attribute:
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise InvalidModel(f"{file} has a sparse tensor in {node.op_type}")


def _check_sides(graph: onnx.GraphProto, file: str) -> None:
    sides = (*graph.input, *graph.output)
    axes = (dim.dim_param for each in sides for dim in each.type.tensor_type.shape.dim)
    _check_text(file, *(each.name for each in sides), *axes)


def _check_operators(nodes: Iterable[onnx.NodeProto], functions: Set[Function], file: str) -> None:
    foreign: dict[str, dict[str, None]] = {}
    for node in nodes:
        if (node.domain, node.op_type) in functions:
            continue
        if node.domain not in (*DOMAINS, "ai.onnx"):
            foreign.setdefault(node.domain, {})[node.op_type] = None
        elif node.op_type in REFUSED_OPS:
            raise InvalidModel(
                f"{file} has an operator {node.op_type}, which the server does not run: it reads "
                "files, or gives other numbers each time"
            )
    if foreign:
        said = " and ".join(f"{_some(ops)} of the domain {name!r}" for name, ops in foreign.items())
        kind = "an operator" if sum(map(len, foreign.values())) == 1 else "the operators"
        raise InvalidModel(
            f"{file} has {kind} {said}; the server runs those of ONNX and com.microsoft alone"
        )


def _some(names: Iterable[str]) -> str:
    first = list(names)
    rest = len(first) - NAMED_MAX
    return ", ".join(first[:NAMED_MAX]) + (f" and {rest} more" if rest > 0 else "")


def _check_text(file: str, *names: str) -> None:
    """protobuf gives bytes that are not UTF-8 as bytes."""
    if not all(isinstance(name, str) for name in names):
        raise InvalidModel(f"{file} has a name that is not UTF-8: {AGAIN}")


def _tensors(graph: onnx.GraphProto, file: str) -> Iterator[TensorProto]:
    """Initializers, and constants in attributes, of subgraphs too."""
    if graph.sparse_initializer:
        raise InvalidModel(f"{file} has sparse initializers: make them dense")
    yield from graph.initializer
    yield from _tensors_of_nodes(graph.node, file)


def _tensors_of_nodes(nodes: Iterable[onnx.NodeProto], file: str) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for each in subgraphs(node):
            yield from _tensors(each, file)


def _check_tensor(tensor: TensorProto, file: str) -> None:
    """Refuses what lies in another file, has the wrong size, or has NaN."""
    _check_text(file, tensor.name)
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise InvalidModel(f"{tensor.name} lies in another file; {file} must hold its weights")
    if any(size < 0 for size in tensor.dims):
        raise InvalidModel(f"{file}: {tensor.name!r} has a negative size")
    try:
        values = numpy_helper.to_array(tensor)
    except Exception as error:
        raise InvalidModel(f"{file}: {tensor.name!r}: {one_line(error)}") from error
    if tensor.data_type in FLOATS and np.isnan(values).any():
        raise InvalidModel(f"{tensor.name} has NaN values: {AGAIN}")
