"""Owns what a settled batch changes: slots flip, steps count, sinks are told, successors go on.

Pure like the scheduler, whose other half it is. The slot that a row wrote which is not applied is
spare again; failures.py has the rest of that.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Index
from lstmserve.engine.compute.pool import Pool, Slots
from lstmserve.engine.schedule.batch import Batch
from lstmserve.engine.schedule.failures import Failures
from lstmserve.engine.schedule.groups import Groups
from lstmserve.engine.schedule.numbering import Numbering
from lstmserve.engine.schedule.outcome import Outcome
from lstmserve.engine.schedule.part import Part
from lstmserve.engine.schedule.queues import ReadyQueues
from lstmserve.engine.schedule.step import Step
from lstmserve.engine.schedule.turns import SessionTurns
from lstmserve.engine.table import DETACHED, SessionTable

APPLIED = int(Outcome.APPLIED)  # an IntEnum's comparisons cost as much as a step's arithmetic
MANY = 8  # from so many steps on, columns cost less than a step after the other


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
        self._groups = Groups(pool, ready, turns, failures)

    def settle(self, batch: Batch, now_ns: int, compute_ns: int) -> None:
        """Ends a batch by its outcomes. Replies are given, successors made ready."""
        for step in batch.steps:
            step.compute_ns += compute_ns
            step.end_ns = now_ns
        if len(batch.steps) < MANY:
            for column, step in enumerate(batch.steps):
                outcome = batch.outcomes.item(column)
                self._settle_step(step, batch.write.item(column), outcome, now_ns)
        else:
            self._settle_steps(batch, now_ns)
        for part, columns in batch.columns():
            part.block.compute_ns += compute_ns
            self._settle_part(part, batch.write[columns], batch.outcomes[columns], now_ns)
        for sequences, columns in batch.sequence_columns():
            sequences.compute_ns += compute_ns
            self._groups.settle(sequences, batch.write[columns], batch.outcomes[columns])

    def _settle_steps(self, batch: Batch, now_ns: int) -> None:
        """As columns, but for those that do not simply end."""
        count = len(batch.steps)
        rows, outcomes = batch.step_rows(), batch.outcomes[:count]
        is_plain = batch.is_step_end() & (outcomes == Outcome.APPLIED)
        is_plain &= self._table.phase[rows] < DETACHED
        for column in np.flatnonzero(~is_plain).tolist():
            slot, outcome = batch.write.item(column), outcomes.item(column)
            self._settle_step(batch.steps[column], slot, outcome, now_ns)
        columns = np.flatnonzero(is_plain)
        if columns.size:
            self._end_steps(batch, rows[columns], columns, now_ns)

    def _settle_step(self, step: Step, slot: int, outcome: int, now_ns: int) -> None:
        """`slot` has what the batch wrote for the step."""
        row = step.row
        if outcome != APPLIED or self._table.phase.item(row) >= DETACHED:
            error = self._failures.verdict(row, outcome)
            assert error is not None
            self._pool.give_one(slot)
            self._failures.fail_step(step, error, now_ns)
        elif step.done < step.length:
            self._ready.push_next_slice(step, slot)
        else:
            self._end_step(step, slot, now_ns)

    def _end_step(self, step: Step, slot: int, now_ns: int) -> None:
        """A session's step is applied whole."""
        table, row = self._table, step.row
        self._pool.give_one(table.slot.item(row))
        table.slot[row] = slot
        table.step[row] = step.number
        self._numbering.save(row, step.digest, step.output())
        self._tell(step, table.durable_step.item(row))
        self._numbering.applied(row)
        if (successor := self._turns.leave(row, now_ns)) is not None:
            self._ready.push_step(successor)

    def _end_steps(self, batch: Batch, rows: Index, columns: Index, now_ns: int) -> None:
        """The same for some of a batch's steps, as columns."""
        steps = [batch.steps[column] for column in columns.tolist()]
        numbers = self._flip(rows, batch.write[columns])
        assert numbers.tolist() == [step.number for step in steps]
        self._save_steps(batch, rows, columns, steps)
        for step, durable in zip(steps, self._table.durable_step[rows].tolist(), strict=True):
            self._tell(step, durable)
        self._leave(rows, now_ns)

    def _tell(self, step: Step, durable_step: int) -> None:
        step.durable_step = durable_step
        step.tell_applied()
        self._ready.end(step)

    def _save_steps(self, batch: Batch, rows: Index, columns: Index, steps: list[Step]) -> None:
        digests = batch.digests(columns)
        if batch.are_single:
            self._numbering.save_rows(rows, digests, batch.y[0, columns])
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
        if outcomes.any() or self._table.leaving:
            part, write = self._fail_bad(part, write, outcomes, now_ns)
            if not write.size:
                return  # the block's end has been told
        rows, block = part.rows, part.block
        block.numbers[part.chosen] = self._flip(rows, write)
        block.durable_steps[part.chosen] = self._table.durable_step[rows]
        self._save_part(part)
        self._leave(rows, now_ns)
        block.settle(rows.size)

    def _fail_bad(
        self, part: Part, write: Slots, outcomes: npt.NDArray[np.uint8], now_ns: int
    ) -> tuple[Part, Slots]:
        """Those that are applied, with their slots; the others get their error."""
        is_good = (outcomes == Outcome.APPLIED) & (self._table.phase[part.rows] < DETACHED)
        if is_good.all():
            return part, write
        indices = part.indices
        for i in np.flatnonzero(~is_good):
            error = self._failures.verdict(int(part.rows[i]), int(outcomes[i]))
            assert error is not None
            self._pool.give_one(int(write[i]))
            self._failures.fail_part(Part(part.block, indices[i : i + 1]), error, now_ns)
        return Part(part.block, indices[is_good]), write[is_good]

    def _save_part(self, part: Part) -> None:
        block, rows = part.block, part.rows
        if block.digests is None:
            self._table.digest[rows] = 0
            self._table.replies.forget_rows(rows)
        elif block.last_only or part.length_max == 1:
            self._numbering.save_rows(rows, block.digests[part.chosen], part.last_outputs())
        else:
            for i, row in zip(part.indices.tolist(), rows.tolist(), strict=True):
                self._numbering.save(row, int(block.digests[i]), block.output(i))
