"""Owns what a settled batch changes: slots flip, steps count, sinks are told, successors go on.

Pure like the scheduler, whose other half it is. The slot that a row wrote which is not applied is
spare again; failures.py has the rest of that.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Index
from lstmserve.engine.compute.pool import Pool, Slots
from lstmserve.engine.schedule.batch import Batch, Outcome
from lstmserve.engine.schedule.failures import Failures
from lstmserve.engine.schedule.numbering import Numbering
from lstmserve.engine.schedule.part import Part
from lstmserve.engine.schedule.queues import ReadyQueues
from lstmserve.engine.schedule.step import NO_ROW, Step
from lstmserve.engine.schedule.turns import SessionTurns
from lstmserve.engine.table import DETACHED, SessionTable


class Settlement:
    """Writes the table's `slot` and `step`, and nothing else of it."""

    def __init__(
        self,
        table: SessionTable,
        pool: Pool,
        ready: ReadyQueues,
        turns: SessionTurns,
        numbering: Numbering,
        failures: Failures,
    ) -> None:
        self._table = table
        self._pool = pool
        self._ready = ready
        self._turns = turns
        self._numbering = numbering
        self._failures = failures

    def settle(self, batch: Batch, now_ns: int, compute_ns: int) -> None:
        """Ends a batch by its outcomes. Replies are given, successors made ready."""
        if batch.steps:
            self._settle_steps(batch, now_ns, compute_ns)
        for part, columns in batch.columns():
            part.block.compute_ns += compute_ns
            self._settle_part(part, batch.write[columns], batch.outcomes[columns], now_ns)

    def _settle_steps(self, batch: Batch, now_ns: int, compute_ns: int) -> None:
        count = len(batch.steps)
        for step in batch.steps:
            step.compute_ns += compute_ns
        rows, outcomes = batch.rows[:count], batch.outcomes[:count]
        is_plain = batch.is_end[:count] & (outcomes == Outcome.APPLIED)
        is_plain &= self._table.phase[rows] < DETACHED
        for column in np.flatnonzero(~is_plain).tolist():
            step, slot = batch.steps[column], int(batch.write[column])
            error = self._failures.verdict(step.row, int(outcomes[column]))
            if error is None:
                self._go_on(step, slot, now_ns)
            else:
                self._pool.give_one(slot)
                self._failures.fail_step(step, error, now_ns)
        columns = np.flatnonzero(is_plain)
        if columns.size:
            self._end_steps(batch, columns, now_ns)

    def _go_on(self, step: Step, slot: int, now_ns: int) -> None:
        """`slot` has the state after a slice of a long step, or after one of no session."""
        if step.done < step.length:
            self._ready.push_next_slice(step, slot)
            return
        assert step.row == NO_ROW
        step.state_slot = slot
        step.sink.applied(step)
        self._pool.give_one(slot)
        self._ready.end(step)
        self._turns.leave(step.row, now_ns)

    def _end_steps(self, batch: Batch, columns: Index, now_ns: int) -> None:
        """Steps of sessions that are applied whole."""
        rows = batch.rows[columns]
        steps = [batch.steps[column] for column in columns.tolist()]
        numbers = self._flip(rows, batch.write[columns])
        assert numbers.tolist() == [step.number for step in steps]
        self._save_steps(batch, columns, steps)
        durable_steps = self._table.durable_step[rows].tolist()
        for step, durable_step in zip(steps, durable_steps, strict=True):
            step.durable_step = durable_step
            step.sink.applied(step)
            self._ready.end(step)
        self._leave(rows, now_ns)

    def _save_steps(self, batch: Batch, columns: Index, steps: list[Step]) -> None:
        digests = batch.digests(columns)
        if batch.are_single:
            self._numbering.save_rows(batch.rows[columns], digests, batch.y[0, columns])
            return
        for step, digest in zip(steps, digests.tolist(), strict=True):
            self._numbering.save(step.row, digest, step.output())

    def _flip(self, rows: Index, slots: Slots) -> Index:
        """The sessions' states are now in `slots` [N]; returns the numbers of their steps."""
        table = self._table
        self._pool.give(table.slot[rows])
        table.slot[rows] = slots
        numbers = table.step[rows] + 1
        table.step[rows] = numbers
        return numbers

    def _leave(self, rows: Index, now_ns: int) -> None:
        """Who joined the steps that were applied is answered; who waited behind them is next."""
        if self._numbering.has_followers:
            for row in rows.tolist():
                self._numbering.applied(row)
        for successor in self._turns.leave_rows(rows, now_ns):
            self._ready.push_step(successor)

    def _settle_part(
        self, part: Part, write: Slots, outcomes: npt.NDArray[np.uint8], now_ns: int
    ) -> None:
        table = self._table
        is_good = (outcomes == Outcome.APPLIED) & (table.phase[part.rows] < DETACHED)
        if not is_good.all():
            for i in np.flatnonzero(~is_good):
                error = self._failures.verdict(int(part.rows[i]), int(outcomes[i]))
                assert error is not None
                self._pool.give_one(int(write[i]))
                self._failures.fail_part(Part(part.block, part.indices[i : i + 1]), error, now_ns)
            part, write = Part(part.block, part.indices[is_good]), write[is_good]
            if not write.size:
                return  # the block's end has been told
        rows, block = part.rows, part.block
        block.numbers[part.indices] = self._flip(rows, write)
        block.durable_steps[part.indices] = self._table.durable_step[rows]
        self._save_part(part)
        self._leave(rows, now_ns)
        block.settle(rows.size)

    def _save_part(self, part: Part) -> None:
        block, rows = part.block, part.rows
        if block.digests is None:
            self._table.digest[rows] = 0
            self._table.replies.forget_rows(rows)
        elif block.last_only or int(part.lengths.max()) == 1:
            y = block.y[block.places[part.indices]]
            self._numbering.save_rows(rows, block.digests[part.indices], y)
        else:
            for i, row in zip(part.indices.tolist(), rows.tolist(), strict=True):
                self._numbering.save(row, int(block.digests[i]), block.output(i))
