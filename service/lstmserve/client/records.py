"""The client's records of models, sessions and states, and the conversion of arrays to wire bytes.

All rules for the shapes of a caller's arrays are here. Guesses no shape, does no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from lstmserve.errors import InvalidInput
from lstmserve.reasons import REASONS
from lstmserve.wire.v1 import lstm_pb2 as wire

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

Floats = npt.NDArray[np.float32]
FLOAT = np.dtype("<f4")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model in torch.nn.LSTM's names; `length_max` is the longest T of one step.

    With `num_embeddings` > 0 it reads tokens instead of x. A `bidirectional` one can only predict.
    """

    name: str
    version: int
    fingerprint: str
    device: str
    length_max: int
    message_bytes_max: int
    input_size: int
    hidden_size: int
    num_layers: int
    proj_size: int
    bidirectional: bool
    output_size: int
    num_embeddings: int

    @property
    def layers(self) -> int:
        """First axis of h and c: num_layers x directions."""
        return self.num_layers * (2 if self.bidirectional else 1)

    @property
    def state_size(self) -> int:
        """Width of h; c is hidden_size wide."""
        return self.proj_size or self.hidden_size

    @classmethod
    def read(cls, model: wire.Model) -> ModelInfo:
        spec = model.spec
        return cls(
            name=model.name,
            version=model.version,
            fingerprint=model.fingerprint,
            device=model.device,
            length_max=model.length_max,
            message_bytes_max=model.message_bytes_max,
            input_size=spec.input_size,
            hidden_size=spec.hidden_size,
            num_layers=spec.num_layers,
            proj_size=spec.proj_size,
            bidirectional=spec.bidirectional,
            output_size=spec.output_size,
            num_embeddings=spec.num_embeddings,
        )


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as the server sees it. `step` is the last applied, 0: none."""

    id: str
    model: str
    version: int
    incarnation: int
    step: int
    durable_step: int
    pending_steps: int
    ttl_s: float
    open_time: datetime
    expire_time: datetime

    @classmethod
    def read(cls, session: wire.Session) -> SessionInfo:
        return cls(
            id=session.id,
            model=session.model,
            version=session.version,
            incarnation=session.incarnation,
            step=session.step,
            durable_step=session.durable_step,
            pending_steps=session.pending_steps,
            ttl_s=session.ttl.ToTimedelta().total_seconds(),
            open_time=_utc(session.open_time),
            expire_time=_utc(session.expire_time),
        )


def _utc(moment: Timestamp) -> datetime:
    return moment.ToDatetime(tzinfo=UTC)


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A session's state, to be kept or opened elsewhere with the same model.

    h float32 [layers, proj_size or hidden_size], c float32 [layers, hidden_size]; `step` is the
    number of steps that led to it; `fingerprint` is its model's ("": not checked); `crc32c` is the
    server's checksum over h, c and step (0: not checked), so an edited copy needs crc32c=0.
    """

    h: Floats
    c: Floats
    step: int = 0
    fingerprint: str = ""
    crc32c: int = 0

    def write(self) -> wire.State:
        """The message, which has no sizes: the model knows them."""
        return wire.State(
            h=self.h.astype(FLOAT).tobytes(),
            c=self.c.astype(FLOAT).tobytes(),
            step=self.step,
            fingerprint=self.fingerprint,
            crc32c=self.crc32c,
        )

    @classmethod
    def read(cls, state: wire.State, layers: int) -> State:
        """Reads the message. Raises ValueError unless it has that many layers."""
        return cls(
            h=floats(state.h, layers, -1),
            c=floats(state.c, layers, -1),
            step=state.step,
            fingerprint=state.fingerprint,
            crc32c=state.crc32c,
        )

    def to_bytes(self) -> bytes:
        """A serialised lstmserve.v1.State, readable from any language."""
        return self.write().SerializeToString()

    @classmethod
    def from_bytes(cls, data: bytes, model: ModelInfo) -> State:
        """Reads what to_bytes wrote. Raises ValueError for anything else, and for other sizes."""
        try:
            message = wire.State.FromString(data)
        except DecodeError as error:
            raise ValueError("not a serialised lstmserve.v1.State") from error
        if len(UnknownFieldSet(message)):
            raise ValueError("a state of a later release of lstmserve: read it with that release")
        sizes = (model.layers * model.state_size * 4, model.layers * model.hidden_size * 4)
        if (len(message.h), len(message.c)) != sizes:
            raise ValueError(f"not a state of {model.name}: its h and c take {sizes} bytes")
        return cls.read(message, model.layers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return NotImplemented
        return self.step == other.step and all(
            np.array_equal(a, b) for a, b in ((self.h, other.h), (self.c, other.c))
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays


class StepInput(NamedTuple):
    """One step's input in wire form: `x` bytes of float32 [length, I], or `tokens` [length].

    `single`: the caller gave one time step without its axis, and gets y without it.
    """

    x: bytes
    tokens: list[int]
    length: int
    single: bool

    @property
    def size(self) -> int:
        """Upper bound of its bytes on the wire."""
        return len(self.x) + 10 * len(self.tokens)

    def part(self, start: int, stop: int) -> StepInput:
        """The time steps [start, stop)."""
        width = len(self.x) // self.length
        x = self.x[start * width : stop * width]
        return StepInput(x, self.tokens[start:stop], stop - start, single=False)


def step_input(model: ModelInfo, value: npt.ArrayLike) -> StepInput:
    """Checks a step's input: [I] or [T, I] of numbers; for tokens a scalar or [T] of integers.

    Raises ValueError for any other shape or type, with what is expected. Raises InvalidInput for
    what the server would refuse, so that a stream ends there and sends nothing after it.
    """
    step = _tokens(model, value) if model.num_embeddings else _x(model, value)
    if step.length > model.length_max:
        takes = f"{model.name} takes {model.length_max} at once: step them in parts"
        raise refusal("TOO_LONG", f"{step.length} rows, {takes}")
    return step


def refusal(reason: str, message: str) -> InvalidInput:
    """The error that the server would send."""
    return InvalidInput(message, code=REASONS[reason].code, reason=reason)


def _x(model: ModelInfo, value: npt.ArrayLike) -> StepInput:
    width = model.input_size
    expected = f"{model.name} takes x of shape [{width}] or [T, {width}], T >= 1"
    x = numbers(value, expected)
    if x.ndim not in (1, 2) or x.shape[-1] != width or x.size == 0:
        raise ValueError(f"{expected}, not {list(x.shape)}")
    if not np.isfinite(x).all():
        raise refusal("NON_FINITE", "x has NaN or infinite values")
    return StepInput(x.tobytes(), [], x.size // width, x.ndim == 1)


def _tokens(model: ModelInfo, value: npt.ArrayLike) -> StepInput:
    expected = f"{model.name} takes tokens: one integer, or [T] of them, T >= 1"
    tokens = _array(value, expected)
    if tokens.ndim > 1 or tokens.size == 0:
        raise ValueError(f"{expected}, not {list(tokens.shape)}")
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"{expected}, not {tokens.dtype}")
    if tokens.min() < 0 or tokens.max() >= model.num_embeddings:
        raise refusal("BAD_TENSOR", f"a token is not in [0, {model.num_embeddings})")
    return StepInput(b"", tokens.reshape(-1).tolist(), tokens.size, tokens.ndim == 0)


def _array(value: npt.ArrayLike, expected: str) -> npt.NDArray[np.generic]:
    try:
        return np.asarray(value)
    except ValueError as error:  # numpy's word for ragged lists
        raise ValueError(f"{expected}, not ragged lists") from error


def numbers(value: npt.ArrayLike, expected: str) -> Floats:
    """Little-endian float32 in C order. Raises ValueError for an array without numbers."""
    array = _array(value, expected)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{expected}, not {array.dtype}")
    with np.errstate(over="ignore"):  # becomes infinity, which is refused
        return np.ascontiguousarray(array, FLOAT).reshape(array.shape)


def floats(data: bytes, *shape: int) -> Floats:
    """The wire's bytes as a writable float32 array of that shape."""
    return np.frombuffer(data, FLOAT).astype(np.float32).reshape(shape)


def shaped(y: Floats, single: bool, last_only: bool) -> Floats:
    """y of one step as the caller gets it: [T, O], or [O] for a single time step or the last."""
    return y[0] if single or last_only else y


def state_parts(
    model: ModelInfo, h: npt.ArrayLike | None, c: npt.ArrayLike | None, *batch: int
) -> tuple[Floats, Floats]:
    """h [layers, *batch, proj_size or hidden_size] and c [layers, *batch, hidden_size] as float32.

    A missing one is zeros. Raises ValueError for any other shape.
    """
    return (
        _state_part("h", h, (model.layers, *batch, model.state_size)),
        _state_part("c", c, (model.layers, *batch, model.hidden_size)),
    )


def _state_part(name: str, value: npt.ArrayLike | None, shape: tuple[int, ...]) -> Floats:
    if value is None:
        return np.zeros(shape, FLOAT)
    expected = f"{name} has the shape {list(shape)}"
    part = numbers(value, expected)
    if part.shape != shape:
        raise ValueError(f"{expected}, not {list(part.shape)}")
    return part
