"""Reads the model.onnx of kind "network": a step graph, which other tools may have made.

The graph computes one time step of a batch: inputs NAME [B, *shape] for each input and state of the
spec -> outputs NAME for each output and NAME.next for each state. An initializer NAME.initial is
the state's initial value. With a window of W rows it computes the last row's outputs of a whole
window: NAME [B, W, *shape] for each input -> NAME [B, *shape] for each output, without states.

Without a window and without states it computes one whole sequence, and has no axis for a batch: the
first axis of every input is time, NAME [T, *shape], and has no fixed length. Each output is NAME
[R, *shape], where R is what the graph gives, at most T, and the same for all outputs: T, fewer
rows, or 1.

This module refuses whatever the server must not run (safety.py), and a graph that is not of the
spec. It runs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, numpy_helper

from lstmserve.graph.builder import DTYPES
from lstmserve.graph.division import guard_divisions
from lstmserve.graph.emptiness import guard_empty, has_shapes_of_values
from lstmserve.graph.reader import InvalidModel
from lstmserve.graph.safety import AGAIN, DOMAINS, check_safe, one_line, shorten_domains
from lstmserve.spec import INITIAL, NEXT, ModelSpec, TensorSpec

OPSET_MIN: Final = 13  # from it on Split, Squeeze and Unsqueeze have the form that the pool's has
IR_VERSION_MIN: Final = 8


@dataclass(frozen=True, slots=True)
class StepGraph:
    """A checked step graph; `initial` has every state's initial value [*shape] by name.

    `running` are the nodes that the server runs, and `constants` what they need beside the
    initializers: the file's nodes with safe divisions (division.py) and, where a client decides on
    shapes, with layers that fail if they find no row (emptiness.py).
    """

    nodes: tuple[onnx.NodeProto, ...]
    initializers: Mapping[str, TensorProto]
    running: tuple[onnx.NodeProto, ...]
    constants: tuple[TensorProto, ...]
    opsets: Mapping[str, int]
    ir_version: int
    initial: Mapping[str, npt.NDArray[Any]]


def read_step_graph(content: bytes, spec: ModelSpec) -> StepGraph:
    """The step graph in a serialised ModelProto. Raises InvalidModel, which says what is wrong."""
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise InvalidModel("model.onnx is not an ONNX file, or is truncated") from error
    shorten_domains(model)
    opsets = _opsets(model)
    if model.functions:
        raise InvalidModel("model.onnx has functions of its own: inline them (onnx.inliner)")
    check_safe(model, "model.onnx")
    _check_sides(model.graph, spec)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # its classes have no base of their own
        raise InvalidModel(f"model.onnx: {one_line(error)}") from error
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    states = () if spec.window else spec.states
    initial = {each.name: _initial(each, initializers) for each in states}
    nodes = tuple(model.graph.node)
    running, constants = guard_divisions(model)
    if not spec.states or has_shapes_of_values(model.graph):
        running = guard_empty(running)
    return StepGraph(
        nodes=nodes,
        initializers=initializers,
        running=tuple(running),
        constants=tuple(constants),
        opsets=opsets,
        ir_version=max(model.ir_version, IR_VERSION_MIN),
        initial=initial,
    )


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    """The versions of the domains that nodes may use."""
    opsets = {each.domain: each.version for each in model.opset_import if each.domain in DOMAINS}
    version = opsets.get("", 0)
    newest = onnx.defs.onnx_opset_version()
    if not OPSET_MIN <= version <= newest:
        raise InvalidModel(
            f"model.onnx is of opset {version}, this release runs {OPSET_MIN} to {newest}: {AGAIN}"
        )
    return opsets


def _check_sides(graph: onnx.GraphProto, spec: ModelSpec) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [each for each in graph.input if each.name not in constants]
    if spec.window:
        rows = (TensorSpec(e.name, (spec.window, *e.shape), e.dtype) for e in spec.inputs)
        _check_values("input", inputs, rows)
        _check_values("output", graph.output, spec.outputs)
        return
    if not spec.states:
        _check_values("input", inputs, spec.inputs, "T")
        _check_values("output", graph.output, spec.outputs, "R")
        return
    after = (TensorSpec(each.name + NEXT, each.shape, each.dtype) for each in spec.states)
    _check_values("input", inputs, (*spec.inputs, *spec.states))
    _check_values("output", graph.output, (*spec.outputs, *after))


def _check_values(
    side: str,
    values: Iterable[onnx.ValueInfoProto],
    expected: Iterable[TensorSpec],
    axis: Literal["B", "T", "R"] = "B",
) -> None:
    """Raises InvalidModel. `axis` is the first of every tensor: the batch, time, or R, which may
    have a fixed length."""
    found = {value.name: value for value in values}
    wanted = {each.name: each for each in expected}
    if missing := sorted(set(wanted) - set(found)):
        raise InvalidModel(f"model.onnx has no {side} {', '.join(missing)}, which the spec names")
    if unknown := sorted(set(found) - set(wanted)):
        raise InvalidModel(f"model.onnx has an {side} {', '.join(unknown)}, not of the spec")
    for name, each in wanted.items():
        shown = f"{each.dtype} [{', '.join((axis, *map(str, each.shape)))}]"
        tensor = found[name].type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        if tensor.elem_type != DTYPES[each.dtype] or dims[1:] != list(each.shape):
            raise InvalidModel(f"{side} {name} of model.onnx is not {shown}: {AGAIN}")
        if not dims or (dims[0] is not None and axis != "R"):
            kind = {"B": "dynamic batch axis", "T": "dynamic axis of time", "R": "axis of rows"}
            raise InvalidModel(
                f"{side} {name} of model.onnx has no {kind[axis]}, must be {shown}: {AGAIN}"
            )


def _initial(spec: TensorSpec, initializers: Mapping[str, TensorProto]) -> npt.NDArray[Any]:
    tensor = initializers.get(spec.name + INITIAL)
    if tensor is None:
        return np.zeros(spec.shape, spec.dtype)
    values = np.asarray(numpy_helper.to_array(tensor))
    if values.dtype != spec.dtype or values.shape != spec.shape:
        raise InvalidModel(f"{tensor.name} is not {spec.dtype}{list(spec.shape)}: {AGAIN}")
    if not np.isfinite(values).all():
        raise InvalidModel(f"{tensor.name} has infinite values: {AGAIN}")
    return values


# The fingerprint ----------------------------------------------------------------------------------


def fingerprint(spec: ModelSpec, graph: StepGraph) -> str:
    """sha256 in hex over the spec, the weights and the nodes of a step graph.

    It does not depend on how a tool lays out the file: names of nodes, texts, the order of
    initializers and attributes, and the encoding of their values are left out.
    """
    digest = hashlib.sha256(json.dumps(spec.to_json(), sort_keys=True).encode())
    if spec.window:
        digest.update(json.dumps({"window": (spec.window, spec.window_fill)}).encode())
    digest.update(json.dumps(sorted(graph.opsets.items())).encode())
    for part in _canonical(graph.nodes, graph.initializers.values()):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _canonical(
    nodes: Iterable[onnx.NodeProto], initializers: Iterable[TensorProto]
) -> Iterator[bytes]:
    for tensor in sorted(initializers, key=lambda each: each.name):
        yield from _canonical_tensor(tensor)
    for node in nodes:
        head = [node.domain, node.op_type, list(node.input), list(node.output)]
        yield json.dumps(head).encode()
        for attribute in sorted(node.attribute, key=lambda each: each.name):
            yield from _canonical_attribute(attribute)


def _canonical_tensor(tensor: TensorProto) -> Iterator[bytes]:
    values = np.asarray(numpy_helper.to_array(tensor))
    yield json.dumps([tensor.name, tensor.data_type, list(tensor.dims)]).encode()
    if values.dtype == object:  # strings
        yield json.dumps([str(each) for each in values.reshape(-1)]).encode()
    else:
        yield np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()


def _canonical_attribute(attribute: AttributeProto) -> Iterator[bytes]:
    yield json.dumps([attribute.name, attribute.type]).encode()
    tensors = [attribute.t] if attribute.HasField("t") else attribute.tensors
    graphs = [attribute.g] if attribute.HasField("g") else attribute.graphs
    for tensor in tensors:
        yield from _canonical_tensor(tensor)
    for graph in graphs:
        sides = [[each.name for each in side] for side in (graph.input, graph.output)]
        yield json.dumps(sides).encode()
        yield from _canonical(graph.node, graph.initializer)
    if not tensors and not graphs:
        plain = AttributeProto()
        plain.CopyFrom(attribute)
        plain.doc_string = ""
        yield plain.SerializeToString(deterministic=True)
