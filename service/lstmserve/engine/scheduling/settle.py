"""What a batch's end changes: slots flip, steps count, replies go out, the next steps are ready.

Until then nothing has happened. A row that is not applied changes nothing but the queue: its
session is as it was, and the steps that wait behind it in the session fail too. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from lstmserve.engine.arrays import Index, Output
from lstmserve.engine.compute.pool import Pool, Slots
from lstmserve.engine.errors import (
    Fenced,
    ModelError,
    PredecessorFailed,
    ServeError,
    SessionReplaced,
    StepGap,
    StoreFull,
    StoreTimeout,
    StoreUnavailable,
)
from lstmserve.engine.scheduling.batch import Batch
from lstmserve.engine.scheduling.ordering import Ordering
from lstmserve.engine.scheduling.queues import ReadyQueues
from lstmserve.engine.scheduling.work import NO_SLOTS, Applied, Chunk, Outcome, Plan, Request
from lstmserve.engine.table import DETACHED, MOVED, NOT_STORED, SessionTable

APPLIED = int(Outcome.APPLIED)  # an IntEnum's comparisons cost as much as a step's arithmetic
COLUMNS_FROM = 4  # for fewer rows, columns cost more than one row after the other
NO_ROWS: Index = np.zeros(0, np.int64)


class Settlement:
    """Writes the table's `slot` and `step`.

    `on_moved(row)` is called for a session that the store says another server has, or may have.
    """

    def __init__(
        self,
        table: SessionTable,
        pool: Pool,
        ready: ReadyQueues,
        ordering: Ordering,
        on_moved: Callable[[int], None],
    ) -> None:
        self._table = table
        self._pool = pool
        self._ready = ready
        self._ordering = ordering
        self._on_moved = on_moved
        self.pending_sequences = 0  # of Predict: accepted and not settled

    def settle(self, batch: Batch, now_ns: int, compute_ns: int) -> None:
        """Ends a batch by its outcomes."""
        for chunk, columns in batch.columns():
            chunk.compute_ns += compute_ns
            if chunk.request.plan is not None:
                self._settle_group(batch, chunk, columns)
            elif chunk.size < COLUMNS_FROM or chunk.held:  # a long step, which is alone
                self.settle_each(batch, chunk, range(chunk.size), columns.start, now_ns)
            else:
                self.settle_columns(batch, chunk, columns, now_ns)

    # Steps of sessions --------------------------------------------------------------------------

    def settle_each(
        self, batch: Batch, chunk: Chunk, rows: Iterable[int], start: int, now_ns: int
    ) -> None:
        """Settles some rows of a chunk, which begins in column `start`, one after the other."""
        for i in rows:
            self._settle_one(batch, chunk, i, start + i, now_ns)

    def settle_columns(self, batch: Batch, chunk: Chunk, columns: slice, now_ns: int) -> None:
        """Settles a chunk of many rows: those that simply end as columns, the others one by one."""
        outcomes, write = batch.outcomes[columns], batch.write[columns]
        is_plain = outcomes == APPLIED
        if self._table.leaving:
            is_plain &= self._table.phase[chunk.rows] < DETACHED
        if chunk.length == 1:
            last = batch.y[0, columns]
        else:
            last = batch.y[batch.lengths[columns] - 1, np.arange(columns.start, columns.stop)]
        if not is_plain.all():
            bad = np.flatnonzero(~is_plain).tolist()
            self.settle_each(batch, chunk, bad, columns.start, now_ns)
            chunk.keep(is_plain)
            write, last = write[is_plain], last[is_plain]
        if chunk.size:
            self._end_columns(chunk, write, last, now_ns)

    def _settle_one(self, batch: Batch, chunk: Chunk, i: int, column: int, now_ns: int) -> None:
        """Settles row i of the chunk."""
        row, slot = chunk.row(i), batch.write.item(column)
        outcome = batch.outcomes.item(column)
        if outcome != APPLIED or self._table.phase.item(row) >= DETACHED:
            error = self._failure(row, outcome, batch.cause)
            self._pool.give_one(slot)
            self.fail_step(chunk, i, error, now_ns)
        elif not batch.is_last(chunk):
            assert chunk.size == 1, "a long step runs by itself"
            self._go_on(batch, chunk, batch.write[column : column + 1])
        else:
            self._end_one(chunk, i, slot, now_ns)

    def _go_on(self, batch: Batch, chunk: Chunk, slots: Slots) -> None:
        """Puts a chunk that has another slice back; `slots` [n] have the states of its rows."""
        self._ready.keep(chunk, slots)
        chunk.done += batch.length_max
        self._ready.push_again(chunk)

    def _end_one(self, chunk: Chunk, i: int, slot: int, now_ns: int) -> None:
        """Applies a session's step, which is computed whole."""
        table, row, place = self._table, chunk.row(i), chunk.place(i)
        self._pool.give_one(table.slot.item(row))
        table.slot[row] = slot
        number = table.step.item(row) + 1
        table.step[row] = number
        self._ordering.save(row, chunk.request.output(place))
        durable = table.durable_step.item(row)
        self._ready.end(chunk)
        chunk.request.answer(
            Applied([place], [number], [durable], chunk.start_ns, chunk.compute_ns)
        )
        if self._ordering.has_joined:
            self._ordering.answer_joined(row)
        following = self._ordering.leave(row, now_ns)
        if following is not None:
            self._ready.push(following)

    def _end_columns(self, chunk: Chunk, slots: Slots, last: Output, now_ns: int) -> None:
        """Applies the steps of many sessions. `last` [n, ...] are the outputs of their last time
        steps."""
        table, rows = self._table, chunk.rows
        self._pool.give(table.slot[rows])
        table.slot[rows] = slots
        numbers = table.step[rows] + 1
        table.step[rows] = numbers
        if chunk.length == 1 or chunk.request.last_only:
            self._ordering.save_rows(rows, last)
        else:
            for row, place in zip(rows.tolist(), chunk.places.tolist(), strict=True):
                self._ordering.save(row, chunk.request.output(place))
        places = range(chunk.size) if chunk.is_whole else chunk.places.tolist()
        durable = table.durable_step[rows].tolist()
        chunk.request.answer(
            Applied(places, numbers.tolist(), durable, chunk.start_ns, chunk.compute_ns)
        )
        if self._ordering.has_joined:
            for row in rows.tolist():
                self._ordering.answer_joined(row)
        for following in self._ordering.leave_rows(rows, now_ns):
            self._ready.push(following)

    # Failures -----------------------------------------------------------------------------------

    def fail(self, chunk: Chunk, error: ServeError, now_ns: int) -> None:
        """Fails the chunk's steps, and all steps that wait behind them."""
        if chunk.request.plan is not None:
            self.fail_sequences(chunk, error)
            return
        for i in range(chunk.size):
            self.fail_step(chunk, i, error, now_ns)

    def fail_step(self, chunk: Chunk, i: int, error: ServeError, now_ns: int) -> None:
        """Fails the step of row i, and all steps that wait behind it."""
        row = chunk.row(i)
        number = self._table.step.item(row) + 1
        reason = self._reason_behind(row, error)
        behind = self._ordering.abandon(row, now_ns)
        self._ready.end(chunk)
        chunk.request.fail(chunk.place(i), error)
        self._ordering.fail_joined(row, number, error)
        for later, (request, place) in enumerate(behind, number + 1):
            why = reason(is_numbered=request.number(place) > 0)
            request.fail(place, why)
            self._ordering.fail_joined(row, later, why)

    def _failure(self, row: int, outcome: int, cause: Exception | None) -> ServeError:
        """The error of a row whose step is not applied; drops what is stale here."""
        phase = self._table.phase.item(row)
        if phase == DETACHED:
            return SessionReplaced("the session was replaced while this step was waiting")
        if outcome in (Outcome.FENCED, Outcome.UNKNOWN) and phase != MOVED:
            self._on_moved(row)
        if outcome == Outcome.UNKNOWN:
            return StoreTimeout("the store's answer was lost: repeat the same step", retry_s=0.1)
        if phase == MOVED or outcome == Outcome.FENCED:
            return _fenced()
        if outcome == Outcome.NOT_STORED:
            return StoreUnavailable("the store did not take this step: repeat it", retry_s=1.0)
        if outcome == Outcome.STORE_FULL:
            return StoreFull(
                "the store is full, until its operator makes room: send the step again then; "
                "the session is as it was before"
            )
        return _model_error("the model failed on this step; the session is as it was before", cause)

    def _reason_behind(self, row: int, error: ServeError) -> Callable[..., ServeError]:
        """The error for steps that wait behind one that failed with `error`.

        Without a store the number that the session waits for is certain. With one the session may
        have gone on elsewhere: a repeat asks the store. The caller asks for this error before the
        row is free.
        """
        is_moved = self._table.phase.item(row) == MOVED
        is_alone = self._table.durable_step.item(row) == NOT_STORED
        expected = self._table.step.item(row) + 1

        def reason(*, is_numbered: bool) -> ServeError:
            if isinstance(error, SessionReplaced):
                return error
            if is_moved:
                return _fenced()
            if not is_numbered:
                return PredecessorFailed("an earlier step of the session was not applied")
            if not is_alone:
                return Fenced("an earlier step was not applied: repeat this one", retry_s=0.0)
            return StepGap(
                f"an earlier step was not applied: send step {expected} again",
                metadata={"expected_step": str(expected)},
            )

        return reason

    # Sequences of a Predict ---------------------------------------------------------------------

    def begin_sequences(self, request: Request) -> None:
        """Queues the first group, which may run, or waits for scratch slots."""
        plan = request.plan
        assert plan is not None
        self.pending_sequences += len(request)
        self._push_group(request, plan)

    def _push_group(self, request: Request, plan: Plan) -> None:
        places = plan.groups[plan.turn]
        lengths = np.asarray(request.lengths)[places]
        self._ready.push(Chunk(request, places, NO_ROWS, lengths.item(0), lengths))

    def fail_sequences(self, chunk: Chunk, error: ServeError) -> None:
        """Fails all sequences, those that were computed too: a Predict is whole or not at all."""
        request = chunk.request
        assert request.plan is not None
        self._ready.end(chunk)
        self.pending_sequences -= request.plan.left
        for place in range(len(request)):
            request.fail(place, error)

    def _settle_group(self, batch: Batch, chunk: Chunk, columns: slice) -> None:
        request, write = chunk.request, batch.write[columns]
        plan = request.plan
        assert plan is not None
        if batch.outcomes[columns].any():
            self._pool.give(write)
            error = _model_error("the model failed on a sequence", batch.cause)
            self.fail_sequences(chunk, error)
            return
        is_over = batch.is_end(chunk)
        over = int(np.count_nonzero(is_over))
        plan.left -= over
        self.pending_sequences -= over
        self._keep_finals(plan, chunk.places[is_over], write[is_over])
        self._pool.give(write[is_over])
        plan.start_ns = plan.start_ns or chunk.start_ns
        if over < chunk.size:
            self._pool.give(chunk.scratch)
            chunk.scratch = NO_SLOTS
            chunk.keep(~is_over)
            self._go_on(batch, chunk, write[~is_over])
            return
        plan.compute_ns += chunk.compute_ns
        self._ready.end(chunk)
        plan.turn += 1
        if plan.turn < len(plan.groups):
            self._push_group(request, plan)
            return
        count = len(request)
        zeros = [0] * count
        applied = Applied(list(range(count)), zeros, zeros, plan.start_ns, plan.compute_ns)
        request.answer(applied)

    def _keep_finals(self, plan: Plan, places: Index, slots: Slots) -> None:
        if plan.finals is not None and places.size:
            for name, rows in self._pool.read(slots).items():
                plan.finals[name][places] = rows


def _model_error(message: str, cause: Exception | None) -> ModelError:
    """The log has the cause, the client does not."""
    error = ModelError(message)
    error.__cause__ = cause
    return error


def _fenced() -> Fenced:
    """Nothing was applied here; a repeat finds the session where it is now."""
    return Fenced("another server has this session now: repeat the step", retry_s=0.0)
