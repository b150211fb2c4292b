"""Golden vectors: inputs with the outputs a model must give, and the parity gate. Runs no model."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from lstmserve.spec import LstmSpec

Number = TypeVar("Number", bound=np.generic)
Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]

ABSOLUTE = 1e-5
RELATIVE = 2e-5
TORCH_FACTOR = 4.0
# Relative to the largest value, or to 1 if that is larger. In float32 a sum of 65,536 terms, the
# widest layer there is, is wrong by at most 65,536 x 2^-24 = 0.004 of them. If torch is wrong by
# more than 0.01, the network amplifies rounding errors, and its answers on such rows prove nothing.
TORCH_ERROR_MAX = 0.01
BYTES_MAX = 1 << 30  # unpacked


AGAIN = "export the model again"


class InvalidGolden(ValueError):
    """A golden.npz is not what dump_golden wrote. The message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Golden:
    """N sequences and the outputs they must give; L is num_layers * directions.

    x float32 [N, T, I] or tokens int64 [N, T]; lengths int32 [N]; h0 float32 [L, N, state] and
    c0 [L, N, H]. y float64 [N, T, O], or [N, O] for the last time step only; hn and cn float64 as
    h0 and c0, or None if they are unknown. `torch_error` is max |torch float32 - float64| over y,
    hn and cn: the error of the reference itself.
    """

    x: Array
    lengths: npt.NDArray[np.int32]
    h0: npt.NDArray[np.float32]
    c0: npt.NDArray[np.float32]
    y: Floats
    hn: Floats | None
    cn: Floats | None
    torch_error: float

    def part(self, rows: slice) -> Golden:
        """Some of the sequences."""
        return Golden(
            x=self.x[rows],
            lengths=self.lengths[rows],
            h0=self.h0[:, rows],
            c0=self.c0[:, rows],
            y=self.y[rows],
            hn=None if self.hn is None else self.hn[:, rows],
            cn=None if self.cn is None else self.cn[:, rows],
            torch_error=self.torch_error,
        )


def torch_error_max(case: Golden) -> float:
    """The largest torch_error with which the case proves something."""
    known = [each for each in (case.y, case.hn, case.cn) if each is not None]
    return TORCH_ERROR_MAX * max(1.0, *(float(np.abs(each).max(initial=0)) for each in known))


def check_golden(cases: Mapping[str, Golden], spec: LstmSpec) -> None:
    """Raises InvalidGolden unless the cases fit the spec and prove something."""
    if not cases:
        raise InvalidGolden(f"golden.npz has no rows, so it proves nothing: {AGAIN}")
    for name, case in cases.items():
        for fault in _faults(case, spec):
            raise InvalidGolden(f"golden.npz: {name[:40]!r}: {fault}: {AGAIN}")


def _faults(case: Golden, spec: LstmSpec) -> Iterator[str]:
    """The faults of a case. A check may rely on those before it, as the first fault is raised."""
    if case.x.ndim < 2 or 0 in case.x.shape[:2]:
        yield f"x is {list(case.x.shape)}, must be [N, T, ...] with a row at least"
    count, rows = case.x.shape[:2]
    layers = spec.num_layers * spec.num_directions
    h, c = (layers, count, spec.state_size), (layers, count, spec.hidden_size)
    y = (count, rows, spec.output_size)
    x = (count, rows) if spec.num_embeddings else (count, rows, spec.input_size)
    for name, shapes in {
        "x": (x,),
        "lengths": ((count,),),
        "h0": (h,),
        "c0": (c,),
        "y": (y, (count, spec.output_size)),
        "hn": (h,),
        "cn": (c,),
    }.items():
        array = getattr(case, name)
        if array is not None and array.shape not in shapes:
            yield f"{name} is {list(array.shape)}, must be {' or '.join(map(str, shapes))}"
        if array is not None and not np.isfinite(array).all():
            yield f"{name} has NaN or infinite values"
    if case.lengths.min() < 1 or case.lengths.max() > rows:
        yield f"lengths must be in [1, {rows}]"
    if spec.num_embeddings and not 0 <= case.x.min() <= case.x.max() < spec.num_embeddings:
        yield f"tokens must be in [0, {spec.num_embeddings})"
    limit = torch_error_max(case)
    if not 0 <= case.torch_error <= limit:
        yield f"torch_error is {case.torch_error:.3g}, must be in [0, {limit:.3g}]"


def excess(actual: Array, expected: Floats, torch_error: float) -> float:
    """The parity gate: the largest error of `actual` in units of the allowed one; <= 1 passes.

    Allowed: max(4 x torch_error, 1e-5 + 2e-5 x |expected|). A value that is not finite gives inf.
    """
    if actual.size == 0:
        return 0.0
    allowed = np.maximum(TORCH_FACTOR * torch_error, ABSOLUTE + RELATIVE * np.abs(expected))
    ratio = np.abs(np.asarray(actual, np.float64) - expected) / allowed
    return float(ratio.max()) if np.isfinite(ratio).all() else float("inf")


def dump_golden(cases: Mapping[str, Golden]) -> bytes:
    """The cases as the content of a golden.npz: arrays named CASE/FIELD."""
    arrays = {
        f"{name}/{field.name}": np.asarray(value)
        for name, case in cases.items()
        for field in fields(case)
        if (value := getattr(case, field.name)) is not None
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def load_golden(content: bytes) -> dict[str, Golden]:
    """The cases dump_golden wrote. Raises InvalidGolden; never unpickles."""
    try:
        _check_headers(content)
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        names = dict.fromkeys(name.partition("/")[0] for name in arrays)
        return {name: _case(arrays, name) for name in names}
    except InvalidGolden:
        raise
    except MemoryError as error:
        raise InvalidGolden("golden.npz needs more memory than this machine gives") from error
    except _UNREADABLE as error:
        line = " ".join(str(error).split())[:200]
        raise InvalidGolden(f"golden.npz cannot be read: {line}") from error


def _check_headers(content: bytes) -> None:
    """Raises InvalidGolden if an array unpacks to more than its header says, or all to BYTES_MAX.

    numpy allocates what an array's header says before it reads the array.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > BYTES_MAX:
            raise InvalidGolden(f"golden.npz unpacks to more than {BYTES_MAX} bytes: {AGAIN}")
        for entry in entries:
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                if version not in _HEADERS:
                    raise InvalidGolden(f"golden.npz: {entry.filename[:40]!r} is no array of ours")
                shape, _, dtype = _HEADERS[version](file)
                size = file.tell() + math.prod(shape) * dtype.itemsize
                if not dtype.hasobject and size != entry.file_size:
                    raise InvalidGolden(
                        f"golden.npz: {entry.filename[:40]!r} is {list(shape)} and has "
                        f"{entry.file_size} bytes, not {size}: {AGAIN}"
                    )


_HEADERS: Final = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    OSError,
    EOFError,
    NotImplementedError,  # from zipfile, for an unknown compression
    RuntimeError,  # from zipfile, for an encrypted entry
    zipfile.BadZipFile,
    zlib.error,
)


def _case(arrays: Mapping[str, Array], name: str) -> Golden:
    def get(field: str, dtype: type[Number]) -> npt.NDArray[Number]:
        array = arrays[f"{name}/{field}"]
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name[:40]}/{field} is {array.dtype}, must be numbers")
        with np.errstate(over="ignore"):  # check_golden refuses infinity by name
            return np.asarray(array, dtype)

    def get_optional(field: str) -> Floats | None:
        return get(field, np.float64) if f"{name}/{field}" in arrays else None

    is_tokens = arrays[f"{name}/x"].dtype.kind in "iu"
    return Golden(
        x=get("x", np.int64) if is_tokens else get("x", np.float32),
        lengths=get("lengths", np.int32),
        h0=get("h0", np.float32),
        c0=get("c0", np.float32),
        y=get("y", np.float64),
        hn=get_optional("hn"),
        cn=get_optional("cn"),
        torch_error=float(get("torch_error", np.float64)),
    )
