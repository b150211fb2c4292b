"""Reads the ONNX file of others: what it has, and whether a server may ever run it. Runs nothing.

What must not reach onnxruntime is refused here. Afterwards the graph has no functions of its own,
and an opset in which the pool's graphs can be written.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, inliner, shape_inference

from lstmserve.graph import InvalidModel
from lstmserve.graph.safety import DOMAINS, all_nodes, check_safe, shorten_domains, subgraphs
from lstmserve.graph.step_graph import IR_VERSION_MIN
from lstmserve.manifest import sha256
from lstmserve_export.onnx_file.load.formats import HEAD_LEN, describe, find_cut
from lstmserve_export.onnx_file.load.opsets import IR_VERSION_MAX, check_opset, convert, opset
from lstmserve_export.refusal import Refused, one_line, shorten
from lstmserve_export.target import ONNX_BYTES_MAX

WEIGHTS_BYTES_MAX: Final = 1 << 30  # of all constants together, unpacked
NODES_MAX: Final = 100_000  # with the nodes of functions wherever they are called
T = TypeVar("T")
WHOLE: Final = (
    "export it with external_data=False, or run "
    """python -c 'import onnx; onnx.save(onnx.load("{}"), "whole.onnx")'"""
)


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output of the file's graph as it is declared.

    `shape` has None for an axis that is not fixed, `symbols` the name that the file gives to it, or
    "". A name is no proof of what an axis is.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    symbols: tuple[str, ...]

    def __str__(self) -> str:
        axes = (n or s or "?" for n, s in zip(self.shape, self.symbols, strict=True))
        return f"{self.name} {self.dtype}[{', '.join(map(str, axes))}]"


@dataclass(frozen=True, slots=True)
class Source:
    """A file that may be run: `original` as onnxruntime reads it, and `model`, the same graph as it
    is served: without functions, of a newer opset, and without sizes of the values inside, which
    another batch would have otherwise. Inputs do not have the initializers."""

    original: onnx.ModelProto
    model: onnx.ModelProto
    sha256: str
    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]
    notes: tuple[str, ...] = ()


def read_source(path: Path, weights_bytes_max: int = WEIGHTS_BYTES_MAX) -> Source:
    """Raises Refused."""
    file = path.name
    content = _read(path)
    original = _parse(content, file)
    notes = _lower_ir_version(original)
    _check_sizes(original, file, weights_bytes_max)
    try:
        check_safe(original, file)
    except InvalidModel as error:
        advice = f": {WHOLE.format(file)}" if "another file" in str(error) else ""
        raise Refused(f"{error}{advice}") from error
    check_opset(original, file)
    model = _plain(original, file)
    inputs = _values("input", _without_constants(original.graph), file)
    outputs = _values("output", model.graph.output, file)
    model = _checked(convert(_checked(model, file), file), file)
    if opset(model) != opset(original):
        notes.append(f"converted from opset {opset(original)} to {opset(model)} by onnx")
    return Source(original, model, sha256(content), inputs, outputs, tuple(notes))


# The file -----------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    """The bytes of a file that may hold a model. Raises Refused."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise Refused(f"{path} is a folder: name the .onnx file {_onnx_files(path)}in it")
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise Refused(f"{path} is not a file")
        if not status.st_size:
            raise Refused(f"{path} is empty: download or export it again")
        if status.st_size > ONNX_BYTES_MAX:
            raise Refused(
                f"{path} has {status.st_size} bytes, at most {ONNX_BYTES_MAX} are read, as much as "
                "an ONNX file can hold"
            )
        with path.open("rb") as file:
            head = file.read(HEAD_LEN)
            if says := describe(head):
                raise Refused(f"{path} {says}")
            content = head + file.read(status.st_size - len(head) + 1)
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from error
    if len(content) != status.st_size:
        raise Refused(f"{path} changes while it is read: wait until it is whole")
    return content


def _onnx_files(folder: Path) -> str:
    names = sorted(each.name for each in folder.glob("*.onnx"))
    return f"({shorten(names, 4)}) " if names else ""


def _parse(content: bytes, file: str) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        if cut := find_cut(content):
            raise Refused(f"{file} is cut, {cut}: download or export it again") from error
        raise Refused(
            f"{file} is not an ONNX file, or is damaged, or nests graphs in each other too deeply"
        ) from error
    if not model.HasField("graph") or not model.ir_version:
        raise Refused(
            f"{file} is not an ONNX model; if it is a .pb of TensorFlow, convert it with tf2onnx"
        )
    return model


def _lower_ir_version(model: onnx.ModelProto) -> list[str]:
    """onnxruntime refuses a newer IR version than its own, whatever the graph has. The opset says
    what is in the graph, and is checked."""
    version = model.ir_version
    if version <= IR_VERSION_MAX:
        return []
    model.ir_version = IR_VERSION_MAX
    return [f"read as IR version {IR_VERSION_MAX}, the file says {version}"]


# The graph ----------------------------------------------------------------------------------------


def _check_sizes(model: onnx.ModelProto, file: str, bytes_max: int) -> None:
    """Raises Refused for constants or functions that unpack to too much."""
    bodies = [model.graph.node, *(each.node for each in model.functions)]
    tensors = [*model.graph.initializer, *(t for body in bodies for t in _constants(body))]
    size = sum(map(_size, tensors))
    if size > bytes_max:
        raise Refused(f"{file} has constants of {size:,} bytes, at most {bytes_max:,} are served")
    if (count := _count_nodes(model, file)) > NODES_MAX:
        raise Refused(f"{file} has {count:,} nodes, at most {NODES_MAX:,} are served")


def _size(tensor: TensorProto) -> int:
    """Bytes of the tensor as it is declared."""
    try:
        width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:  # no dtype at all: check_safe refuses it
        return 0
    return max(math.prod(tensor.dims), 0) * width


def _constants(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in all_nodes(nodes):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for graph in subgraphs(node):
            yield from graph.initializer


def _count_nodes(model: onnx.ModelProto, file: str) -> int:
    """Nodes once functions are inlined. Raises Refused for functions that call themselves."""
    bodies = {(each.domain, each.name): each.node for each in model.functions}
    counts: dict[tuple[str, str], int | None] = {}

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        return sum(called((node.domain, node.op_type)) for node in all_nodes(nodes))

    def called(function: tuple[str, str]) -> int:
        if function not in bodies:
            return 1
        if function not in counts:
            counts[function] = None  # under way
            counts[function] = count(bodies[function])
        found = counts[function]
        if found is None:
            raise Refused(f"{file} has a function {function[1]} that calls itself")
        return found

    try:
        return count(model.graph.node)
    except RecursionError as error:
        raise Refused(f"{file} has functions that call each other too deeply") from error


def _plain(original: onnx.ModelProto, file: str) -> onnx.ModelProto:
    """The graph without functions, without constants among its inputs, and with the number of axes
    of its outputs as far as onnx infers it."""
    model = onnx.ModelProto()
    model.CopyFrom(original)
    if model.functions:
        model = _tried(inliner.inline_local_functions, model, f"{file}: its functions")
        if model.functions:
            raise Refused(
                f"{file} has functions of another opset than its graph: inline them "
                "(onnx.inliner), or export the model again"
            )
    shorten_domains(model)
    used = {node.domain for node in all_nodes(model.graph.node)}
    imports = {e.domain: e for e in model.opset_import if e.domain in DOMAINS}
    del model.opset_import[:]
    model.opset_import.extend(e for name, e in imports.items() if not name or name in used)
    model.ir_version = max(model.ir_version, IR_VERSION_MIN)
    inputs = _without_constants(model.graph)
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    if not all(map(_has_axes, model.graph.output)):
        inferred = _tried(shape_inference.infer_shapes, model, f"{file}: its shapes")
        _complete(model.graph.output, inferred.graph.output)
    inner = (g for node in all_nodes(model.graph.node) for g in subgraphs(node))
    for graph in (model.graph, *inner):
        for value in filter(_has_axes, graph.value_info):
            value.type.tensor_type.ClearField("shape")
    return model


def _complete(
    values: Iterable[onnx.ValueInfoProto], inferred: Iterable[onnx.ValueInfoProto]
) -> None:
    """Gives those that declare no axes the inferred ones, without sizes."""
    for value, found in zip(values, inferred, strict=True):
        if not _has_axes(value) and _has_axes(found):
            value.CopyFrom(found)
            for dim in value.type.tensor_type.shape.dim:
                dim.ClearField("dim_value")


def _has_axes(value: onnx.ValueInfoProto) -> bool:
    kind = value.type
    return kind.WhichOneof("value") == "tensor_type" and kind.tensor_type.HasField("shape")


def _checked(model: onnx.ModelProto, file: str) -> onnx.ModelProto:
    _tried(onnx.checker.check_model, model, f"{file}: its graph")
    return model


def _tried(act: Callable[[onnx.ModelProto], T], model: onnx.ModelProto, what: str) -> T:
    try:
        return act(model)
    except Exception as error:  # onnx raises several kinds without a base of their own
        raise Refused(f"{what} cannot be read: {one_line(error)}") from error


def _without_constants(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs. Before IR version 4 constants are listed among them."""
    constants = {each.name for each in graph.initializer}
    return [each for each in graph.input if each.name not in constants]


def _values(side: str, values: Iterable[onnx.ValueInfoProto], file: str) -> dict[str, Value]:
    """Raises Refused where there is none, and for what is no tensor of numbers."""
    found = {each.name: _value(side, each, file) for each in values}
    if not found:
        raise Refused(f"{file} has no {side}: there is nothing to serve")
    return found


def _value(side: str, value: onnx.ValueInfoProto, file: str) -> Value:
    kind = value.type.WhichOneof("value")
    tensor = value.type.tensor_type
    if kind != "tensor_type" or tensor.elem_type == TensorProto.STRING:
        name = "tensor of strings" if kind == "tensor_type" else str(kind).removesuffix("_type")
        raise Refused(
            f"the {side} {value.name} of {file} is of the type {name}, and the server has tensors "
            "of numbers alone: cut the graph there (onnx.utils.extract_model)"
        )
    if not _has_axes(value):
        raise Refused(
            f"{file} does not say how many axes its {side} {value.name} has: export the model "
            "again with shapes, or write them into the file (onnx.tools.update_model_dims)"
        )
    dims = tensor.shape.dim
    return Value(
        name=value.name,
        dtype=_dtype(tensor.elem_type),
        shape=tuple(d.dim_value if d.HasField("dim_value") else None for d in dims),
        symbols=tuple(d.dim_param for d in dims),
    )


def _dtype(number: int) -> str:
    """numpy's name, or a number that no dtype has."""
    try:
        return helper.tensor_dtype_to_np_dtype(number).name
    except KeyError:
        return f"dtype {number}"
