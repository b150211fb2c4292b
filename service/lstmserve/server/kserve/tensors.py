"""Owns the way from a request's tensors to arrays. Knows no model.

Contents are raw or typed, one or the other for each input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmserve.engine.errors import BadTensor, Malformed, NotImplementedYet
from lstmserve.kserve.v2 import inference_pb2 as pb

Array = npt.NDArray[Any]

RANK_MAX: Final = 8
SHOWN_MAX: Final = 64


class Datatype(NamedTuple):
    """Its little-endian dtype, and the field of InferTensorContents that has its values."""

    dtype: np.dtype[Any]
    field: str


DATATYPES: Final = {
    "FP32": Datatype(np.dtype("<f4"), "fp32_contents"),
    "INT32": Datatype(np.dtype("<i4"), "int_contents"),
    "INT64": Datatype(np.dtype("<i8"), "int64_contents"),
}


class Tensor(NamedTuple):
    """One input as it came; `raw` None: its contents are typed."""

    header: pb.ModelInferRequest.InferInputTensor
    raw: bytes | None


def inputs(request: pb.ModelInferRequest) -> dict[str, Tensor]:
    """By name. Raises Malformed, BadTensor, NotImplementedYet."""
    found: dict[str, Tensor] = {}
    raws = iter(request.raw_input_contents)
    for header in request.inputs:
        name = header.name
        if name in found:
            raise Malformed(f"input '{name[:SHOWN_MAX]}' is sent twice")
        if header.parameters:
            refuse_parameters(header.parameters, f"input '{name[:SHOWN_MAX]}'")
        raw = None
        if not header.HasField("contents") and (raw := next(raws, None)) is None:
            raise BadTensor(f"unable to find data for input tensor '{name[:SHOWN_MAX]}'")
        found[name] = Tensor(header, raw)
    if next(raws, None) is not None:
        raise Malformed("raw_input_contents has more entries than there are inputs for it")
    return found


def refuse_parameters(parameters: Mapping[str, pb.InferParameter], what: str) -> None:
    """Of a tensor: those that ask for what is not served. Raises NotImplementedYet."""
    for name in parameters:
        if name.startswith("shared_memory") or name == "classification":
            raise NotImplementedYet(f"{what}: {name} is not served here")


def array(tensor: Tensor, *datatypes: str) -> Array:
    """Its values in its shape, of one of these datatypes. Raises BadTensor, of the field."""
    header, name = tensor.header, tensor.header.name
    if (datatype := header.datatype) not in datatypes:
        raise BadTensor(
            f"input '{name}' has data-type '{datatype[:SHOWN_MAX]}', must be "
            f"{' or '.join(datatypes)}",
            field=name,
        )
    shape = tuple(header.shape)
    if len(shape) > RANK_MAX or min(shape, default=0) < 0:
        raise BadTensor(f"input '{name}' has a shape that none can have", field=name)
    dtype, values = DATATYPES[datatype]
    if tensor.raw is not None:
        size, rest = divmod(len(tensor.raw), dtype.itemsize)
        if rest:
            raise BadTensor(f"input '{name}' ends within a value", field=name)
    else:
        size = len(getattr(header.contents, values))
    if size != math.prod(shape):
        raise BadTensor(
            f"input '{name}' has {size} values, its shape {list(shape)} another number", field=name
        )
    if tensor.raw is not None:
        return np.frombuffer(tensor.raw, dtype).reshape(shape)
    return np.array(getattr(header.contents, values), dtype).reshape(shape)
