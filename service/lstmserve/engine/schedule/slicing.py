"""Computes in which slices the sequences of a Predict run. Pure.

Groups of like lengths run one after the other, the longest first, so that little is padded; a
group runs slice by slice, and its members leave it as they end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lstmserve.config import Config
from lstmserve.engine.arrays import Index
from lstmserve.engine.compute.kernel import Cost
from lstmserve.engine.schedule.sizes import group_max

BATCH_NS = 100_000  # what a batch costs besides its run


@dataclass(frozen=True, slots=True)
class Slice:
    """T time steps of n sequences: the cells from `start` on, time major [T, n]."""

    start: int
    length: int  # T
    members: Index  # [n], of the call's sequences, the longest first
    counts: npt.NDArray[np.int32]  # [n], their own time steps in it
    staying: int  # so many of them, the first ones, go on in the next slice
    is_first: bool  # of its group

    @property
    def size(self) -> int:
        """n"""
        return len(self.members)

    @property
    def stop(self) -> int:
        """The first cell after it."""
        return self.start + self.length * self.size


@dataclass(frozen=True, slots=True)
class Slicing:
    """The slices in their order, and the cell of each row of x, [sum of lengths]."""

    slices: list[Slice]
    cells: Index


def slicing(lengths: npt.NDArray[np.int32], config: Config, cost: Cost) -> Slicing:
    """Of N sequences."""
    order = np.argsort(-lengths, kind="stable")
    by_length = lengths[order]
    column = np.empty(order.size, np.int64)  # of its group, by sequence
    first = np.empty(order.size, np.int64)  # slice of its group, by sequence
    slices: list[Slice] = []
    for group in _groups(by_length.tolist(), config, cost):
        members = order[group]
        column[members] = np.arange(members.size)
        first[members] = len(slices)
        start = slices[-1].stop if slices else 0
        slices += _slices(members, by_length[group], start, config.slice_rows_max)
    return Slicing(slices, _cells(lengths, slices, column, first, config.slice_rows_max))


def _groups(lengths: list[int], config: Config, cost: Cost) -> Iterator[slice]:
    """Of `lengths`, which fall. Another group begins where batches of its own cost less than what
    its members would pad in this one."""
    rows_max = config.slice_rows_max
    start = padding = limit = 0
    for i, length in enumerate(lengths):
        count = -(-length // rows_max)  # slices
        padding += min(lengths[start], count * rows_max) - length
        own_ns = count * (BATCH_NS + cost.run_ns) + length * cost.step_ns
        if i - start == limit or padding * cost.row_ns > own_ns:
            if i:
                yield slice(start, i)
            start, padding, limit = i, 0, group_max(config, length)
    yield slice(start, len(lengths))


def _slices(
    members: Index, lengths: npt.NDArray[np.int32], start: int, rows_max: int
) -> Iterator[Slice]:
    done, left = 0, lengths
    while left.size:
        length = min(left.item(0), rows_max)
        counts = np.minimum(left, np.int32(rows_max))
        staying = int(np.count_nonzero(left > length))
        found = Slice(start, length, members, counts, staying, is_first=not done)
        yield found
        done, start = done + length, found.stop
        members, left = members[:staying], left[:staying] - np.int32(length)


def _cells(
    lengths: npt.NDArray[np.int32], slices: list[Slice], column: Index, first: Index, rows_max: int
) -> Index:
    sequence = np.repeat(np.arange(lengths.size), lengths)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    number, t = np.divmod(np.arange(sequence.size) - starts[sequence], rows_max)
    number += first[sequence]
    start, size = np.array([(each.start, each.size) for each in slices]).T
    cells: Index = start[number] + t * size[number] + column[sequence]
    return cells
