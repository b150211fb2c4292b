"""Owns one batch: which slices it has, and how their arrays are put together and taken apart.

At most one slice per session. Columns 0 .. len(steps)-1 are the steps', in order; then come the
parts' columns, part after part, then those of Predict's sequences. Arrays are the batch's own, time
major, as the kernel wants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Digests, Index, Input, Output
from lstmserve.engine.compute.pool import ZERO, Slots
from lstmserve.engine.schedule.block import Block
from lstmserve.engine.schedule.digest import digests_of_rows
from lstmserve.engine.schedule.outcome import Outcome
from lstmserve.engine.schedule.part import Part
from lstmserve.engine.schedule.sequences import Sequences
from lstmserve.engine.schedule.step import Step


@dataclass(frozen=True, slots=True)
class Endings:
    """Steps that end with a batch: its columns, their rows of the table, the slots written [N]."""

    columns: Index
    rows: Index
    slots: Slots


@dataclass(slots=True, eq=False)
class Batch:
    """Filled by the scheduler; `outcomes` [B] by the kernel's and the store's stages."""

    steps: list[Step] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    sequences: list[Sequences] = field(default_factory=list)
    size: int = 0
    length_max: int = 0  # T
    inputs: Input = field(init=False)  # x [T, B, I], or tokens [T, B]; zeros past a row's length
    lengths: npt.NDArray[np.int32] = field(init=False)  # [B]
    read: Slots = field(init=False)  # [B]
    write: Slots = field(init=False)  # [B]
    outcomes: npt.NDArray[np.uint8] = field(init=False)  # [B] of Outcome
    y: Output = field(init=False)  # [T, B, O], once it is computed

    def add(self, entry: Step | Part | Sequences, now_ns: int) -> None:
        """Takes the entry in; its time in the queue ends."""
        if isinstance(entry, Part):
            entry.block.queue_ns = max(entry.block.queue_ns, now_ns - entry.block.arrival_ns)
            self.parts.append(entry)
            self.size += entry.size
            return
        entry.start_ns = entry.start_ns or now_ns
        if isinstance(entry, Sequences):
            self.sequences.append(entry)
            self.size += entry.size
        else:
            self.steps.append(entry)
            self.size += 1

    def seal(self, slice_rows_max: int, slots: Slots) -> None:
        """No more rows: sets `lengths`, `inputs`, `outcomes`; and `read`, by the table's `slots`.

        Whoever goes on reads its scratch slot.
        """
        lengths = [part.lengths for part in self.parts]
        longest = [part.length_max for part in self.parts]
        read = [slots[part.rows] for part in self.parts]
        if steps := self.steps:
            left = [min(step.length - step.done, slice_rows_max) for step in steps]
            lengths.insert(0, np.array(left, np.int32))
            longest.append(max(left))
            starts = [step.scratch if step.scratch else slots.item(step.row) for step in steps]
            read.insert(0, np.array(starts, np.int64))
        for each in self.sequences:
            lengths.append(each.slice.counts)
            longest.append(each.slice.length)
            read.append(each.scratch if each.scratch.size else np.full(each.size, ZERO))
        self.lengths = lengths[0] if len(lengths) == 1 else np.concatenate(lengths)
        self.read = read[0] if len(read) == 1 else np.concatenate(read)
        self.length_max = max(longest)
        self.outcomes = np.zeros(self.size, np.uint8)
        self.inputs = self._inputs()

    @property
    def rows_count(self) -> int:
        """Time steps, without padding."""
        return self.size if self.length_max == 1 else int(self.lengths.sum())

    @property
    def are_single(self) -> bool:
        """Whether every step is of one row: its input and reply are a row of the batch's."""
        return all(step.length == 1 for step in self.steps)

    def step_rows(self) -> Index:
        """The steps' rows of the table."""
        return np.array([step.row for step in self.steps], np.int64)

    def is_step_end(self) -> npt.NDArray[np.bool_]:
        """Whether each step ends with this batch; `absorb` has been called."""
        return np.array([step.done == step.length for step in self.steps], np.bool_)

    def endings(self) -> Endings:
        """The applied rows of sessions whose step ends with this batch: what a store must have."""
        rows = np.concatenate([self.step_rows(), *(part.rows for part in self.parts)])
        is_end = self.outcomes[: rows.size] == Outcome.APPLIED
        is_end[: len(self.steps)] &= self.is_step_end()
        columns = np.flatnonzero(is_end)
        return Endings(columns, rows[columns], self.write[columns])

    def numbered(self, columns: Index) -> Iterator[tuple[int, Output | None]]:
        """Digest and reply of the steps that end in these columns; 0 and None without a number."""
        for column in columns[columns < len(self.steps)].tolist():
            step = self.steps[column]
            yield step.digest, step.output() if step.is_numbered else None
        for part, span in self.columns():
            within = columns[(span.start <= columns) & (columns < span.stop)]
            yield from part.numbered(within - span.start)

    def digests(self, columns: Index) -> Digests:
        """Of these steps [N]; 0 for those without a number."""
        steps = [self.steps[column] for column in columns.tolist()]
        if not self.are_single:
            return np.array([step.digest for step in steps], np.uint64)
        last_only = np.array([step.last_only for step in steps])
        found = digests_of_rows(self.inputs[0, columns], last_only)
        found[[not step.is_numbered for step in steps]] = 0
        return found

    def columns(self) -> Iterator[tuple[Part, slice]]:
        """Every part with its columns of the batch."""
        start = len(self.steps)
        for part in self.parts:
            stop = start + part.size
            yield part, slice(start, stop)
            start = stop

    def sequence_columns(self) -> Iterator[tuple[Sequences, slice]]:
        """All sequences with theirs."""
        stop = self.size
        for each in reversed(self.sequences):
            columns = slice(stop - each.size, stop)
            stop = columns.start
            yield each, columns  # who settles it moves it on to its next slice

    def _inputs(self) -> Input:
        if len(self.sequences) == 1 and self.sequences[0].size == self.size:
            return self.sequences[0].inputs()
        if self.length_max == 1:
            return self._single_inputs()[np.newaxis]
        owners: list[Step | Block | Sequences]
        owners = [*self.steps, *(part.block for part in self.parts), *self.sequences]
        any_x = owners[0].x
        x = np.zeros((self.length_max, self.size, *any_x.shape[1:]), any_x.dtype)
        for column, step in enumerate(self.steps):
            length = self.lengths[column]
            x[:length, column] = step.x[step.done : step.done + length]
        for part, columns in self.columns():
            for t, within, rows in part.by_time(part.block.offsets):
                x[t, columns][within] = part.block.x[rows]
        for each, columns in self.sequence_columns():
            x[: each.slice.length, columns] = each.inputs()
        return x

    def _single_inputs(self) -> Input:
        pieces: list[Input] = [
            step.x if step.length == 1 else step.x[step.done : step.done + 1] for step in self.steps
        ]
        pieces += [part.first_inputs() for part in self.parts]
        pieces += [each.inputs()[0] for each in self.sequences]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def no_output(self, output_size: int) -> Output:
        """y [T, B, O] before anything is computed."""
        return np.full((self.length_max, self.size, output_size), np.nan, np.float32)

    def absorb(self, y: Output) -> None:
        """Puts y [T, B, O] where steps and blocks want it; those that fail are not shown it."""
        self.y = y
        lengths = self.lengths[: len(self.steps)].tolist()
        for column, (step, length) in enumerate(zip(self.steps, lengths, strict=True)):
            step.add_output(y[:length, column])
        for part, columns in self.columns():
            block = part.block
            if block.is_single:
                part.put_outputs(y[0, columns])
                continue
            if block.last_only:
                last, places = part.lengths - 1, block.places[part.chosen]
                block.y[places] = y[last, np.arange(columns.start, columns.stop)]
                continue
            for t, within, rows in part.by_time(block.places):
                block.y[rows] = y[t, columns][within]
        for each, columns in self.sequence_columns():
            each.absorb(y[:, columns])
