"""Owns one batch: which slices it has, and how their arrays are put together and taken apart.

At most one slice per session. Columns 0 .. len(steps)-1 are the steps', in order; then come the
parts' columns, part after part. Arrays are the batch's own; x is time major, as the kernel wants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from lstmserve.engine.compute.pool import Slots
from lstmserve.engine.schedule.block import Block
from lstmserve.engine.schedule.step import NO_ROW, Input, Output, Step
from lstmserve.engine.table import Index


class Outcome(IntEnum):
    """What became of a batch's row."""

    APPLIED = 0
    FAILED = 1  # the kernel could not compute it
    NOT_STORED = 2  # surely not
    STORE_FULL = 3
    FENCED = 4  # another server has the session now: what is cached here is stale
    UNKNOWN = 5  # the store's answer was lost: what is cached here may be stale


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a block, `indices` [n] into it: those of like length that wait together."""

    block: Block
    indices: Index

    @property
    def rows(self) -> Index:
        """Their rows of the table, [n]."""
        return self.block.rows[self.indices]

    def split(self, count: int) -> tuple[Part, Part]:
        """The first `count` rows and the others."""
        return (
            Part(self.block, self.indices[:count]),
            Part(self.block, self.indices[count:]),
        )


@dataclass(frozen=True, slots=True)
class Endings:
    """Steps that end with a batch: its columns, their rows of the table, the slots written [N]."""

    columns: Index
    rows: Index
    slots: Slots


@dataclass(slots=True)
class Batch:
    """Filled by the scheduler; `outcomes` [B] by the kernel's and the store's stages."""

    steps: list[Step] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    size: int = 0
    lengths: npt.NDArray[np.int32] = field(init=False)  # [B]
    read: Slots = field(init=False)  # [B]
    write: Slots = field(init=False)  # [B]
    outcomes: npt.NDArray[np.uint8] = field(init=False)  # [B] of Outcome

    def add(self, entry: Step | Part, now_ns: int) -> None:
        """Takes the entry in; its time in the queue ends."""
        if isinstance(entry, Part):
            entry.block.queue_ns = max(entry.block.queue_ns, now_ns - entry.block.arrival_ns)
            self.parts.append(entry)
            self.size += entry.indices.size
        else:
            entry.start_ns = entry.start_ns or now_ns
            self.steps.append(entry)
            self.size += 1

    def seal(self, slice_rows_max: int) -> None:
        """No more rows: sets `lengths` and the outcomes."""
        steps = [min(step.length - step.done, slice_rows_max) for step in self.steps]
        columns = [np.array(steps, np.int32)]
        columns += [part.block.lengths[part.indices] for part in self.parts]
        self.lengths = columns[0] if len(columns) == 1 else np.concatenate(columns)
        self.outcomes = np.zeros(self.size, np.uint8)

    @property
    def rows_count(self) -> int:
        """Time steps, without padding."""
        return int(self.lengths.sum())

    def endings(self) -> Endings:
        """The applied rows of sessions whose step ends with this batch: what a store must have."""
        is_end = self.outcomes == Outcome.APPLIED
        for column, step in enumerate(self.steps):
            if step.row == NO_ROW or step.done < step.length:
                is_end[column] = False
        columns = np.flatnonzero(is_end)
        parts = [part.rows for part in self.parts]
        rows = np.concatenate([np.array([s.row for s in self.steps], np.int64), *parts])
        return Endings(columns, rows[columns], self.write[columns])

    def numbered_output(self, column: int) -> Output | None:
        """What the reply of a column's numbered step holds; None for one without a number."""
        if column < len(self.steps):
            step = self.steps[column]
            return step.output() if step.digest else None
        for part, columns in self.columns():
            if column < columns.stop:
                index = int(part.indices[column - columns.start])
                return part.block.output(index) if part.block.is_numbered else None
        raise IndexError(column)

    def columns(self) -> Iterator[tuple[Part, slice]]:
        """Every part with its columns of the batch."""
        start = len(self.steps)
        for part in self.parts:
            stop = start + part.indices.size
            yield part, slice(start, stop)
            start = stop

    def x(self) -> Input:
        """x [T, B, I] (tokens [T, B]); zeros past a row's length."""
        length_max = int(self.lengths.max())
        pieces: list[Input] = [s.x[s.done : s.done + 1] for s in self.steps]
        pieces += [part.block.x[part.block.offsets[part.indices]] for part in self.parts]
        first = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        if length_max == 1:
            return first[np.newaxis]
        x = np.zeros((length_max, *first.shape), first.dtype)
        for column, step in enumerate(self.steps):
            length = self.lengths[column]
            x[:length, column] = step.x[step.done : step.done + length]
        for part, columns in self.columns():
            for t, within, rows in _by_time(part, part.block.offsets):
                x[t, columns][within] = part.block.x[rows]
        return x

    def no_output(self, output_size: int) -> Output:
        """y [T, B, O] before anything is computed."""
        return np.full((int(self.lengths.max()), self.size, output_size), np.nan, np.float32)

    def absorb(self, y: Output) -> None:
        """Puts y [T, B, O] where steps and blocks want it; those that fail are not shown it."""
        for column, step in enumerate(self.steps):
            step.add_output(y[: self.lengths[column], column])
        for part, columns in self.columns():
            block = part.block
            if block.last_only:
                last = block.lengths[part.indices] - 1
                places = block.places[part.indices]
                block.y[places] = y[last, np.arange(columns.start, columns.stop)]
                continue
            for t, within, rows in _by_time(part, block.places):
                block.y[rows] = y[t, columns][within]


def _by_time(
    part: Part, starts: Index
) -> Iterator[tuple[int, slice | npt.NDArray[np.bool_], Index]]:
    """(t, mask over the part's rows that have a time step t, where those are from their start)."""
    lengths = part.block.lengths[part.indices]
    first = starts[part.indices]
    yield 0, slice(None), first
    for t in range(1, int(lengths.max())):
        within = lengths > t
        yield t, within, first[within] + t
