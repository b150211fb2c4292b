"""One batch: the arrays that the kernel wants, gathered from requests and given back to them.

At most one slice per session. Columns are the chunks', one chunk after the other. Arrays are the
batch's own, time major.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Index, Input, Output
from lstmserve.engine.compute.pool import ZERO, Slots
from lstmserve.engine.scheduling.work import NO_SESSION, Chunk, Outcome, Work


@dataclass(frozen=True, slots=True)
class Endings:
    """Steps that end with a batch: its columns, their rows of the table, the slots written [N]."""

    columns: Index
    rows: Index
    slots: Slots


class Batch:
    """In flight from the scheduler's schedule() to its settle().

    `outcomes` [B] are marked by the kernel's and the store's stages. `inputs` x [T, B, I] or tokens
    [T, B] repeat a row's last time step past its length; `y` [T, B, O] means nothing there.
    """

    __slots__ = (
        "_work",
        "chunks",
        "ids",
        "inputs",
        "length_max",
        "lengths",
        "outcomes",
        "read",
        "write",
        "y",
    )

    def __init__(
        self, work: Work, chunks: list[Chunk], slots: Slots, write: Slots, slice_rows_max: int
    ) -> None:
        """`slots` are those of the table's sessions, by row; `write` [B] are spare ones."""
        self._work = work
        self.chunks = chunks
        self.ids: Index = (
            chunks[0].ids if len(chunks) == 1 else np.concatenate([each.ids for each in chunks])
        )
        left = work.length[self.ids] - work.done[self.ids]
        self.lengths: npt.NDArray[np.int64] = np.minimum(left, slice_rows_max)
        self.length_max = int(self.lengths.max())  # T
        self.read: Slots = self._slots_to_read(slots)
        self.write = write
        self.outcomes = np.zeros(self.ids.size, np.uint8)
        self.inputs: Input = self._inputs()
        self.y: Output

    @property
    def size(self) -> int:
        """B"""
        return self.ids.size

    @property
    def rows_count(self) -> int:
        """Time steps, without padding."""
        return self.size if self.length_max == 1 else int(self.lengths.sum())

    def columns(self) -> Iterator[tuple[Chunk, slice]]:
        """Every chunk with its columns of the batch."""
        start = 0
        for chunk in self.chunks:
            stop = start + chunk.ids.size
            yield chunk, slice(start, stop)
            start = stop

    def _slots_to_read(self, slots: Slots) -> Slots:
        """Work that goes on reads its scratch slot, a Predict's sequence begins from zeros."""
        scratch, sessions = self._work.scratch[self.ids], self._work.session[self.ids]
        from_session = np.where(sessions == NO_SESSION, ZERO, slots[sessions])
        found: Slots = np.where(scratch == ZERO, from_session, scratch)
        return found

    def _inputs(self) -> Input:
        cells = self._work.first[self.ids] + self._work.done[self.ids]
        if self.length_max == 1:
            if len(self.chunks) == 1:
                return _rows(self.chunks[0].request.x, cells)[np.newaxis]
            pieces = [_rows(each.request.x, cells[columns]) for each, columns in self.columns()]
            return np.concatenate(pieces)[np.newaxis]
        # Past its end a row repeats its last cell: any finite input of its own will do.
        t = np.minimum(np.arange(self.length_max)[:, np.newaxis], self.lengths - 1)
        pieces = [each.request.x[(cells + t)[:, columns]] for each, columns in self.columns()]
        found: Input = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)
        return found

    def no_output(self, output_size: int) -> Output:
        """y [T, B, O] before anything is computed."""
        return np.full((self.length_max, self.size, output_size), np.nan, np.float32)

    def absorb(self, y: Output) -> None:
        """Puts y [T, B, O] where the requests want it, and counts the time steps as done."""
        self.y = y
        work, ids = self._work, self.ids
        done = work.done[ids]
        work.done[ids] = done + self.lengths
        if self.length_max == 1 and not work.last_only[ids].any():
            cells = work.out[ids] + done
            for chunk, columns in self.columns():
                _put_rows(chunk, cells[columns], y[0, columns])
            return
        for chunk, columns in self.columns():
            self._absorb_slice(chunk, columns, done[columns])

    def _absorb_slice(self, chunk: Chunk, columns: slice, done: Index) -> None:
        work, ids = self._work, chunk.ids
        y, lengths = self.y[:, columns], self.lengths[columns]
        outs, last_only = work.out[ids], work.last_only[ids]
        outputs = chunk.request.outputs(y.shape[2])
        ends = np.flatnonzero(last_only & (done + lengths == work.length[ids]))
        outputs[outs[ends]] = y[lengths[ends] - 1, ends]
        whole = np.flatnonzero(~last_only)
        if whole.size:
            t = np.arange(self.length_max)[:, np.newaxis]
            is_inside = t < lengths[whole]
            outputs[(outs[whole] + done[whole] + t)[is_inside]] = y[:, whole][is_inside]

    def endings(self) -> Endings:
        """The applied rows of sessions whose step ends with this batch: what a store must have."""
        work, ids = self._work, self.ids
        is_end = (self.outcomes == Outcome.APPLIED) & (work.done[ids] == work.length[ids])
        rows = work.session[ids]
        columns = np.flatnonzero(is_end & (rows != NO_SESSION))
        return Endings(columns, rows[columns], self.write[columns])

    def numbered(self, columns: Index) -> Iterator[tuple[int, Output | None]]:
        """Digest and reply of the steps that end in these columns; 0 and None without a number."""
        work = self._work
        for i in self.ids[columns].tolist():
            digest = work.digest.item(i)
            y = work.requests[i].output(work.place.item(i)) if digest else None
            yield digest, y


def _rows(x: Input, cells: Index) -> Input:
    """x[cells], as a view where that is possible."""
    if cells.size == 1 or (cells[1:] - cells[:-1] == 1).all():
        start = cells.item(0)
        return x[start : start + cells.size]
    found: Input = x[cells]
    return found


def _put_rows(chunk: Chunk, cells: Index, y: Output) -> None:
    """Rows of y [n, O], which the request may keep."""
    request = chunk.request
    if request.y is None and cells.size == request.height and not cells[0]:
        is_in_order = cells.size == 1 or bool((cells[1:] - cells[:-1] == 1).all())
        if is_in_order:
            request.y = y
            return
    request.outputs(y.shape[1])[cells] = y
