"""Owns what a settled batch changes: slots flip, steps count, sinks are told, successors go on.

Pure like the scheduler, whose other half it is. A row that was not applied changes nothing but
the queue: its written slot is spare again, and whoever waited behind it fails too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lstmserve.engine.compute.pool import Pool, Slots
from lstmserve.engine.schedule import verdicts
from lstmserve.engine.schedule.batch import Batch, Outcome, Part
from lstmserve.engine.schedule.numbering import Numbering
from lstmserve.engine.schedule.queues import Entry, ReadyQueues
from lstmserve.engine.schedule.step import NO_ROW, Step
from lstmserve.engine.schedule.turns import SessionTurns
from lstmserve.engine.table import DETACHED, MOVED, NOT_STORED, OPEN, SessionTable
from lstmserve.errors import ServeError, SessionReplaced, StoreTimeout


class Settlement:
    """Writes the table's `slot` and `step`, and nothing else of it."""

    def __init__(
        self,
        table: SessionTable,
        pool: Pool,
        ready: ReadyQueues,
        turns: SessionTurns,
        numbering: Numbering,
        on_moved: Callable[[int], None],
    ) -> None:
        self._table = table
        self._pool = pool
        self._ready = ready
        self._turns = turns
        self._numbering = numbering
        self._on_moved = on_moved

    def settle(self, batch: Batch, now_ns: int, compute_ns: int) -> None:
        """Ends a batch by its outcomes. Replies are given, successors made ready."""
        for column, step in enumerate(batch.steps):
            step.compute_ns += compute_ns
            slot = int(batch.write[column])
            error = self._verdict(step.row, batch.outcomes[column])
            if error is None:
                self._advance(step, slot, now_ns)
            else:
                self._pool.give_one(slot)
                self._fail(step, error, now_ns)
        for part, columns in batch.columns():
            part.block.compute_ns += compute_ns
            self._settle_part(part, batch.write[columns], batch.outcomes[columns], now_ns)

    def fail(self, entry: Entry, error: ServeError, now_ns: int) -> None:
        """Nothing of the entry happened; nor will anything of the steps that wait behind it."""
        if isinstance(entry, Part):
            self._fail_part(entry, error, now_ns)
        else:
            self._fail(entry, error, now_ns)

    def _verdict(self, row: int, outcome: int) -> ServeError | None:
        """Why a row's step is not applied, or None; drops what is stale here."""
        phase = OPEN if row == NO_ROW else int(self._table.phase[row])
        if phase == DETACHED:
            return SessionReplaced("the session was replaced while this step was waiting")
        if outcome in (Outcome.FENCED, Outcome.UNKNOWN) and phase != MOVED:
            self._on_moved(row)
        if outcome == Outcome.UNKNOWN:
            return StoreTimeout("the store's answer was lost: repeat the same step", retry_s=0.1)
        if phase == MOVED or outcome == Outcome.FENCED:
            return verdicts.fenced()
        return verdicts.failure(outcome)

    def _advance(self, step: Step, slot: int, now_ns: int) -> None:
        """The slice is applied: `slot` has the state after it."""
        if step.done < step.length:
            self._ready.push_next_slice(step, slot)
            return
        if step.row == NO_ROW:
            step.state_slot = slot
            step.sink.applied(step)
            self._pool.give_one(slot)
            self._ready.end(step)
            self._turns.leave(step.row, now_ns)
            return
        table, row = self._table, step.row
        self._pool.give_one(int(table.slot[row]))
        table.slot[row] = slot
        table.step[row] += 1
        assert step.number == table.step[row]
        step.durable_step = int(table.durable_step[row])
        self._numbering.save(row, step.digest, step.output())
        step.sink.applied(step)
        self._numbering.applied(row)
        self._ready.end(step)
        if (successor := self._turns.leave(row, now_ns)) is not None:
            self._ready.push_step(successor)

    def _fail(self, step: Step, error: ServeError, now_ns: int) -> None:
        """Nothing of the step happened; nor will anything of those that wait behind it."""
        reason = self._reason_behind(step.row, error)
        behind = self._turns.abandon(step.row, now_ns)
        self._ready.end(step)
        step.sink.failed(step, error)
        self._numbering.failed(step.row, step.number, error)
        self._fail_behind(behind, reason)

    def _reason_behind(self, row: int, error: ServeError) -> Callable[[Step], ServeError]:
        """What those are told who wait behind a step that failed; asked before its row is free."""
        table = self._table
        is_moved = row != NO_ROW and table.phase[row] == MOVED
        is_alone = table.durable_step[row] == NOT_STORED
        return verdicts.behind(error, is_moved, is_alone, int(table.step[row]) + 1)

    def _fail_behind(self, behind: list[Step], reason_of: Callable[[Step], ServeError]) -> None:
        """In order."""
        for step in behind:
            reason = reason_of(step)
            step.sink.failed(step, reason)
            self._numbering.failed(step.row, step.number, reason)

    def _settle_part(
        self, part: Part, write: Slots, outcomes: npt.NDArray[np.uint8], now_ns: int
    ) -> None:
        table = self._table
        is_good = (outcomes == Outcome.APPLIED) & (table.phase[part.rows] < DETACHED)
        if not is_good.all():
            for i in np.flatnonzero(~is_good):
                error = self._verdict(int(part.rows[i]), int(outcomes[i]))
                assert error is not None
                self._pool.give_one(int(write[i]))
                self._fail_part(Part(part.block, part.indices[i : i + 1]), error, now_ns)
            part, write = Part(part.block, part.indices[is_good]), write[is_good]
            if not write.size:
                return  # the block's end has been told
        rows = part.rows
        self._pool.give(table.slot[rows])
        table.slot[rows] = write
        table.step[rows] += 1
        part.block.numbers[part.indices] = table.step[rows]
        part.block.durable_steps[part.indices] = table.durable_step[rows]
        self._save(part)
        for successor in self._turns.leave_rows(rows, now_ns):
            self._ready.push_step(successor)
        part.block.settle(rows.size)

    def _save(self, part: Part) -> None:
        """The replies of a part's rows, where they are numbered; who joined them is answered."""
        block, rows = part.block, part.rows
        if block.digests is None:
            self._table.digest[rows] = 0
        else:
            for i, row in zip(part.indices.tolist(), rows.tolist(), strict=True):
                self._numbering.save(row, int(block.digests[i]), block.output(i))
        if self._numbering.has_followers:
            for row in rows.tolist():
                self._numbering.applied(row)

    def _fail_part(self, part: Part, error: ServeError, now_ns: int) -> None:
        for index, row in zip(part.indices, part.rows, strict=True):
            number = int(self._table.step[row]) + 1
            reason = self._reason_behind(int(row), error)
            behind = self._turns.abandon(int(row), now_ns)
            part.block.fail(int(index), error)
            self._numbering.failed(int(row), number, error)
            self._fail_behind(behind, reason)
        part.block.settle(part.rows.size)
