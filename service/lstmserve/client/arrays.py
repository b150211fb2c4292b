"""Owns the shape rules: a caller's arrays to the wire's bytes and back. Guesses nothing, no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmserve.client.errors import InvalidInput
from lstmserve.reasons import REASONS

if TYPE_CHECKING:
    from lstmserve.client.records import ModelInfo

Floats = npt.NDArray[np.float32]
FLOAT = np.dtype("<f4")


class Rows(NamedTuple):
    """One step's input for the wire: `x` bytes of float32 [length, I], or `tokens` [length].

    `single`: the caller gave one time step without its axis, and gets y without it.
    """

    x: bytes
    tokens: list[int]
    length: int
    single: bool

    @property
    def size(self) -> int:
        """Bytes on the wire, at most."""
        return len(self.x) + 10 * len(self.tokens)

    def part(self, start: int, stop: int) -> Rows:
        """Time steps from start to before stop."""
        width = len(self.x) // self.length
        x = self.x[start * width : stop * width]
        return Rows(x, self.tokens[start:stop], stop - start, single=False)


def rows(model: ModelInfo, value: npt.ArrayLike) -> Rows:
    """A step's input: [I] or [T, I] of numbers; for tokens a scalar or [T] of integers.

    Raises ValueError for anything else, and says what is expected. Raises InvalidInput for what
    the server would refuse, so that a stream stops before it and sends nothing that comes after.
    """
    step = _tokens(model, value) if model.num_embeddings else _x(model, value)
    if step.length > model.length_max:
        takes = f"{model.name} takes {model.length_max} at once: step them in parts"
        raise refusal("TOO_LONG", f"{step.length} rows, {takes}")
    return step


def refusal(reason: str, message: str) -> InvalidInput:
    """What the server would say."""
    return InvalidInput(message, code=REASONS[reason].code, reason=reason)


def _x(model: ModelInfo, value: npt.ArrayLike) -> Rows:
    width = model.input_size
    expected = f"{model.name} takes x of shape [{width}] or [T, {width}], T >= 1"
    x = numbers(value, expected)
    if x.ndim not in (1, 2) or x.shape[-1] != width or x.size == 0:
        raise ValueError(f"{expected}, not {list(x.shape)}")
    if not np.isfinite(x).all():
        raise refusal("NON_FINITE", "x has NaN or infinite values")
    return Rows(x.tobytes(), [], x.size // width, x.ndim == 1)


def _tokens(model: ModelInfo, value: npt.ArrayLike) -> Rows:
    expected = f"{model.name} takes tokens: one integer, or [T] of them, T >= 1"
    tokens = _array(value, expected)
    if tokens.ndim > 1 or tokens.size == 0:
        raise ValueError(f"{expected}, not {list(tokens.shape)}")
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"{expected}, not {tokens.dtype}")
    if tokens.min() < 0 or tokens.max() >= model.num_embeddings:
        raise refusal("BAD_TENSOR", f"a token is not in [0, {model.num_embeddings})")
    return Rows(b"", tokens.reshape(-1).tolist(), tokens.size, tokens.ndim == 0)


def _array(value: npt.ArrayLike, expected: str) -> npt.NDArray[np.generic]:
    try:
        return np.asarray(value)
    except ValueError as error:  # numpy's word for ragged lists
        raise ValueError(f"{expected}, not ragged lists") from error


def numbers(value: npt.ArrayLike, expected: str) -> Floats:
    """As little-endian float32, C order. Raises ValueError for what is not numbers."""
    array = _array(value, expected)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{expected}, not {array.dtype}")
    with np.errstate(over="ignore"):  # becomes infinity, and is refused
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
