"""Reads the tensors of a request into rows and states that fit its model; the engine trusts them.

Contents are raw or typed, one or the other for each input. It must not know what becomes of the
arrays, nor any session.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmserve.config import Config
from lstmserve.engine import Model
from lstmserve.engine.errors import BadTensor, Malformed, NotImplementedYet
from lstmserve.engine.session.opening import ImportedState
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.rows import Rows
from lstmserve.server.codec import (
    check_finite,
    check_length,
    check_reply,
    check_tokens,
    check_window,
)
from lstmserve.server.kserve.signature import (
    SHOWN_MAX,
    InputTensor,
    StateTensor,
    listed,
    signature_of,
)
from lstmserve.spec import RANK_MAX

AXES_MAX: Final = RANK_MAX + 2  # those of batch and time come before a tensor's own

Array = npt.NDArray[Any]
Axes = tuple[int, ...]


class Datatype(NamedTuple):
    """Its little-endian dtype, and the field of InferTensorContents that has its values."""

    dtype: np.dtype[Any]
    field: str


DATATYPES: Final = {
    "FP32": Datatype(np.dtype("<f4"), "fp32_contents"),
    "INT32": Datatype(np.dtype("<i4"), "int_contents"),
    "INT64": Datatype(np.dtype("<i8"), "int64_contents"),
    "BOOL": Datatype(np.dtype("u1"), "bool_contents"),
}


class SentTensor(NamedTuple):
    """One input as it came; `raw` is None where its contents are typed."""

    header: pb.ModelInferRequest.InferInputTensor
    raw: bytes | None


Inputs = Mapping[str, SentTensor]


# --- every request


def input_tensors(request: pb.ModelInferRequest) -> dict[str, SentTensor]:
    """The inputs of the request by name. Raises Malformed, BadTensor, NotImplementedYet."""
    found: dict[str, SentTensor] = {}
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
        found[name] = SentTensor(header, raw)
    if next(raws, None) is not None:
        raise Malformed("raw_input_contents has more entries than there are inputs for it")
    return found


def output_names(request: pb.ModelInferRequest) -> tuple[str, ...]:
    """The names of the outputs that the request asks for, in order.

    Raises Malformed, NotImplementedYet.
    """
    names: dict[str, None] = {}
    for output in request.outputs:
        name = output.name
        if name in names:
            raise Malformed(f"output '{name[:SHOWN_MAX]}' is asked for twice")
        if output.parameters:
            _check_parameters(output.parameters, f"output '{name[:SHOWN_MAX]}'")
        names[name] = None
    return tuple(names)


def _check_parameters(parameters: Mapping[str, pb.InferParameter], what: str) -> None:
    """Checks a tensor's parameters. Raises NotImplementedYet for those that ask for what is not
    served."""
    for name in parameters:
        if name.startswith("shared_memory") or name == "classification":
            raise NotImplementedYet(f"{what}: {name} is not served here")


def check_names(model: Model, inputs: Inputs, optional: Collection[str] = ()) -> None:
    """Checks that every input of the model is there, and beside them only `optional` ones.

    Raises Malformed, BadTensor.
    """
    signature = signature_of(model)
    if inputs.keys() == signature.inputs.keys():
        return
    for name in inputs:
        if name not in signature.inputs and name not in optional:
            raise Malformed(
                f"unexpected inference input '{name[:SHOWN_MAX]}' for model '{model.name}'; "
                f"such a request takes {listed((*signature.inputs, *optional))}"
                + (", and states come with sequence_start" if name in signature.states else "")
            )
    for each in signature.inputs.values():
        if each.name not in inputs:
            raise BadTensor(
                f"input '{each.name}' is missing: it is {each.datatype}, {list(each.shape)} in "
                "each time step",
                field=each.name,
            )


def to_array(tensor: SentTensor, *datatypes: str) -> Array:
    """The tensor's values in its shape, of one of these datatypes. Raises BadTensor with the
    field."""
    header, name = tensor.header, tensor.header.name
    if (datatype := header.datatype) not in datatypes:
        raise BadTensor(
            f"input '{name}' has data-type '{datatype[:SHOWN_MAX]}', must be "
            f"{' or '.join(datatypes)}",
            field=name,
        )
    shape = tuple(header.shape[:])  # a slice is a list: reading it costs half
    if len(shape) > AXES_MAX or min(shape, default=0) < 0:
        raise BadTensor(f"input '{name}' has an impossible shape", field=name)
    dtype, field = DATATYPES[datatype]
    if tensor.raw is not None:
        size, rest = divmod(len(tensor.raw), dtype.itemsize)
        if rest:
            raise BadTensor(f"input '{name}' ends within a value", field=name)
    else:
        size = len(getattr(header.contents, field))
    if size != math.prod(shape):
        raise BadTensor(
            f"input '{name}' has {size} values, which do not fill its shape {list(shape)}",
            field=name,
        )
    if tensor.raw is not None:
        values = np.frombuffer(tensor.raw, dtype).reshape(shape)
    else:
        values = np.array(getattr(header.contents, field), dtype).reshape(shape)
    return values.astype(np.bool_) if datatype == "BOOL" else values


def state_in_shape(model: Model, state: StateTensor, values: Array, *shapes: Axes) -> Array:
    """A state's values, which its model can have, in one of these shapes. Raises BadTensor,
    NonFinite."""
    values = in_shape(state.given, values, *shapes)
    check_window(model, state.tensor.name, values, state.given)
    return values


def in_shape(name: str, values: Array, *shapes: Axes) -> Array:
    """The values, all finite, in one of these shapes. Raises BadTensor, NonFinite."""
    if values.shape not in shapes:
        allowed = " or ".join(str(list(shape)) for shape in shapes)
        raise BadTensor(
            f"input '{name}' has shape {list(values.shape)}, must have {allowed}", field=name
        )
    check_finite(values, name)
    return values


def check_values(model: Model, wanted: InputTensor, values: Array) -> None:
    """Checks values of this input of the model. Raises NonFinite, BadTensor."""
    if wanted.datatype == "INT64":
        check_tokens(model, values)
    else:
        check_finite(values, wanted.name)


def joined(model: Model, arrays: Mapping[str, Array]) -> Rows:
    """The rows of all inputs, [T, values] each; a copy only where there are several."""
    tensors = model.inputs.tensors
    if len(tensors) == 1:
        return arrays[tensors[0].name]
    return model.inputs.pack(
        {each.name: arrays[each.name].reshape(-1, *each.shape) for each in tensors}
    )


def given_states(model: Model, inputs: Inputs) -> dict[str, Array] | None:
    """All of the model's states in the shapes they came in, by the names of the inputs; None when
    there is none. Raises BadTensor."""
    states = signature_of(model).states
    if not any(name in inputs for name in states):
        return None
    for name in states:
        if name not in inputs:
            raise BadTensor(
                f"input '{name}' is missing: give every state or none, that is {listed(states)}",
                field=name,
            )
    return {name: to_array(inputs[name], each.datatype) for name, each in states.items()}


# --- a request of a sequence


def step_input(
    model: Model, inputs: Inputs, config: Config, *, is_start: bool, last_only: bool
) -> tuple[Rows, Axes]:
    """The rows of one step, and the axes of its outputs before those of a row.

    An input may come as [*shape], [T, *shape] or [1, T, *shape], T being the same for all of them.
    The outputs have the axes of the input that has most. Raises Malformed, BadTensor, EmptyInput,
    TooLong, NonFinite.
    """
    signature = signature_of(model)
    check_names(model, inputs, signature.states if is_start else ())
    first, arrays = signature.first, {}
    axes, length = Axes(), -1
    for name, wanted in signature.inputs.items():
        values = to_array(inputs[name], wanted.datatype)
        own = _step_axes(wanted, values.shape)
        rows = values.reshape(math.prod(own), wanted.size)
        if wanted is first:
            axes, length = own, len(rows)
            check_length(length, config.length_max, name)
        elif len(rows) != length:
            raise BadTensor(
                f"input '{name}' has T = {len(rows)}, input '{first.name}' has T = {length}: all "
                "inputs of a request must have the same",
                field=name,
            )
        elif len(own) > len(axes):
            axes = own
        check_values(model, wanted, rows)
        arrays[name] = rows
    height = 1 if last_only else length
    check_reply(height, model, config.message_bytes_max, first.name)
    return joined(model, arrays), axes


def _step_axes(wanted: InputTensor, shape: Axes) -> Axes:
    """The axes of an input before those of one time step. Raises BadTensor."""
    axes = shape[: max(0, len(shape) - len(wanted.shape))]
    if shape[len(axes) :] != wanted.shape or len(axes) > 2:
        sizes = "".join(f", {size}" for size in wanted.shape)
        raise BadTensor(
            f"input '{wanted.name}' has shape {list(shape)}, must have [{sizes[2:]}], [T{sizes}] "
            f"or [1, T{sizes}] in a sequence",
            field=wanted.name,
        )
    if len(axes) == 2 and axes[0] != 1:
        raise BadTensor(
            f"input '{wanted.name}' has batch size {axes[0]}, must have 1 in a sequence: batches "
            "are formed of many sequences' requests",
            field=wanted.name,
        )
    return axes


def start_state(model: Model, inputs: Inputs) -> ImportedState | None:
    """The states that a START gives; None stands for the model's initial state.

    Each is [*shape], or has an axis of 1 for the batch. Raises BadTensor, NonFinite.
    """
    if (given := given_states(model, inputs)) is None:
        return None
    tensors = {}
    for name, state in signature_of(model).states.items():
        shape = state.tensor.shape
        values = state_in_shape(model, state, given[name], shape, state.batched(1))
        tensors[state.tensor.name] = values.reshape(shape)
    return ImportedState(tensors, 0)
