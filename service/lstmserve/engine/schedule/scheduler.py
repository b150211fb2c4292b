"""Owns the order of one model's steps: what waits, what runs together, what settles. Pure.

No clock, no I/O, no await: time is an argument. Sinks and `on_idle` are called from here.

A session's steps run one after the other because the session is in the ready queue at most once,
and never while in flight; its other steps wait inside it. A batch reads the sessions' slots and
writes spare ones; settling flips the index. Until then nothing has happened.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lstmserve.config import Config
from lstmserve.engine.arrays import Index
from lstmserve.engine.compute.pool import Pool
from lstmserve.engine.errors import Overloaded, ServeError
from lstmserve.engine.schedule import verdicts
from lstmserve.engine.schedule.batch import Batch
from lstmserve.engine.schedule.block import Block, BlockRow
from lstmserve.engine.schedule.failures import Failures
from lstmserve.engine.schedule.holds import Hold, Holds
from lstmserve.engine.schedule.lapses import Lapses
from lstmserve.engine.schedule.numbering import Numbering
from lstmserve.engine.schedule.part import ALL, Part
from lstmserve.engine.schedule.queues import ReadyQueues
from lstmserve.engine.schedule.sequences import Sequences
from lstmserve.engine.schedule.settlement import Settlement
from lstmserve.engine.schedule.sizes import length_class
from lstmserve.engine.schedule.step import Step
from lstmserve.engine.schedule.turns import SessionTurns
from lstmserve.engine.table import SUSPECT, SessionTable

RETRY_S = 0.05


class Scheduler:
    """`on_idle(row)` is called when a session that is no longer open has no step left;
    `on_moved(row)` when the store says that another server has it, or its answer was lost.
    """

    def __init__(
        self,
        config: Config,
        table: SessionTable,
        pool: Pool,
        output_size: int,
        on_idle: Callable[[int], None],
        on_moved: Callable[[int], None],
    ) -> None:
        self._config = config
        self._table = table
        self._pool = pool
        self._ready = ReadyQueues(config, pool)
        self._holds = Holds(table, self._ready)
        self._turns = SessionTurns(table, on_idle)
        self._numbering = Numbering(table, self._turns, config, output_size)
        self._failures = Failures(table, self._ready, self._turns, self._numbering, on_moved)
        self._lapses = Lapses(self._numbering, self._failures)
        self._settlement = Settlement(
            table, pool, self._ready, self._turns, self._numbering, self._failures
        )
        self.in_flight_steps = 0  # scheduled and not settled

    def __repr__(self) -> str:
        return (
            f"Scheduler(pending={self.pending_steps}, ready={len(self._ready)}, "
            f"in_flight={self.in_flight_steps})"
        )

    @property
    def pending_steps(self) -> int:
        """Accepted and not settled: repeats of pending steps and the sequences of Predict too."""
        turns = self._turns
        return turns.pending_steps + self._numbering.waiting_steps + turns.pending_sequences

    @property
    def has_ready(self) -> bool:
        """Whether schedule() would find anything."""
        return len(self._ready) > 0

    def submit(self, step: Step) -> None:
        """Accepts a step, or answers a repeated one.

        Raises Overloaded; for a numbered step StepGap, StepSuperseded, StepPayloadMismatch; for
        one without a number StateRolledBack.
        """
        if not step.is_numbered:
            if self._table.suspects:
                self._check_trust(step.row)
        elif not self._numbering.accept(step):
            if self._table.suspects:
                self._table.hear(np.array([step.row]))
            return
        self._numbering.check_room(1)
        if pending := self._table.pending.item(step.row):
            self._numbering.check_session(step.row, pending)
        if step.is_numbered and self._table.suspects:
            self._table.hear(np.array([step.row]))
        if self._turns.enter(step):
            self._ready.push_step(step)

    def _check_trust(self, row: int) -> None:
        """Raises StateRolledBack: until its client has heard of it, however often it sends."""
        if self._table.trust.item(row) == SUSPECT:
            raise verdicts.rolled_back(self._table.step.item(row))

    def submit_block(self, block: Block) -> None:
        """Accepts a block: idle sessions with short steps as columns, the others step by step.

        Raises Overloaded, and then nothing of it is accepted.
        """
        self._numbering.check_room(block.rows.size)
        numbers = block.numbers if block.is_numbered else None
        is_unsure = bool(self._table.suspects) and numbers is None
        if block.is_single and not is_unsure and self._table.are_next(block.rows, numbers):
            self._submit_part(Part(block, ALL))
            return
        pending = self._table.pending[block.rows]
        fullest = int(pending.argmax())
        self._numbering.check_session(int(block.rows[fullest]), int(pending[fullest]))
        as_columns = (pending == 0) & (block.lengths <= self._config.slice_rows_max)
        if numbers is not None:
            as_columns &= numbers == self._table.step[block.rows] + 1
        if is_unsure:
            as_columns &= ~self._table.is_suspect(block.rows)
        classes = np.array([length_class(int(length)) for length in block.lengths])
        for index in np.unique(classes[as_columns]):
            self._submit_part(Part(block, np.flatnonzero(as_columns & (classes == index))))
        for i in np.flatnonzero(~as_columns):
            row = BlockRow(block, int(i))
            try:
                self.submit(row.step)
            except ServeError as error:
                row.step.tell_failed(error)
        block.forget_input_if_joined()

    def submit_sequences(self, sequences: Sequences) -> None:
        """Accepts the sequences of a Predict; raises Overloaded.

        They have a limit of their own, so that they never refuse a session its step.
        """
        limit, pending = self._config.pending_steps_max, self._turns.pending_sequences
        if pending + sequences.left > limit:
            raise Overloaded(
                f"{pending} sequences are waiting, the limit is {limit}", retry_s=RETRY_S
            )
        self._turns.pending_sequences += sequences.left
        self._ready.push_group(sequences)

    def schedule(self, now_ns: int) -> Batch | None:
        """The next batch, in flight until settle(); None when nothing is ready."""
        while entries := self._ready.pop(self._pool.free_count):
            batch = Batch()
            for entry in self._holds.let_through(entries):
                kept = self._lapses.kept(entry, now_ns)
                if kept is not None:
                    batch.add(kept, now_ns)
            if batch.size:
                self._seal(batch)
                return batch
        return None

    def settle(self, batch: Batch, now_ns: int, compute_ns: int) -> None:
        """Ends a batch by its outcomes. Replies are given, successors made ready."""
        self.in_flight_steps -= batch.size
        self._settlement.settle(batch, now_ns, compute_ns)
        self._holds.end(batch)

    def hold(self, row: int, on_rest: Callable[[], None]) -> Hold:
        """The session's steps wait from now on; on_rest() is called when none is in flight."""
        return self._holds.hold(row, on_rest)

    def release(self, hold: Hold) -> None:
        """They have their turns again; whoever drives is to be told."""
        self._holds.release(hold)

    def _submit_part(self, part: Part) -> None:
        digests = part.block.digests
        if part.block.is_numbered and self._table.suspects:
            self._table.hear(part.rows)
        self._turns.enter_rows(part.rows, None if digests is None else digests[part.chosen])
        self._ready.push_part(part)

    def _seal(self, batch: Batch) -> None:
        batch.seal(self._config.slice_rows_max, self._table.slot)
        batch.write = self._pool.take(batch.size)
        self.in_flight_steps += batch.size
        self._holds.begin(batch)

    def fail_all(self, error: ServeError, now_ns: int) -> None:
        """Ends every step that is not in flight."""
        self._holds.give_back()
        for entry in self._ready.drain():
            self._failures.fail(entry, error, now_ns)

    def check_integrity(self, rows: Index) -> None:
        """For tests and idle moments: `rows` are this model's used rows of the table."""
        self._turns.check_integrity()
        self._numbering.check_integrity()
        assert self.in_flight_steps == 0, "check when nothing is in flight"
        self._pool.check_integrity(np.concatenate([self._table.slot[rows], self._ready.held()]))
