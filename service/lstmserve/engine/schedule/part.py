"""Owns a part of a block: those of its rows that wait and run together. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Index
from lstmserve.engine.schedule.block import Block


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a block, `indices` [n] into it: those of like length that wait together."""

    block: Block
    indices: Index

    @property
    def rows(self) -> Index:
        """Their rows of the table, [n]."""
        return self.block.rows[self.indices]

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Their time steps, [n]."""
        return self.block.lengths[self.indices]

    def split(self, count: int) -> tuple[Part, Part]:
        """The first `count` rows and the others."""
        return (
            Part(self.block, self.indices[:count]),
            Part(self.block, self.indices[count:]),
        )

    def by_time(self, starts: Index) -> Iterator[tuple[int, slice | npt.NDArray[np.bool_], Index]]:
        """(t, mask over the rows that have a time step t, where those are from their start)."""
        lengths, first = self.lengths, starts[self.indices]
        yield 0, slice(None), first
        for t in range(1, int(lengths.max())):
            within = lengths > t
            yield t, within, first[within] + t
