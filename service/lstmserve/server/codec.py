"""Parses messages and turns their fields into arrays that the engine can trust.

It checks every array against the model's spec: shape, finite values, range of tokens. It raises
BadTensor, EmptyInput, NonFinite, TooLong and Malformed, and submits nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message

from lstmserve.engine import Model
from lstmserve.engine.errors import (
    BadTensor,
    EmptyInput,
    Malformed,
    NonFinite,
    PendingBytesFull,
    TooLong,
)
from lstmserve.rows import FLOATS, Rows
from lstmserve.server.message_sizes import state_bytes
from lstmserve.spec import KNOWN

Request = TypeVar("Request", bound=Message)

FLOAT = np.dtype("<f4")
TRIAL_FACTOR, TRIAL_BYTES = 4, 16 << 20
RETRY_S = 1.0


def parse(kind: type[Request], content: bytes) -> Request:
    """The message in `content`. Raises Malformed, or PendingBytesFull if memory ran out.

    protobuf raises one error for both. So a refused message is parsed again between two trial
    allocations of several times its size: if those succeed, the message is at fault.
    """
    try:
        return kind.FromString(content)
    except DecodeError:
        pass
    except MemoryError:
        raise _out_of_memory() from None
    try:
        _try_memory(len(content))
        return kind.FromString(content)
    except MemoryError:
        raise _out_of_memory() from None
    except DecodeError as error:
        _try_memory_after(len(content))
        raise Malformed(f"not a {kind.DESCRIPTOR.name}") from error


def _try_memory(size: int) -> None:
    """Raises MemoryError. It never touches the pages, so it takes a few microseconds."""
    bytearray(TRIAL_FACTOR * size + TRIAL_BYTES)


def _try_memory_after(size: int) -> None:
    try:
        _try_memory(size)
    except MemoryError:
        raise _out_of_memory() from None


def _out_of_memory() -> PendingBytesFull:
    return PendingBytesFull("the server has no memory for this message now", retry_s=RETRY_S)


def input_rows(model: Model, x: bytes, tokens: Sequence[int], length: int) -> Rows:
    """`length` rows of the model's inputs, whose floats may not be finite.

    Raises EmptyInput, and BadTensor for another count of values or a token out of range.
    """
    form = model.inputs
    if not (x or tokens):
        raise EmptyInput("there are no rows", field="x" if form.floats else "tokens")
    if tokens and not form.ints:
        raise BadTensor("this model takes x, not tokens", field="tokens")
    if x and not form.floats:
        raise BadTensor("this model takes tokens, not x", field="x")
    if len(x) != 4 * length * form.floats:
        raise BadTensor(
            f"x has {len(x) / 4:g} values, must have {length} x {form.floats}", field="x"
        )
    if len(tokens) != length * form.ints:
        expected = f"{length}" if form.ints == 1 else f"{length} x {form.ints}"
        raise BadTensor(f"tokens has {len(tokens)} values, must have {expected}", field="tokens")
    floats = ints = None
    if form.floats:
        floats = np.frombuffer(x, FLOAT).reshape(length, form.floats)
    if form.ints:
        ints = np.array(tokens, np.int64).reshape(length, form.ints)
        check_tokens(model, ints)
    return form.join(floats, ints)


def check_tokens(
    model: Model, ints: npt.NDArray[np.int64], field: str = "tokens", what: str = "a token"
) -> None:
    """Raises BadTensor for an id outside an nn.LSTM's embedding.

    onnxruntime would read the last row for -1, and fail the whole batch for one too large.
    """
    if model.spec.lstm is None:
        return
    count = model.spec.lstm.num_embeddings
    if ints.min() < 0 or ints.max() >= count:
        raise BadTensor(f"{what} is not in [0, {count})", field=field)


def check_window(model: Model, name: str, values: npt.NDArray[Any], field: str) -> None:
    """Raises BadTensor for values of a state that no session of a model with a window has.

    The network would read them as rows: it would take unknown ones for known, or fail for a whole
    batch at a token out of range. `field` is where the client put them.
    """
    if not model.spec.window:
        return
    if name == KNOWN:
        most = model.spec.window - 1
        if values.min() < 0 or values.max() > most:
            text = f"{name} counts the rows that a session has given: it must be in [0, {most}]"
            raise BadTensor(text, field=field)
    elif values.dtype == np.int64:
        check_tokens(model, values, field, f"a token of {name}")


def check_length(length: int, length_max: int, field: str = "length") -> None:
    """Checks the length of one step or sequence. Raises Malformed, EmptyInput, TooLong."""
    if length < 0:
        raise Malformed(f"a length is {length}, must not be negative", field=field)
    if length == 0:
        raise EmptyInput("there are no rows", field=field)
    if length > length_max:
        raise TooLong(
            f"{length} rows, at most {length_max}: send them as several steps",
            field=field,
            metadata={"length_max": str(length_max)},
        )


def check_reply(
    height: int, model: Model, message_bytes_max: int | None, field: str = "lengths"
) -> None:
    """Raises TooLong for `height` rows of outputs that no message can hold, before they are
    computed."""
    row_bytes = model.outputs.wire_bytes
    if message_bytes_max is not None and height * row_bytes > message_bytes_max:
        raise TooLong(
            f"the reply would have {height} rows of {row_bytes} bytes, more than a message holds: "
            "send less at once, or set last_only",
            field=field,
            metadata={"message_bytes_max": str(message_bytes_max)},
        )


def check_final_states(count: int, model: Model, message_bytes_max: int | None, field: str) -> None:
    """Raises TooLong for the states of `count` sequences that no message can hold."""
    each_bytes = state_bytes(model)
    if message_bytes_max is not None and count * each_bytes > message_bytes_max:
        raise TooLong(
            f"the reply would have the states of {count} sequences, {each_bytes} bytes each, more "
            "than a message holds: send fewer sequences at once, or do not ask for states",
            field=field,
            metadata={"message_bytes_max": str(message_bytes_max)},
        )


def is_finite(x: npt.NDArray[Any]) -> bool:
    """Whether no float is NaN or infinite: onnxruntime would turn those into plausible numbers.

    `x` are rows of any RowFormat, or any other array.
    """
    if x.dtype.names:
        x = x[FLOATS]
    if x.dtype != np.float32:
        return True
    # One product is faster than a mask. If it is not finite, it may have overflowed. vdot does not
    # warn of that; dot does, and suppressing its warning takes four times as long as the product.
    return math.isfinite(np.vdot(x, x)) or bool(np.isfinite(x).all())


def check_finite(x: npt.NDArray[Any], field: str) -> None:
    """Raises NonFinite, which names the field, if a value of x is NaN or infinite."""
    if not is_finite(x):
        raise NonFinite(f"{field} has NaN or infinite values", field=field)


def sequence_lengths(lengths: Sequence[int], length_max: int) -> npt.NDArray[np.int32]:
    """The lengths as an array [B], each checked to be in [1, length_max]."""
    for length in {min(lengths), max(lengths)}:
        check_length(length, length_max, "lengths")
    return np.array(lengths, np.int32)
