"""The client's records of models, sessions and states, and the conversion of arrays to wire bytes.

All rules for the shapes of a caller's arrays are here. It guesses no shape and does no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc import StatusCode

from lstmserve.errors import InvalidInput, Unimplemented
from lstmserve.reasons import REASONS
from lstmserve.rows import RowFormat, Rows
from lstmserve.spec import INT_WIRE_BYTES, TensorSpec, tensor_messages_bytes
from lstmserve.wire.v1 import lstm_pb2 as wire

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

Array = npt.NDArray[Any]
FLOAT = np.dtype("<f4")

Input: TypeAlias = npt.ArrayLike | Mapping[str, npt.ArrayLike]
"""x where a model has one input, and a dict by name where it has several."""
Output: TypeAlias = Any
"""y, an array, where a model has one output, and a dict of arrays by name where it has several."""


@dataclass(frozen=True, slots=True)
class LstmInfo:
    """The sizes of an nn.LSTM and its head, in torch's names.

    With `num_embeddings` > 0 it reads tokens below that number instead of x.
    """

    input_size: int
    hidden_size: int
    num_layers: int
    proj_size: int
    bidirectional: bool
    output_size: int
    num_embeddings: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model. `length_max` is the longest T of one step.

    `inputs`, `outputs` and `states` have the name, shape and dtype of each, for one time step of
    one session. If `is_streaming` is False, the model can only predict. If `is_exact`, the bits of
    a result do not depend on its batch or chunk on that server; else they differed by `difference`
    at most when it started. `lstm` is None unless `kind` is "lstm".
    """

    name: str
    version: int
    fingerprint: str
    device: str
    length_max: int
    message_bytes_max: int
    kind: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[TensorSpec, ...]
    is_streaming: bool
    is_exact: bool
    difference: float
    lstm: LstmInfo | None
    input_rows: RowFormat = field(init=False, repr=False, compare=False)
    output_rows: RowFormat = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_rows", RowFormat(self.inputs))
        object.__setattr__(self, "output_rows", RowFormat(self.outputs))

    @property
    def output_bytes(self) -> int:
        """The most bytes that a row of the outputs takes on the wire."""
        return self.output_rows.wire_bytes

    @property
    def state_bytes(self) -> int:
        """The most bytes that a session's states take on the wire."""
        return tensor_messages_bytes(self.states)

    @classmethod
    def read(cls, model: wire.Model) -> ModelInfo:
        """Reads the message. Raises Unimplemented for a server that does not say its tensors."""
        spec = model.spec
        if not spec.kind:
            raise Unimplemented(
                "this server is of the first edition of lstmserve, which did not name its tensors: "
                "upgrade it, or use that edition's client",
                code=StatusCode.UNIMPLEMENTED,
            )
        return cls(
            name=model.name,
            version=model.version,
            fingerprint=model.fingerprint,
            device=model.device,
            length_max=model.length_max,
            message_bytes_max=model.message_bytes_max,
            kind=spec.kind,
            inputs=tuple(map(_tensor_spec, spec.inputs)),
            outputs=tuple(map(_tensor_spec, spec.outputs)),
            states=tuple(map(_tensor_spec, spec.states)),
            is_streaming=spec.is_streaming,
            is_exact=spec.is_exact,
            difference=spec.difference,
            lstm=_lstm_info(spec.lstm) if spec.HasField("lstm") else None,
        )


def _tensor_spec(spec: wire.TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, tuple(spec.shape), spec.dtype)  # type: ignore[arg-type]  # it checks


def _lstm_info(spec: wire.LstmSpec) -> LstmInfo:
    return LstmInfo(
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

    `tensors` are all of the model's states by name, in the spec's order; a State unpacks to them:
    `h, c = state` for an nn.LSTM, with h [num_layers, proj_size or hidden_size] and c [num_layers,
    hidden_size]. `step` is the number of steps that led to it; `fingerprint` is its model's ("":
    not checked); `crc32c` is the server's checksum over tensors and step (0: not checked), so an
    edited copy needs crc32c=0.
    """

    tensors: Mapping[str, Array]
    step: int = 0
    fingerprint: str = ""
    crc32c: int = 0

    def __iter__(self) -> Iterator[Array]:
        return iter(self.tensors.values())

    def write(self) -> wire.State:
        """The message."""
        return wire.State(
            tensors=write_tensors(self.tensors),
            step=self.step,
            fingerprint=self.fingerprint,
            crc32c=self.crc32c,
        )

    @classmethod
    def read(cls, state: wire.State, model: ModelInfo) -> State:
        """Reads the message. Raises ValueError unless it has the model's states."""
        return cls(
            tensors=read_tensors(state.tensors, model),
            step=state.step,
            fingerprint=state.fingerprint,
            crc32c=state.crc32c,
        )

    def to_bytes(self) -> bytes:
        """A serialised lstmserve.v1.State, readable from any language."""
        return self.write().SerializeToString()

    @classmethod
    def from_bytes(cls, data: bytes, model: ModelInfo) -> State:
        """Reads what to_bytes wrote, also in the first edition.

        Raises ValueError for anything else, and for states of other names and sizes.
        """
        try:
            message = wire.State.FromString(data)
        except DecodeError as error:
            raise ValueError("not a serialised lstmserve.v1.State") from error
        if len(UnknownFieldSet(message)):
            raise ValueError("a state of a later release of lstmserve: read it with that release")
        if message.was_1 or message.was_2:
            _read_edition_1(message, model)
        return cls.read(message, model)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return NotImplemented
        return (
            self.step == other.step
            and list(self.tensors) == list(other.tensors)
            and all(map(np.array_equal, self, other))
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays


def _read_edition_1(message: wire.State, model: ModelInfo) -> None:
    """Adds the tensors of a State that has h and c as packed floats. Raises ValueError."""
    names = {each.name: each for each in model.states}
    for name, data in (("h", message.was_1), ("c", message.was_2)):
        spec = names.get(name)
        if model.kind != "lstm" or spec is None or len(data) != spec.bytes:
            raise ValueError(f"not a state of {model.name}: it has h and c of other sizes")
        message.tensors.add(name=name, shape=spec.shape, floats=data)


def write_tensors(tensors: Mapping[str, Array]) -> list[wire.Tensor]:
    """The messages of arrays: floats, or integers and bool. Raises ValueError for any others."""
    return [_write_tensor(name, np.asarray(each)) for name, each in tensors.items()]


def _write_tensor(name: str, values: Array) -> wire.Tensor:
    if values.dtype.kind == "f":
        content = numbers(values, name).tobytes()
        return wire.Tensor(name=name, shape=values.shape, floats=content)
    if values.dtype.kind not in "iub" or _is_beyond_int64(values):
        raise ValueError(f"{name} must be of float32, int64 or bool, not {values.dtype}")
    return wire.Tensor(name=name, shape=values.shape, ints=values.astype(np.int64).ravel().tolist())


def _is_beyond_int64(values: Array) -> bool:
    return values.dtype.kind == "u" and values.max(initial=0) > np.iinfo(np.int64).max


def read_tensors(
    messages: Iterable[wire.Tensor], model: ModelInfo, *batch: int
) -> dict[str, Array]:
    """The model's states, each [*batch, *shape]. Raises ValueError for any others.

    Without a batch a shape may also be [size]: so it is in a record of format 1.
    """
    found = {each.name: each for each in messages}
    if set(found) != {each.name for each in model.states}:
        names = ", ".join(each.name for each in model.states)
        raise ValueError(f"not a state of {model.name}: its states are {names}")
    tensors: dict[str, Array] = {}
    for spec in model.states:
        message, shape = found[spec.name], (*batch, *spec.shape)
        is_float = spec.dtype == "float32"
        count = len(message.floats) / FLOAT.itemsize if is_float else len(message.ints)
        allowed = (shape,) if batch else (shape, (spec.size,))
        if tuple(message.shape) not in allowed or count != math.prod(shape):
            raise ValueError(
                f"not a state of {model.name}: {spec.name} is {list(message.shape)} of {count:g} "
                f"values, must be {list(shape)}"
            )
        values = floats(message.floats, -1) if is_float else np.array(message.ints[:], spec.dtype)
        tensors[spec.name] = values.reshape(shape)
    return tensors


def state_tensors(
    model: ModelInfo, given: Mapping[str, npt.ArrayLike], *batch: int
) -> dict[str, Array]:
    """A caller's states of all names, each [*batch, *shape]. Raises ValueError for any others."""
    names = [each.name for each in model.states]
    if not isinstance(given, Mapping) or set(given) != set(names):
        raise ValueError(f"{model.name} has the states {', '.join(names)}: give them by name")
    return {each.name: _state_tensor(each, given[each.name], *batch) for each in model.states}


def _state_tensor(spec: TensorSpec, value: npt.ArrayLike, *batch: int) -> Array:
    shape = (*batch, *spec.shape)
    expected = f"{spec.name} is {spec.dtype} of the shape {list(shape)}"
    kinds = {"float32": "fiub", "int64": "iu", "bool": "b"}[spec.dtype]
    part = numbers(value, expected) if spec.dtype == "float32" else _array(value, expected)
    if part.dtype.kind not in kinds:
        raise ValueError(f"{expected}, not {part.dtype}")
    if part.shape != shape:
        raise ValueError(f"{expected}, not {list(part.shape)}")
    if _is_beyond_int64(part):
        raise ValueError(f"{expected}, and has a number beyond int64")
    return part.astype(spec.dtype)


class StepInput(NamedTuple):
    """One step's input in wire form.

    `x` has the bytes of float32 [length, floats], `tokens` the values of int64 [length, ints].
    `single`: the caller gave one time step without its axis, and gets y without it.
    """

    x: bytes
    tokens: list[int]
    length: int
    single: bool

    @property
    def size(self) -> int:
        """Upper bound of its bytes on the wire."""
        return len(self.x) + INT_WIRE_BYTES * len(self.tokens)

    def part(self, start: int, stop: int) -> StepInput:
        """The time steps [start, stop)."""
        floats, ints = len(self.x) // self.length, len(self.tokens) // self.length
        x = self.x[start * floats : stop * floats]
        return StepInput(x, self.tokens[start * ints : stop * ints], stop - start, single=False)


def step_input(model: ModelInfo, value: Input) -> StepInput:
    """Checks a step's input: each tensor [*shape], or [T, *shape] of T time steps.

    Raises ValueError for any other shape or type, with what is expected. Raises InvalidInput for
    what the server would refuse, so that a stream ends there and sends nothing after it.
    """
    if len(model.inputs) == 1:
        spec = model.inputs[0]
        read = _read_floats if spec.dtype == "float32" else _read_ints
        array = read(model, spec, value)  # type: ignore[arg-type]  # refuses a dict
        single = array.ndim == len(spec.shape)
        length = 1 if single else len(array)
        if spec.dtype == "float32":
            step = StepInput(array.tobytes(), [], length, single)
        else:
            step = StepInput(b"", array.ravel().tolist(), length, single)
    else:
        step = _several(model, value)
    if step.length > model.length_max:
        takes = f"{model.name} takes {model.length_max} at once: step them in parts"
        raise refusal("TOO_LONG", f"{step.length} rows, {takes}")
    return step


def _several(model: ModelInfo, value: Input) -> StepInput:
    """The input of a model with several, by name."""
    names = [each.name for each in model.inputs]
    if not isinstance(value, Mapping) or set(value) != set(names):
        raise ValueError(f"{model.name} takes a dict of {', '.join(names)}")
    arrays: dict[str, Array] = {}
    lengths: dict[str, int | None] = {}  # None: one time step without its axis
    for spec in model.inputs:
        read = _read_floats if spec.dtype == "float32" else _read_ints
        array = arrays[spec.name] = read(model, spec, value[spec.name])
        lengths[spec.name] = None if array.ndim == len(spec.shape) else len(array)
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {list(each.shape)}" for name, each in arrays.items())
        raise ValueError(f"{model.name}'s inputs must have the same T, not {shown}")
    length = lengths[names[0]]
    single, rows = length is None, length or 1
    form = model.input_rows
    packed = form.pack({n: each[None] if single else each for n, each in arrays.items()})
    floats, ints = form.floats_of(packed), form.ints_of(packed)
    return StepInput(
        b"" if floats is None else floats.astype(FLOAT).tobytes(),
        [] if ints is None else ints.ravel().tolist(),
        rows,
        single,
    )


def refusal(reason: str, message: str) -> InvalidInput:
    """The error that the server would send."""
    return InvalidInput(message, code=REASONS[reason].code, reason=reason)


def _read_floats(model: ModelInfo, spec: TensorSpec, value: npt.ArrayLike) -> Array:
    """float32 [*shape] or [T, *shape]."""
    shape = ", ".join(map(str, spec.shape))
    t = f"[T, {shape}]" if shape else "[T]"
    expected = f"{model.name} takes {spec.name} of shape [{shape}] or {t}, T >= 1"
    array = numbers(value, expected)
    _check_shape(array, spec, expected)
    if not np.isfinite(array).all():
        raise refusal("NON_FINITE", f"{spec.name} has NaN or infinite values")
    return array


def _read_ints(model: ModelInfo, spec: TensorSpec, value: npt.ArrayLike) -> Array:
    """int64 [*shape] or [T, *shape]."""
    if spec.shape:
        shape = ", ".join(map(str, spec.shape))
        expected = f"{model.name} takes {spec.name}: integers [{shape}] or [T, {shape}], T >= 1"
    else:
        expected = f"{model.name} takes {spec.name}: one integer, or [T] of them, T >= 1"
    array = _array(value, expected)
    _check_shape(array, spec, expected)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{expected}, not {array.dtype}")
    if model.lstm is not None:
        count = model.lstm.num_embeddings
        if array.min() < 0 or array.max() >= count:
            raise refusal("BAD_TENSOR", f"a token is not in [0, {count})")
    elif _is_beyond_int64(array):
        raise refusal("BAD_TENSOR", f"{spec.name} has a number beyond int64")
    return array


def _check_shape(array: Array, spec: TensorSpec, expected: str) -> None:
    lead = array.ndim - len(spec.shape)
    if lead not in (0, 1) or array.shape[lead:] != spec.shape or array.size == 0:
        raise ValueError(f"{expected}, not {list(array.shape)}")


def _array(value: npt.ArrayLike, expected: str) -> Array:
    try:
        return np.asarray(value)
    except ValueError as error:  # numpy's word for ragged lists
        raise ValueError(f"{expected}, not ragged lists") from error


def numbers(value: npt.ArrayLike, expected: str) -> npt.NDArray[np.float32]:
    """Little-endian float32 in C order. Raises ValueError for an array without numbers."""
    array = _array(value, expected)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{expected}, not {array.dtype}")
    with np.errstate(over="ignore"):  # becomes infinity, which is refused
        return np.ascontiguousarray(array, FLOAT).reshape(array.shape)


def floats(data: bytes, *shape: int) -> npt.NDArray[np.float32]:
    """The wire's bytes as a writable float32 array of that shape."""
    return np.frombuffer(data, FLOAT).astype(np.float32).reshape(shape)


def output_rows(model: ModelInfo, y: bytes, y_ints: Sequence[int]) -> Rows:
    """The rows [length] of a reply."""
    form = model.output_rows
    if not form.ints:
        return floats(y, -1, form.floats)
    ints = np.array(y_ints, np.int64).reshape(-1, form.ints)
    return form.join(floats(y, -1, form.floats) if form.floats else None, ints)


def output(model: ModelInfo, rows: Rows, single: bool, last_only: bool) -> Output:
    """What the caller gets of rows [T]: y [T, *shape], or [*shape] for a single time step or the
    last; a dict of them where there are several outputs."""
    is_one = single or last_only
    if len(model.outputs) == 1:
        y = rows[0] if is_one else rows
        shape = model.outputs[0].shape
        return y if len(shape) == 1 else y.reshape((*y.shape[:-1], *shape))
    columns = model.output_rows.split(rows[:1] if is_one else rows)
    # Copies: integers between floats are not aligned, and torch.from_numpy refuses those.
    arrays = {name: np.array(each, order="C") for name, each in columns.items()}
    return {name: each[0, ...] for name, each in arrays.items()} if is_one else arrays
