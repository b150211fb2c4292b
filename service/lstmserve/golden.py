"""Owns golden vectors: inputs with the outputs a model must give, and the gate that judges."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]

ABSOLUTE = 1e-5
RELATIVE = 2e-5
TORCH_FACTOR = 4.0


class InvalidGolden(ValueError):
    """A golden.npz that cannot be read as what write_golden wrote."""


@dataclass(frozen=True, slots=True)
class Golden:
    """N sequences and what they must give; L is num_layers * directions.

    x float32 [N, T, I] or tokens int64 [N, T]; lengths int32 [N]; h0 float32 [L, N, state] and
    c0 [L, N, H]. y float64 [N, T, O], or [N, O] for the last time step only; hn and cn float64 as
    h0 and c0, or None where they are not known. `torch_error` is max |torch float32 - float64| over
    y, hn and cn, what the reference itself is wrong by.
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


def excess(actual: Array, expected: Floats, torch_error: float) -> float:
    """The parity gate: how far `actual` is outside it, in units of the allowed error; pass <= 1.

    Allowed: max(4 x torch_error, 1e-5 + 2e-5 x |expected|). Not finite is infinitely far.
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
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        names = dict.fromkeys(name.partition("/")[0] for name in arrays)
        return {name: _case(arrays, name) for name in names}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidGolden(f"golden.npz cannot be read: {error}") from error


def _case(arrays: Mapping[str, Array], name: str) -> Golden:
    def get(field: str, dtype: type | None) -> Array:
        return np.asarray(arrays[f"{name}/{field}"], dtype)

    def get_optional(field: str) -> Floats | None:
        array = arrays.get(f"{name}/{field}")
        return None if array is None else np.asarray(array, np.float64)

    return Golden(
        x=get("x", None),
        lengths=np.asarray(get("lengths", None), np.int32),
        h0=np.asarray(get("h0", None), np.float32),
        c0=np.asarray(get("c0", None), np.float32),
        y=np.asarray(get("y", None), np.float64),
        hn=get_optional("hn"),
        cn=get_optional("cn"),
        torch_error=float(get("torch_error", None)),
    )
