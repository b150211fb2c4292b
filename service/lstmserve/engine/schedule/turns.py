"""Owns the order within each session: which step is its first, which wait behind it. No clock.

A session's first step is ready or in flight; the others wait here. `pending` in the table counts
both; a session with none is idle, and only then may it expire or be closed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lstmserve.engine.schedule.step import NO_ROW, Step
from lstmserve.engine.table import OPEN, Index, SessionTable


class SessionTurns:
    """`on_idle(row)` is called when a session that is no longer open has no step left."""

    def __init__(self, table: SessionTable, on_idle: Callable[[int], None]) -> None:
        self._table = table
        self._on_idle = on_idle
        self._waiting: dict[int, deque[Step]] = {}
        self.pending_steps = 0  # of all sessions
        self.pending_sequences = 0  # of Predict: steps of no session

    def enter(self, step: Step) -> bool:
        """Whether the step is its session's first, or has none, and may be made ready."""
        if step.row == NO_ROW:
            self.pending_sequences += 1
            return True
        self.pending_steps += 1
        table, row = self._table, step.row
        table.pending[row] += 1
        step.number = int(table.step[row]) + int(table.pending[row])
        if table.pending[row] == 1:
            table.pending_digest[row] = step.digest
            return True
        self._waiting.setdefault(row, deque()).append(step)
        return False

    def pending_digest(self, row: int, place: int) -> int:
        """Of the session's pending step at `place`, 0 the first; 0 when it is not numbered."""
        if place == 0:
            return int(self._table.pending_digest[row])
        return self._waiting[row][place - 1].digest

    def enter_rows(self, rows: Index, digests: npt.NDArray[np.uint64] | None) -> None:
        """One step for each of these idle sessions; digests [N] when they are numbered."""
        self._table.pending_digest[rows] = 0 if digests is None else digests
        self.pending_steps += rows.size
        self._table.pending[rows] += 1

    def leave(self, row: int, now_ns: int) -> Step | None:
        """The first step is over; returns the next one, which is now first."""
        if row == NO_ROW:
            self.pending_sequences -= 1
            return None
        self.pending_steps -= 1
        table = self._table
        table.pending[row] -= 1
        if table.pending[row]:
            return self._pop(row)
        self._rest(row, now_ns)
        return None

    def leave_rows(self, rows: Index, now_ns: int) -> list[Step]:
        """As leave(), for a block's rows."""
        self.pending_steps -= rows.size
        table = self._table
        table.pending[rows] -= 1
        table.expiry_ns[rows] = now_ns + table.ttl_ns[rows]
        is_busy = table.pending[rows] > 0
        for row in rows[~is_busy & (table.phase[rows] != OPEN)]:
            self._on_idle(int(row))
        return [self._pop(int(row)) for row in rows[is_busy]]

    def abandon(self, row: int, now_ns: int) -> list[Step]:
        """The first step failed: it and all behind it leave; returns those behind, in order."""
        if row == NO_ROW:
            self.pending_sequences -= 1
            return []
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
        self._table.pending_digest[row] = step.digest
        return step

    def _rest(self, row: int, now_ns: int) -> None:
        table = self._table
        table.expiry_ns[row] = now_ns + table.ttl_ns[row]
        if table.phase[row] != OPEN:
            self._on_idle(row)

    def check_integrity(self) -> None:
        """Whoever waits, waits behind a first step, and is counted."""
        for row, waiting in self._waiting.items():
            assert waiting, "an empty line is kept"
            assert len(waiting) == self._table.pending[row] - 1, "a waiting step is not counted"
        assert int(np.max(self._table.pending, initial=0)) >= 0
