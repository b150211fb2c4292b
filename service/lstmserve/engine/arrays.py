"""Types of the arrays that the engine's parts pass to each other, and functions of any arrays.

It must not know what an array is for.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

MAP_NORESERVE = 0x4000  # of x86-64 and arm64; Python has the name from 3.13 on

Input = npt.NDArray[Any]
"""Rows [T, ...] of a model's inputs, in its RowFormat (lstmserve/rows.py)."""
Floats = npt.NDArray[np.float32]
"""States and other values; each use says its axes."""
Output = npt.NDArray[Any]
"""Rows y [T, ...] of a model's outputs, in its RowFormat."""
Index = npt.NDArray[np.int64]
"""Rows of the session table, or indices into a message, [N]."""
Digests = npt.NDArray[np.uint64]
"""[N]; 0 for a step without a number."""


def run_sums(values: npt.NDArray[Any], lengths: npt.NDArray[np.integer[Any]]) -> Index:
    """The sums of runs of values [sum(lengths)], which follow one another, [N]; 0 for an empty
    run."""
    sums = np.concatenate(([0], np.cumsum(values, dtype=np.int64)))
    ends = np.cumsum(lengths, dtype=np.int64)
    runs: Index = sums[ends] - sums[ends - lengths]
    return runs


def sparse_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Zeros that take memory where they are written, and may be more than the machine has.

    Linux promises no more than that at once, unless it is asked for no promise.
    """
    try:
        return np.zeros(shape, dtype)
    except MemoryError:
        size = np.dtype(dtype).itemsize * math.prod(shape)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        try:
            reserved = mmap.mmap(-1, size, flags=flags)
        except (OSError, OverflowError) as error:
            raise MemoryError(f"no room for {size} bytes") from error
        return np.frombuffer(reserved, dtype).reshape(shape)
