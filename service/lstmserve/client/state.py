"""A session's state as the caller keeps it, and the messages of its tensors.

All rules for the shapes of states are here. It guesses no shape and does no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from lstmserve.client.arrays import FLOAT, Array, as_array, floats, is_beyond_int64, numbers
from lstmserve.client.records import ModelInfo
from lstmserve.spec import TensorSpec
from lstmserve.wire.v1 import lstm_pb2 as wire


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A session's state, to be kept or opened elsewhere with the same model.

    `tensors` are all of the model's states by name, in the spec's order; a State unpacks to them:
    `h, c = state` for an nn.LSTM, with h [num_layers, proj_size or hidden_size] and c [num_layers,
    hidden_size]. With `is_window` they are the last rows of the input: NAME.window of each input
    NAME, the oldest row first, and window.length, how many of them the session has given. Such a
    State does not unpack. `step` is the number of steps that led to it; `fingerprint` is its
    model's ("": not checked); `crc32c` is the server's checksum over tensors and step (0: not
    checked), so an edited copy needs crc32c=0.
    """

    tensors: Mapping[str, Array]
    step: int = 0
    fingerprint: str = ""
    crc32c: int = 0
    is_window: bool = False

    def __iter__(self) -> Iterator[Array]:
        """The tensors. Raises TypeError for a window, which `h, c = state` would take for h and
        c."""
        if self.is_window:
            raise TypeError(
                "the state of a model with a window is the last rows of its input, not h and c: "
                f"read them by name in .tensors, which has {', '.join(self.tensors)}"
            )
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
            is_window=model.window > 0,
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
            and all(map(np.array_equal, self.tensors.values(), other.tensors.values()))
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays


def _read_edition_1(message: wire.State, model: ModelInfo) -> None:
    """Adds the tensors of a State that has the bits of h and c as numbers. Raises ValueError."""
    names = {each.name: each for each in model.states}
    for name, bits in (("h", message.was_1), ("c", message.was_2)):
        spec = names.get(name)
        if model.kind != "lstm" or spec is None or len(bits) != spec.size:
            raise ValueError(f"not a state of {model.name}: it has h and c of other sizes")
        data = np.array(bits, "<u4").tobytes()
        message.tensors.add(name=name, shape=spec.shape, floats=data)


def write_tensors(tensors: Mapping[str, Array]) -> list[wire.Tensor]:
    """The messages of arrays: floats, or integers and bool. Raises ValueError for any others."""
    return [_write_tensor(name, np.asarray(each)) for name, each in tensors.items()]


def _write_tensor(name: str, values: Array) -> wire.Tensor:
    if values.dtype.kind == "f":
        content = numbers(values, name).tobytes()
        return wire.Tensor(name=name, shape=values.shape, floats=content)
    if values.dtype.kind not in "iub" or is_beyond_int64(values):
        raise ValueError(f"{name} must be of float32, int64 or bool, not {values.dtype}")
    return wire.Tensor(name=name, shape=values.shape, ints=values.astype(np.int64).ravel().tolist())


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
    if not names and given:
        raise ValueError(f"{model.name} has no states: give none")
    if not isinstance(given, Mapping) or set(given) != set(names):
        raise ValueError(f"{model.name} has the states {', '.join(names)}: give them by name")
    return {each.name: _state_tensor(each, given[each.name], *batch) for each in model.states}


def _state_tensor(spec: TensorSpec, value: npt.ArrayLike, *batch: int) -> Array:
    shape = (*batch, *spec.shape)
    expected = f"{spec.name} is {spec.dtype} of the shape {list(shape)}"
    kinds = {"float32": "fiub", "int64": "iu", "bool": "b"}[spec.dtype]
    part = numbers(value, expected) if spec.dtype == "float32" else as_array(value, expected)
    if part.dtype.kind not in kinds:
        raise ValueError(f"{expected}, not {part.dtype}")
    if part.shape != shape:
        raise ValueError(f"{expected}, not {list(part.shape)}")
    if is_beyond_int64(part):
        raise ValueError(f"{expected}, and has a number beyond int64")
    return part.astype(spec.dtype)
