"""Reads the ONNX file of others: what it has, and whether a server may ever run it. Runs nothing.

What must not reach onnxruntime is refused here. Afterwards the graph has no functions of its own,
and an opset in which the pool's graphs can be written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper, version_converter

from lstmserve.graph.step_graph import OPSET_MIN
from lstmserve.manifest import sha256
from lstmserve_export.refusal import Refused, one_line
from lstmserve_export.target import ONNX_BYTES_MAX


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
    is served, without functions and of a newer opset. Inputs do not have the initializers."""

    original: onnx.ModelProto
    model: onnx.ModelProto
    sha256: str
    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]
    notes: tuple[str, ...] = ()


def read_source(path: Path) -> Source:
    """Raises Refused."""
    content = path.read_bytes()
    if len(content) > ONNX_BYTES_MAX:
        raise Refused(f"{path} has {len(content)} bytes, at most {ONNX_BYTES_MAX} are read")
    original = onnx.load_model_from_string(content)
    model = original
    if max(each.version for each in original.opset_import if not each.domain) < OPSET_MIN:
        try:
            model = version_converter.convert_version(original, OPSET_MIN)
        except Exception as error:
            raise Refused(f"{path} cannot be converted: {one_line(error)}") from error
    constants = {each.name for each in original.graph.initializer}
    inputs = [_value(each) for each in original.graph.input if each.name not in constants]
    outputs = map(_value, original.graph.output)
    return Source(
        original=original,
        model=model,
        sha256=sha256(content),
        inputs={each.name: each for each in inputs},
        outputs={each.name: each for each in outputs},
    )


def _value(value: onnx.ValueInfoProto) -> Value:
    tensor = value.type.tensor_type
    dims = tensor.shape.dim
    return Value(
        name=value.name,
        dtype=str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)),
        shape=tuple(d.dim_value if d.HasField("dim_value") else None for d in dims),
        symbols=tuple(d.dim_param for d in dims),
    )
