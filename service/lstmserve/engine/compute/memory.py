"""The memory of a state pool on the CPU: reserved whole, used page by page, and given back.

A page that was never written takes no memory, so every model can reserve as much as it could ever
use. give_back() makes pages so again. The first SMALL_BYTES of a tensor lie in the machine's small
pages, the rest in huge ones where the machine has them: a batch that gathers random slots of a
large tensor takes 5 to 8 % longer from small pages. It must not know which slots are free.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

PAGE = mmap.PAGESIZE
HUGE = 2 << 20
SMALL_BYTES = 16 << 20

Shapes = Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]]
"""Name of a tensor -> its shape in one slot, and its dtype."""


class PoolMemory:
    """`arrays` are zeros [slots, *shape] of each tensor. Raises MemoryError."""

    def __init__(self, shapes: Shapes, slots: int) -> None:
        dtypes = {name: np.dtype(dtype) for name, (_, dtype) in shapes.items()}
        self._row_bytes = {
            name: dtypes[name].itemsize * int(np.prod(shape, dtype=np.int64))
            for name, (shape, _) in shapes.items()
        }
        sizes = {name: _up(slots * row, HUGE) for name, row in self._row_bytes.items()}
        try:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._map = mmap.mmap(-1, sum(sizes.values()) + HUGE, flags=flags)
        except (OSError, OverflowError) as error:
            raise MemoryError(f"no room for {slots} slots") from error
        whole = np.frombuffer(self._map, np.uint8)
        at = -whole.ctypes.data % HUGE
        self._starts: dict[str, int] = {}
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        for name, (shape, _) in shapes.items():
            self._starts[name] = at
            self._choose_pages(at, sizes[name])
            part = whole[at : at + slots * self._row_bytes[name]]
            self.arrays[name] = part.view(dtypes[name]).reshape(slots, *shape)
            at += sizes[name]

    def bytes_below(self, slot: int) -> int:
        """The most memory that the slots below this one can take, in whole pages."""
        return sum(_page_up(slot * row) for row in self._row_bytes.values())

    def give_back(self, first: int, last: int) -> None:
        """Gives back the memory of the slots in [first, last): their content is zeros again.

        A page that slot `first - 1` shares stays.
        """
        for name, row in self._row_bytes.items():
            start, stop = _page_up(first * row), _page_up(last * row)
            if start < stop:
                self._map.madvise(mmap.MADV_DONTNEED, self._starts[name] + start, stop - start)

    def _choose_pages(self, start: int, size: int) -> None:
        """A kernel without huge pages refuses both advices, and needs neither."""
        small = min(size, SMALL_BYTES)
        with contextlib.suppress(OSError):
            self._map.madvise(mmap.MADV_NOHUGEPAGE, start, small)
            if small < size:
                self._map.madvise(mmap.MADV_HUGEPAGE, start + small, size - small)


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _page_up(offset: int) -> int:
    """The end of the page before this offset into a tensor."""
    return _up(offset, PAGE if offset <= SMALL_BYTES else HUGE)
