"""Converts a model's states and outputs to fields of messages and back, for all calls of a dialect.

It checks what a client sends against the model's spec: every state must be there once, with its
shape and dtype, and with values that the dtype can have. It must not know which call a message
belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from lstmserve.engine import Model
from lstmserve.engine.errors import BadTensor, Malformed, NonFinite
from lstmserve.rows import RowFormat, Rows
from lstmserve.server.codec import FLOAT, check_window, is_finite
from lstmserve.spec import RANK_MAX, TensorSpec
from lstmserve.wire.v1 import lstm_pb2 as pb

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Reply = pb.StepResponse | pb.StepManyResponse | pb.PredictResponse

NAMES_SHOWN, CHARACTERS_SHOWN = 8, 64


def put_outputs(reply: Reply, outputs: RowFormat, rows: Rows) -> None:
    """Sets y and y_ints of a reply to rows [N] of the model's outputs."""
    if not outputs.ints:
        reply.y = rows.tobytes()
        return
    floats, ints = outputs.floats_of(rows), outputs.ints_of(rows)
    assert ints is not None
    reply.y_ints.extend(ints.ravel().tolist())
    if floats is not None:
        reply.y = floats.tobytes()


def tensor(name: str, values: Array) -> pb.Tensor:
    """The message of an array of any shape."""
    message = pb.Tensor(name=name, shape=values.shape)
    if values.dtype == np.float32:
        message.floats = values.astype(FLOAT, copy=False).tobytes()
    else:
        message.ints.extend(values.astype(np.int64, copy=False).ravel().tolist())
    return message


def tensors(specs: Iterable[TensorSpec], values: Arrays) -> list[pb.Tensor]:
    """The messages of values [*, *shape] by name, in the specs' order."""
    return [tensor(spec.name, values[spec.name]) for spec in specs]


def read_tensors(
    specs: Sequence[TensorSpec],
    messages: Sequence[pb.Tensor],
    field: str,
    lead: tuple[int, ...] = (),
) -> dict[str, Array]:
    """The arrays [*lead, *shape] of all the specs' tensors by name, in the specs' order.

    `field` is where the client put them, for the errors. Without `lead` a shape may also be [size],
    as it is in a record of format 1. Floats may be infinite or NaN. Raises BadTensor.
    """
    names = {spec.name: None for spec in specs}
    given: dict[str, pb.Tensor] = {}
    for message in messages[: len(specs) + 1]:  # with one more, one is unknown or a repeat
        name = message.name
        if name not in names or name in given:
            what = "twice" if name in given else "which is no tensor of this model"
            text = f"{field} has {name[:CHARACTERS_SHOWN]!r}, {what}: {_wanted(names)}"
            raise BadTensor(text, field=field)
        given[name] = message
    if missing := [name for name in names if name not in given]:
        raise BadTensor(f"{field} has no {missing[0]}: {_wanted(names)}", field=field)
    return {spec.name: _read(given[spec.name], spec, field, lead) for spec in specs}


def check_states(model: Model, states: Arrays, field: str) -> None:
    """Checks a client's states [*, *shape] of all names. Raises NonFinite and BadTensor, which name
    the state."""
    for name, each in states.items():
        if not is_finite(each):
            raise NonFinite(f"{field} has NaN or infinite values in {name}", field=field)
        check_window(model, name, each, field)


def check_known(message: Message, field: str) -> None:
    """Raises Malformed where the message, or one within it, has fields that are not known here.

    UnknownFieldSet would make an object of each: a second's work for a message of 4 MiB.
    """
    size = message.ByteSize()
    message.DiscardUnknownFields()
    if message.ByteSize() != size:
        raise Malformed(
            f"{field} has fields that this release does not know: a later one exported it, "
            "open it at a server of that release",
            field=field,
        )


def checksum(values: Iterable[Array], step: int) -> int:
    """Computes State.crc32c over the states in the spec's order and the step."""
    content = [each.astype(each.dtype.newbyteorder("<"), copy=False).tobytes() for each in values]
    return int(google_crc32c.value(b"".join((*content, step.to_bytes(8, "little")))))


def _read(message: pb.Tensor, spec: TensorSpec, field: str, lead: tuple[int, ...]) -> Array:
    name, shape = spec.name, (*lead, *spec.shape)
    allowed = (list(shape),) if lead else (list(shape), [spec.size])
    if (given := message.shape[: RANK_MAX + 2]) not in allowed:
        text = f"{field}: {name} has the shape {given}, must have {list(shape)}"
        raise BadTensor(text, field=field)
    is_float = spec.dtype == "float32"
    if message.ints if is_float else message.floats:
        sent, wanted = ("ints", "floats") if is_float else ("floats", "ints")
        text = f"{field}: {name} is {spec.dtype}: send its values in {wanted}, not in {sent}"
        raise BadTensor(text, field=field)
    count = len(message.floats) / FLOAT.itemsize if is_float else len(message.ints)
    if count != math.prod(shape):
        text = f"{field}: {name} has {count:g} values, must have {math.prod(shape)}"
        raise BadTensor(text, field=field)
    if is_float:
        return np.frombuffer(message.floats, FLOAT).reshape(shape)
    ints = np.array(message.ints[:], np.int64).reshape(shape)
    if spec.dtype != "bool":
        return ints
    if ints.min() < 0 or ints.max() > 1:
        raise BadTensor(f"{field}: {name} is bool: its values must be 0 or 1", field=field)
    return ints.astype(np.bool_)


def _wanted(names: Iterable[str]) -> str:
    """The text of an error that names what to send; its length is bounded."""
    known = list(names)
    if not known:
        return "it has no states, so send none"
    rest = f" and {len(known) - NAMES_SHOWN} more" if len(known) > NAMES_SHOWN else ""
    return f"send {', '.join(known[:NAMES_SHOWN])}{rest}, each once"
