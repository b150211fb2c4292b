"""Converts a caller's inputs to the bytes of a step, and a reply's bytes to the caller's outputs.

All rules for the shapes of inputs are here. It guesses no shape and does no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lstmserve.client.records import ModelInfo
from lstmserve.errors import InvalidInput
from lstmserve.reasons import REASONS
from lstmserve.rows import Rows
from lstmserve.spec import INT_WIRE_BYTES, TensorSpec

Array = npt.NDArray[Any]
FLOAT = np.dtype("<f4")

Input: TypeAlias = npt.ArrayLike | Mapping[str, npt.ArrayLike]
"""x where a model has one input, and a dict by name where it has several."""
Output: TypeAlias = Any
"""y, an array, where a model has one output, and a dict of arrays by name where it has several.

None for one time step whose window is not whole yet.
"""


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
    array = as_array(value, expected)
    _check_shape(array, spec, expected)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{expected}, not {array.dtype}")
    if model.lstm is not None:
        count = model.lstm.num_embeddings
        if array.min() < 0 or array.max() >= count:
            raise refusal("BAD_TENSOR", f"a token is not in [0, {count})")
    elif is_beyond_int64(array):
        raise refusal("BAD_TENSOR", f"{spec.name} has a number beyond int64")
    return array


def _check_shape(array: Array, spec: TensorSpec, expected: str) -> None:
    lead = array.ndim - len(spec.shape)
    if lead not in (0, 1) or array.shape[lead:] != spec.shape or array.size == 0:
        raise ValueError(f"{expected}, not {list(array.shape)}")


def output_rows(model: ModelInfo, y: bytes, y_ints: Sequence[int]) -> Rows:
    """The rows [length] of a reply."""
    form = model.output_rows
    if not form.ints:
        return floats(y, -1, form.floats)
    ints = np.array(y_ints, np.int64).reshape(-1, form.ints)
    return form.join(floats(y, -1, form.floats) if form.floats else None, ints)


def output(model: ModelInfo, rows: Rows, single: bool, last_only: bool) -> Output:
    """What the caller gets of rows [T]: y [T, *shape], or [*shape] for a single time step or the
    last; a dict of them where there are several outputs.

    Without a row, the y of a single time step or of the last is None.
    """
    is_one = single or last_only
    if is_one and not len(rows):
        return None
    if len(model.outputs) == 1:
        y = rows[0] if is_one else rows
        shape = model.outputs[0].shape
        return y if len(shape) == 1 else y.reshape((*y.shape[:-1], *shape))
    columns = model.output_rows.split(rows[:1] if is_one else rows)
    # Copies: integers between floats are not aligned, and torch.from_numpy refuses those.
    arrays = {name: np.array(each, order="C") for name, each in columns.items()}
    return {name: each[0, ...] for name, each in arrays.items()} if is_one else arrays


def as_array(value: npt.ArrayLike, expected: str) -> Array:
    """The array of any type. Raises ValueError for ragged lists."""
    try:
        return np.asarray(value)
    except ValueError as error:  # numpy's word for ragged lists
        raise ValueError(f"{expected}, not ragged lists") from error


def is_beyond_int64(values: Array) -> bool:
    """Whether a number of an unsigned array is too large for int64."""
    return values.dtype.kind == "u" and values.max(initial=0) > np.iinfo(np.int64).max


def numbers(value: npt.ArrayLike, expected: str) -> npt.NDArray[np.float32]:
    """Little-endian float32 in C order. Raises ValueError for an array without numbers."""
    array = as_array(value, expected)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{expected}, not {array.dtype}")
    with np.errstate(over="ignore"):  # becomes infinity, which is refused
        return np.ascontiguousarray(array, FLOAT).reshape(array.shape)


def floats(data: bytes, *shape: int) -> npt.NDArray[np.float32]:
    """The wire's bytes as a writable float32 array of that shape."""
    return np.frombuffer(data, FLOAT).astype(np.float32).reshape(shape)
