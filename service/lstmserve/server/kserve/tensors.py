"""Reads the tensors of a request into arrays that fit its model; the engine trusts them.

Contents are raw or typed, one or the other for each input. It must not know what becomes of the
arrays, nor any session.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmserve.config import Config
from lstmserve.engine import Model
from lstmserve.engine.arrays import Input
from lstmserve.engine.errors import BadTensor, Malformed, NotImplementedYet
from lstmserve.engine.session.opening import ImportedState
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.codec import check_finite, check_length, check_reply, input_rows
from lstmserve.spec import LstmSpec

OUTPUTS: Final = ("y", "y_last", "hn", "cn")
STATES: Final = ("h0", "c0")
RANK_MAX: Final = 8
SHOWN_MAX: Final = 64

Array = npt.NDArray[Any]


class Datatype(NamedTuple):
    """Its little-endian dtype, and the field of InferTensorContents that has its values."""

    dtype: np.dtype[Any]
    field: str


DATATYPES: Final = {
    "FP32": Datatype(np.dtype("<f4"), "fp32_contents"),
    "INT32": Datatype(np.dtype("<i4"), "int_contents"),
    "INT64": Datatype(np.dtype("<i8"), "int64_contents"),
}


class InputTensor(NamedTuple):
    """One input as it came; `raw` None: its contents are typed."""

    header: pb.ModelInferRequest.InferInputTensor
    raw: bytes | None


Inputs = Mapping[str, InputTensor]


class ModelInput(NamedTuple):
    """The input that a model needs; `row` are the axes of one of its rows."""

    name: str
    datatype: str
    row: tuple[int, ...]


def model_input(spec: LstmSpec) -> ModelInput:
    """x, whose rows are vectors, or tokens, whose rows are numbers."""
    if spec.num_embeddings:
        return ModelInput("tokens", "INT64", ())
    return ModelInput("x", "FP32", (spec.input_size,))


# --- every request


def input_tensors(request: pb.ModelInferRequest) -> dict[str, InputTensor]:
    """By name. Raises Malformed, BadTensor, NotImplementedYet."""
    found: dict[str, InputTensor] = {}
    raws = iter(request.raw_input_contents)
    for header in request.inputs:
        name = header.name
        if name in found:
            raise Malformed(f"input '{name[:SHOWN_MAX]}' is sent twice")
        if header.parameters:
            _check_parameters(header.parameters, f"input '{name[:SHOWN_MAX]}'")
        raw = None
        if not header.HasField("contents") and (raw := next(raws, None)) is None:
            raise BadTensor(f"unable to find data for input tensor '{name[:SHOWN_MAX]}'")
        found[name] = InputTensor(header, raw)
    if next(raws, None) is not None:
        raise Malformed("raw_input_contents has more entries than there are inputs for it")
    return found


def output_names(request: pb.ModelInferRequest, model: Model) -> tuple[str, ...]:
    """The outputs that it asks for, in order; y when it names none. Raises Malformed,
    NotImplementedYet."""
    names = []
    for output in request.outputs:
        if (name := output.name) not in OUTPUTS:
            raise Malformed(
                f"unexpected inference output '{name[:SHOWN_MAX]}' for model '{model.name}'; "
                f"there are {', '.join(OUTPUTS)}"
            )
        if output.parameters:
            _check_parameters(output.parameters, f"output '{name}'")
        names.append(name)
    return tuple(names) or ("y",)


def _check_parameters(parameters: Mapping[str, pb.InferParameter], what: str) -> None:
    """Of a tensor. Raises NotImplementedYet for those that ask for what is not served."""
    for name in parameters:
        if name.startswith("shared_memory") or name == "classification":
            raise NotImplementedYet(f"{what}: {name} is not served here")


def input_array(model: Model, inputs: Inputs, optional: Sequence[str]) -> Array:
    """x or tokens, in the shape it came in; besides it only the `optional` inputs may be there.

    Raises Malformed, BadTensor.
    """
    wanted = model_input(model.spec)
    known = (wanted.name, *optional)
    for name in inputs:
        if name not in known:
            raise Malformed(
                f"unexpected inference input '{name[:SHOWN_MAX]}' for model '{model.name}'; "
                f"such a request takes {', '.join(known)}"
            )
    if wanted.name not in inputs:
        raise BadTensor(f"input '{wanted.name}' is missing", field=wanted.name)
    return to_array(inputs[wanted.name], wanted.datatype)


def to_array(tensor: InputTensor, *datatypes: str) -> Array:
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
        raise BadTensor(f"input '{name}' has an impossible shape", field=name)
    dtype, values = DATATYPES[datatype]
    if tensor.raw is not None:
        size, rest = divmod(len(tensor.raw), dtype.itemsize)
        if rest:
            raise BadTensor(f"input '{name}' ends within a value", field=name)
    else:
        size = len(getattr(header.contents, values))
    if size != math.prod(shape):
        raise BadTensor(
            f"input '{name}' has {size} values, which do not fill its shape {list(shape)}",
            field=name,
        )
    if tensor.raw is not None:
        return np.frombuffer(tensor.raw, dtype).reshape(shape)
    return np.array(getattr(header.contents, values), dtype).reshape(shape)


def in_shape(name: str, values: Array, *shapes: tuple[int, ...]) -> Array:
    """The values, finite, in one of these shapes. Raises BadTensor, NonFinite."""
    if values.shape not in shapes:
        allowed = " or ".join(str(list(shape)) for shape in shapes)
        raise BadTensor(
            f"input '{name}' has shape {list(values.shape)}, must have {allowed}", field=name
        )
    check_finite(values, name)
    return values


def check_values(spec: LstmSpec, rows: Input) -> None:
    """x [T, I] is finite, tokens [T] are in range. Raises NonFinite, BadTensor."""
    if spec.num_embeddings:
        input_rows(spec, b"", rows.tolist(), len(rows))
    else:
        check_finite(rows, "x")


def initial_states(inputs: Inputs) -> tuple[Array, Array] | None:
    """h0 and c0 in the shapes they came in; None when there is neither. Raises BadTensor."""
    given = [name for name in STATES if name in inputs]
    if len(given) == 1:
        (missing,) = {*STATES} - {*given}
        raise BadTensor(f"{missing} is missing: give both or neither", field=missing)
    if not given:
        return None
    h0, c0 = (to_array(inputs[name], "FP32") for name in STATES)
    return h0, c0


# --- a request of a sequence


def step_input(
    model: Model, inputs: Inputs, config: Config, *, is_start: bool, last_only: bool
) -> tuple[Input, tuple[int, ...]]:
    """x [T, I] or tokens [T] of one step, and the axes that it came with before those of a row.

    x may come as [I], [T, I] or [1, T, I]; tokens without the last axis. y has the same axes, with
    O instead of I. Raises Malformed, BadTensor, EmptyInput, TooLong, NonFinite.
    """
    x = input_array(model, inputs, STATES if is_start else ())
    name, _, row = model_input(model.spec)
    axes = x.shape[: max(0, x.ndim - len(row))]
    if x.shape[len(axes) :] != row or len(axes) > 2:
        sizes = "".join(f", {size}" for size in row)
        raise BadTensor(
            f"input '{name}' has shape {list(x.shape)}, must have [{sizes[2:]}], [T{sizes}] or "
            f"[1, T{sizes}] in a sequence",
            field=name,
        )
    if len(axes) == 2 and axes[0] != 1:
        raise BadTensor(
            f"input '{name}' has batch size {axes[0]}, must have 1 in a sequence: batches are "
            "formed of many sequences' requests",
            field=name,
        )
    rows = x.reshape(-1, *row)
    check_length(len(rows), config.length_max, name)
    check_values(model.spec, rows)
    height = 1 if last_only else len(rows)
    check_reply(height, model, config.message_bytes_max, name)
    return rows, axes


def start_state(model: Model, inputs: Inputs) -> ImportedState | None:
    """h0 and c0 of a START, [L, S] or [L, 1, S]; None: zeros. Raises BadTensor, NonFinite."""
    if (given := initial_states(inputs)) is None:
        return None
    spec = model.spec
    layers, widths = spec.num_layers, (spec.state_size, spec.hidden_size)
    h, c = (
        in_shape(name, values, (layers, width), (layers, 1, width)).reshape(layers, width)
        for name, values, width in zip(STATES, given, widths, strict=True)
    )
    return ImportedState(h, c, 0)
