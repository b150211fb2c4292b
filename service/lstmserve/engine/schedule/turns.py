"""Owns the order within each session: which step is its first, which wait behind it. No clock.

A session's first step is ready or in flight; the others wait here. `pending` in the table counts
both; a session with none is idle, and only then may it expire or be closed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Index
from lstmserve.engine.schedule.step import Step
from lstmserve.engine.table import OPEN, SessionTable


class SessionTurns:
    """`on_idle(row)` is called when a session that is no longer open has no step left."""

    def __init__(self, table: SessionTable, on_idle: Callable[[int], None]) -> None:
        self._table = table
        self._on_idle = on_idle
        self._first: dict[int, Step] = {}  # of sessions whose first is not of a block
        self._waiting: dict[int, deque[Step]] = {}
        self.pending_steps = 0  # of all sessions
        self.pending_sequences = 0  # of Predict, which are of no session

    def enter(self, step: Step) -> bool:
        """Whether the step is its session's first, and may be made ready."""
        self.pending_steps += 1
        table, row = self._table, step.row
        pending = table.pending.item(row) + 1
        table.pending[row] = pending
        step.number = table.step.item(row) + pending
        if pending == 1:
            self._first[row] = step
            return True
        self._waiting.setdefault(row, deque()).append(step)
        return False

    def pending_digest(self, row: int, place: int) -> int:
        """Of the session's pending step at `place`, 0 the first; 0 when it is not numbered."""
        if place == 0:
            first = self._first.get(row)
            return self._table.pending_digest.item(row) if first is None else first.digest
        return self._waiting[row][place - 1].digest

    def enter_rows(self, rows: Index, digests: npt.NDArray[np.uint64] | None) -> None:
        """One step for each of these idle sessions; digests [N] when they are numbered."""
        self._table.pending_digest[rows] = 0 if digests is None else digests
        self.pending_steps += rows.size
        self._table.pending[rows] = 1

    def leave(self, row: int, now_ns: int) -> Step | None:
        """The first step is over; returns the next one, which is now first."""
        self.pending_steps -= 1
        self._first.pop(row, None)
        table = self._table
        pending = table.pending.item(row) - 1
        table.pending[row] = pending
        if pending:
            return self._pop(row)
        self._rest(row, now_ns)
        return None

    def leave_rows(self, rows: Index, now_ns: int) -> list[Step]:
        """The first steps of these sessions are over; returns those that are now first."""
        self.pending_steps -= rows.size
        table = self._table
        table.pending[rows] -= 1
        table.expiry_ns[rows] = table.ttl_ns[rows] + now_ns
        if self._first:
            for row in rows.tolist():
                self._first.pop(row, None)
        if table.leaving:
            is_over = (table.phase[rows] != OPEN) & (table.pending[rows] == 0)
            for row in rows[is_over].tolist():
                self._on_idle(row)
        if not self._waiting:
            return []
        return [self._pop(row) for row in rows[table.pending[rows] > 0].tolist()]

    def abandon(self, row: int, now_ns: int) -> list[Step]:
        """The first step failed: it and all behind it leave; returns those behind, in order."""
        self._first.pop(row, None)
        behind = list(self._waiting.pop(row, ()))
        self.pending_steps -= 1 + len(behind)
        self._table.pending[row] -= 1 + len(behind)
        assert self._table.pending[row] == 0
        self._rest(row, now_ns)
        return behind

    def _pop(self, row: int) -> Step:
        waiting = self._waiting[row]
        step = waiting.popleft()
        if not waiting:
            del self._waiting[row]
        self._first[row] = step
        return step

    def _rest(self, row: int, now_ns: int) -> None:
        table = self._table
        table.expiry_ns[row] = now_ns + table.ttl_ns.item(row)
        if table.phase.item(row) != OPEN:
            self._on_idle(row)

    def check_integrity(self) -> None:
        """Whoever waits, waits behind a first step, and is counted."""
        assert all(self._table.pending[row] for row in self._first), "a first step is over"
        for row, waiting in self._waiting.items():
            assert waiting, "an empty line is kept"
            assert len(waiting) == self._table.pending[row] - 1, "a waiting step is not counted"
        assert int(np.max(self._table.pending, initial=0)) >= 0
