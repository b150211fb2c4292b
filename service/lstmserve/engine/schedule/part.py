"""Owns a part of a block: those of its rows that wait and run together. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Index, Input, Output
from lstmserve.engine.schedule.block import Block

ALL = slice(None)


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a block, those of like length that wait together.

    `chosen` [n] are their indices in the block, or ALL, which copies nothing.
    """

    block: Block
    chosen: Index | slice

    @property
    def size(self) -> int:
        """n"""
        return self.block.rows.size if isinstance(self.chosen, slice) else self.chosen.size

    @property
    def indices(self) -> Index:
        """Into the block, [n]."""
        if isinstance(self.chosen, slice):
            return np.arange(self.block.rows.size)
        return self.chosen

    @property
    def rows(self) -> Index:
        """Their rows of the table, [n]."""
        return self.block.rows[self.chosen]

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Their time steps, [n]."""
        return self.block.lengths[self.chosen]

    @property
    def length_max(self) -> int:
        """The longest of them."""
        return 1 if self.block.is_single else int(self.lengths.max())

    def first_inputs(self) -> Input:
        """Their first time step, x [n, I] or tokens [n]."""
        block = self.block
        return block.x[self.chosen if block.is_single else block.offsets[self.chosen]]

    def put_outputs(self, y: Output) -> None:
        """Of a block of single rows: y [n, O], which the block may keep."""
        if isinstance(self.chosen, slice):
            self.block.y = y
        else:
            self.block.y[self.chosen] = y

    def last_outputs(self) -> Output:
        """The y of their last time step, [n, O], where that is all they have."""
        block = self.block
        return block.y[self.chosen if block.is_single else block.places[self.chosen]]

    def numbered(self, which: Index) -> Iterator[tuple[int, Output | None]]:
        """Digest and reply of some of its rows; 0 and None without a number."""
        block, indices = self.block, self.indices[which]
        if block.digests is None:
            yield from ((0, None) for _ in indices)
            return
        for index, digest in zip(indices.tolist(), block.digests[indices].tolist(), strict=True):
            yield digest, block.output(index)

    def split(self, count: int) -> tuple[Part, Part]:
        """The first `count` rows and the others."""
        indices = self.indices
        return Part(self.block, indices[:count]), Part(self.block, indices[count:])

    def by_time(self, starts: Index) -> Iterator[tuple[int, slice | npt.NDArray[np.bool_], Index]]:
        """(t, mask over the rows that have a time step t, where those are from their start)."""
        lengths, first = self.lengths, starts[self.chosen]
        yield 0, ALL, first
        for t in range(1, int(lengths.max())):
            within = lengths > t
            yield t, within, first[within] + t
