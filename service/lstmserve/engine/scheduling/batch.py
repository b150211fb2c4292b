"""One batch: the arrays that the kernel wants, gathered from requests and given back to them.

At most one slice per session. Columns are the chunks', one chunk after the other. Arrays are the
batch's own, time major.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Index, Input, Output
from lstmserve.engine.compute.pool import INITIAL, Slots
from lstmserve.engine.scheduling.work import Chunk, Outcome

ONES = np.ones(1024, np.int64)


@dataclass(frozen=True, slots=True)
class Endings:
    """Steps that end with a batch: its columns, their rows of the table, the slots written [N]."""

    columns: Index
    rows: Index
    slots: Slots


class Batch:
    """In flight from the scheduler's schedule() to its settle().

    `outcomes` [B] are marked by the kernel's and the store's stages. `inputs` x [T, B, ...] repeat
    a row's last time step past its length; `y` [T, B, ...] means nothing there. `cause` is why a
    row failed in the kernel.
    """

    __slots__ = (
        "_slice_rows_max",
        "cause",
        "chunks",
        "inputs",
        "length_max",
        "lengths",
        "outcomes",
        "read",
        "size",
        "write",
        "y",
    )

    def __init__(self, chunks: list[Chunk], slots: Slots, slice_rows_max: int) -> None:
        """`slots` are those of the table's sessions, by row."""
        self.chunks = chunks
        self._slice_rows_max = slice_rows_max
        self.size = sum([chunk.size for chunk in chunks])
        self.length_max = max([min(each.length - each.done, slice_rows_max) for each in chunks])
        self.lengths: npt.NDArray[np.int64] = self._lengths()
        self.read: Slots = self._slots_to_read(slots)
        self.write: Slots  # [B], spare ones
        self.outcomes = np.zeros(self.size, np.uint8)
        self.cause: Exception | None = None
        self.inputs: Input = self._inputs()
        self.y: Output

    @property
    def rows_count(self) -> int:
        """Time steps, without padding."""
        return self.size if self.length_max == 1 else int(self.lengths.sum())

    def columns(self) -> Iterator[tuple[Chunk, slice]]:
        """Every chunk with its columns of the batch."""
        start = 0
        for chunk in self.chunks:
            stop = start + chunk.size
            yield chunk, slice(start, stop)
            start = stop

    def _slots_to_read(self, slots: Slots) -> Slots:
        """A chunk that goes on reads its scratch slots, a Predict's sequence begins from the
        model's initial state."""
        if self.size == len(self.chunks):  # each of one row
            return np.array([_slot_of(each, slots) for each in self.chunks])
        return _joined([_slots_of(each, slots) for each in self.chunks])

    def _lengths(self) -> Index:
        if self.length_max == 1:
            return ONES[: self.size] if self.size <= ONES.size else np.ones(self.size, np.int64)
        return _joined([self._lengths_of(each) for each in self.chunks])

    def _lengths_of(self, chunk: Chunk) -> Index:
        if chunk.lengths is None:
            return np.full(chunk.size, min(chunk.length - chunk.done, self._slice_rows_max))
        return np.minimum(chunk.lengths - chunk.done, self._slice_rows_max)

    def _inputs(self) -> Input:
        if self.length_max == 1:
            return _joined([_next_rows(chunk) for chunk in self.chunks])[np.newaxis]
        # Past its end a row repeats its last time step: any finite input of its own will do.
        t = np.minimum(np.arange(self.length_max)[:, np.newaxis], self.lengths - 1)
        pieces = [each.request.x[each.cells() + t[:, cols]] for each, cols in self.columns()]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)

    def absorb(self, y: Output) -> None:
        """Puts y [T, B, ...] where the requests want it."""
        self.y = y
        for chunk, columns in self.columns():
            if chunk.length == 1:
                _put_rows(chunk, y[0, columns])
            else:
                self._put_slices(chunk, y[:, columns], self.lengths[columns])

    def _put_slices(self, chunk: Chunk, y: Output, lengths: Index) -> None:
        request, outs = chunk.request, chunk.outs()
        outputs = request.outputs(y.shape[2:], y.dtype)
        if request.last_only:
            ends = np.flatnonzero(self.is_end(chunk))
            outputs[outs[ends]] = y[lengths[ends] - 1, ends]
            return
        t = np.arange(len(y))[:, np.newaxis]
        is_inside = t < lengths
        outputs[(outs + chunk.done + t)[is_inside]] = y[is_inside]

    def is_last(self, chunk: Chunk) -> bool:
        """Whether all its rows end with this batch."""
        return chunk.length - chunk.done <= self._slice_rows_max

    def is_end(self, chunk: Chunk) -> npt.NDArray[np.bool_]:
        """Whether each of its rows [n] ends with this batch."""
        if chunk.lengths is None:
            return np.full(chunk.size, chunk.length - chunk.done <= self._slice_rows_max)
        found: npt.NDArray[np.bool_] = chunk.lengths - chunk.done <= self._slice_rows_max
        return found

    def endings(self) -> Endings:
        """The applied rows of sessions whose step ends with this batch: what a store must have."""
        found = [
            np.arange(columns.start, columns.stop)[self.is_end(chunk)]
            for chunk, columns in self.columns()
            if chunk.request.plan is None
        ]
        columns = np.concatenate([NO_COLUMNS, *found])
        columns = columns[self.outcomes[columns] == Outcome.APPLIED]
        return Endings(columns, self.rows()[columns], self.write[columns])

    def rows(self) -> Index:
        """Rows of the table, [B]; -1 for the sequences of a Predict."""
        return _joined(
            [np.full(c.size, -1) if c.request.plan is not None else c.rows for c in self.chunks]
        )

    def numbered(self, columns: Index) -> Iterator[tuple[int, Output | None]]:
        """Digest and reply of the steps that end in these columns; 0 and None without a number."""
        for chunk, own in self.columns():
            within = columns[(own.start <= columns) & (columns < own.stop)] - own.start
            request = chunk.request
            for place in chunk.places[within].tolist():
                digest = request.digest(place)
                yield digest, request.output(place) if digest else None


NO_COLUMNS = np.zeros(0, np.int64)


def _slot_of(chunk: Chunk, slots: Slots) -> int:
    """The slot of a chunk of one row."""
    if chunk.scratch.size:
        return chunk.scratch.item()
    return INITIAL if chunk.request.plan is not None else slots.item(chunk.row(0))


def _slots_of(chunk: Chunk, slots: Slots) -> Slots:
    if chunk.scratch.size:
        return chunk.scratch
    return np.full(chunk.size, INITIAL) if chunk.request.plan is not None else slots[chunk.rows]


def _joined(pieces: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _next_rows(chunk: Chunk) -> Input:
    """The next time step of each row, x [n, ...]; as a view where that is possible."""
    request = chunk.request
    if chunk.size == 1:
        cell = request.first(chunk.place(0)) + chunk.done
        return request.x[cell : cell + 1]
    if request.firsts is None and chunk.is_whole:
        return request.x
    return request.x[chunk.cells()]


def _put_rows(chunk: Chunk, y: Output) -> None:
    """Puts one row of y [n, ...] into each row's place; the request may keep the array."""
    request = chunk.request
    if request.outs is None and request.y is None and chunk.is_whole and request.height == len(y):
        request.y = y
    else:
        request.outputs(y.shape[1:], y.dtype)[chunk.outs()] = y
