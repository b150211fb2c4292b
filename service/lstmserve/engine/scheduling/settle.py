"""What a batch's end changes: slots flip, steps count, replies go out, the next steps are ready.

Until then nothing has happened. A row that is not applied changes nothing but the queue: its
session is as it was, and the steps that wait behind it in the session fail too. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Index
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
from lstmserve.engine.scheduling.work import Applied, Chunk, Outcome, Work
from lstmserve.engine.table import DETACHED, MOVED, NOT_STORED, SessionTable

APPLIED = int(Outcome.APPLIED)  # an IntEnum's comparisons cost as much as a step's arithmetic
COLUMNS_FROM = 8  # below so many rows, columns cost more than one row after the other


class Settlement:
    """Writes the table's `slot` and `step`.

    `on_moved(row)` is called for a session that the store says another server has, or may have.
    """

    def __init__(
        self,
        table: SessionTable,
        work: Work,
        pool: Pool,
        ready: ReadyQueues,
        ordering: Ordering,
        on_moved: Callable[[int], None],
    ) -> None:
        self._table = table
        self._work = work
        self._pool = pool
        self._ready = ready
        self._ordering = ordering
        self._on_moved = on_moved
        self.pending_sequences = 0  # of Predict: accepted and not settled

    def settle(self, batch: Batch, now_ns: int, compute_ns: int) -> None:
        """Ends a batch by its outcomes."""
        self._work.compute_ns[batch.ids] += compute_ns
        steps: list[tuple[Chunk, slice]] = []
        for chunk, columns in batch.columns():
            if chunk.request.plan is None:
                steps.append((chunk, columns))
            else:
                self._settle_group(chunk, batch.write[columns], batch.outcomes[columns])
        if batch.size < COLUMNS_FROM:
            self.settle_one_by_one(batch, steps, now_ns)
        elif steps:
            self.settle_columns(batch, steps, now_ns)

    # Steps of sessions --------------------------------------------------------------------------

    def settle_one_by_one(
        self, batch: Batch, steps: list[tuple[Chunk, slice]], now_ns: int
    ) -> None:
        """For few rows."""
        for chunk, columns in steps:
            for column in range(columns.start, columns.stop):
                self._settle_one(batch, chunk, column, now_ns)

    def settle_columns(self, batch: Batch, steps: list[tuple[Chunk, slice]], now_ns: int) -> None:
        """For many: those that simply end as columns, the others one by one."""
        work, ids = self._work, batch.ids
        rows = work.session[ids]
        is_plain = (batch.outcomes == APPLIED) & (work.done[ids] == work.length[ids])
        if self._table.leaving:
            is_plain &= self._table.phase[rows] < DETACHED
        ended: list[tuple[Chunk, Index]] = []
        for chunk, columns in steps:
            plain = is_plain[columns]
            if plain.all():
                ended.append((chunk, np.arange(columns.start, columns.stop)))
                continue
            for column in (np.flatnonzero(~plain) + columns.start).tolist():
                self._settle_one(batch, chunk, column, now_ns)
            if plain.any():
                ended.append((chunk, np.flatnonzero(plain) + columns.start))
        if ended:
            self._end_columns(batch, ended, now_ns)

    def _settle_one(self, batch: Batch, chunk: Chunk, column: int, now_ns: int) -> None:
        work, slot = batch.ids.item(column), batch.write.item(column)
        row, outcome = self._work.session.item(work), batch.outcomes.item(column)
        if outcome != APPLIED or self._table.phase.item(row) >= DETACHED:
            error = self._failure(row, outcome)
            self._pool.give_one(slot)
            self.fail_step(chunk, work, error, now_ns)
        elif self._work.done.item(work) < self._work.length.item(work):
            assert chunk.size == 1, "a long step runs by itself"
            self._ready.keep(chunk, chunk.ids, batch.write[column : column + 1])
            self._ready.push(chunk)
        else:
            self._end_one(chunk, work, slot, now_ns)

    def _end_one(self, chunk: Chunk, work: int, slot: int, now_ns: int) -> None:
        """A session's step is applied whole."""
        table, columns, request = self._table, self._work, chunk.request
        row, number = columns.session.item(work), columns.number.item(work)
        place = columns.place.item(work)
        self._pool.give_one(table.slot.item(row))
        table.slot[row] = slot
        table.step[row] = number
        self._ordering.save(row, columns.digest.item(work), request.output(place))
        applied = Applied(
            [place],
            [number],
            [table.durable_step.item(row)],
            [columns.start_ns.item(work)],
            [columns.compute_ns.item(work)],
        )
        self._ready.end(chunk)
        request.answer(applied)
        if self._ordering.has_joined:
            self._ordering.answer_joined(work)
        following = self._ordering.leave(row, now_ns)
        columns.free_one(work)
        if following:
            self._ready.push_one(columns.requests[following], following)

    def _end_columns(self, batch: Batch, ended: list[tuple[Chunk, Index]], now_ns: int) -> None:
        """The same for many; columns of the batch, in their chunks."""
        each = [columns for _, columns in ended]
        columns = each[0] if len(each) == 1 else np.concatenate(each)
        ids = batch.ids[columns]
        work, table = self._work, self._table
        rows, numbers = work.session[ids], work.number[ids]
        self._pool.give(table.slot[rows])
        table.slot[rows] = batch.write[columns]
        table.step[rows] = numbers
        self._save_columns(batch, columns, ids, rows)
        self._answer_columns(ended, ids, rows, numbers)
        if self._ordering.has_joined:
            for one in ids.tolist():
                self._ordering.answer_joined(one)
        following = self._ordering.leave_rows(rows, now_ns)
        work.free(ids)
        for one in following.tolist():
            self._ready.push_one(work.requests[one], one)

    def _save_columns(self, batch: Batch, columns: Index, ids: Index, rows: Index) -> None:
        work, digests = self._work, self._work.digest[ids]
        is_one_row = work.last_only[ids] | (work.length[ids] == 1)
        if is_one_row.all():
            last = batch.y[batch.lengths[columns] - 1, columns]
            self._ordering.save_rows(rows, digests, last)
            return
        for one, row, digest in zip(ids.tolist(), rows.tolist(), digests.tolist(), strict=True):
            request = work.requests[one]
            self._ordering.save(row, digest, request.output(work.place.item(one)))

    def _answer_columns(
        self, ended: list[tuple[Chunk, Index]], ids: Index, rows: Index, numbers: Index
    ) -> None:
        work = self._work
        found = (
            work.place[ids].tolist(),
            numbers.tolist(),
            self._table.durable_step[rows].tolist(),
            work.start_ns[ids].tolist(),
            work.compute_ns[ids].tolist(),
        )
        start = 0
        for chunk, columns in ended:
            stop = start + columns.size
            self._ready.end(chunk)
            whole = stop - start == ids.size
            chunk.request.answer(
                Applied(*found) if whole else Applied(*(each[start:stop] for each in found))
            )
            start = stop

    # Failures -----------------------------------------------------------------------------------

    def fail(self, chunk: Chunk, error: ServeError, now_ns: int) -> None:
        """Nothing of the chunk happened; nor will anything of the steps that wait behind it."""
        if chunk.request.plan is not None:
            self.fail_sequences(chunk, error)
            return
        for work in chunk.ids.tolist():
            self.fail_step(chunk, work, error, now_ns)

    def fail_step(self, chunk: Chunk, work: int, error: ServeError, now_ns: int) -> None:
        """Nothing of the step happened; nor will anything of those that wait behind it."""
        row = self._work.session.item(work)
        reason = self._reason_behind(row, error)
        behind = self._ordering.abandon(row, now_ns)
        if chunk.held:
            self._ready.end(chunk)
        chunk.request.fail(self._work.place.item(work), error)
        self._ordering.fail_joined(work, error)
        self._work.free_one(work)
        for each in behind:
            request, place = self._work.requests[each], self._work.place.item(each)
            why = reason(is_numbered=bool(self._work.digest.item(each)))
            request.fail(place, why)
            self._ordering.fail_joined(each, why)
            self._work.free_one(each)

    def _failure(self, row: int, outcome: int) -> ServeError:
        """Why a row's step is not applied; drops what is stale here."""
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
        return ModelError("the model failed on this step; the session is as it was before")

    def _reason_behind(self, row: int, error: ServeError) -> Callable[..., ServeError]:
        """The error of steps that wait behind one that failed with `error`.

        Without a store the number that the session waits for is certain. With one the session may
        have gone on elsewhere: a repeat asks the store. It is asked for before the row is free.
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

    def begin_group(self, chunk: Chunk) -> None:
        """The next group of a Predict's sequences may run, or waits for scratch slots."""
        request = chunk.request
        plan = request.plan
        assert plan is not None
        assert plan.ids is not None
        chunk.ids = plan.ids[plan.groups[plan.turn]]
        longest = int(self._work.length[chunk.ids].max())
        is_kept = plan.initial is not None or longest > self._ready.slice_rows_max
        self._ready.push_group(chunk, is_kept=is_kept)

    def fail_sequences(self, chunk: Chunk, error: ServeError) -> None:
        """All of them, those that were computed too: a Predict is whole or not at all."""
        request = chunk.request
        assert request.plan is not None
        assert request.plan.ids is not None
        self._ready.end(chunk)
        self.pending_sequences -= request.plan.left
        self._work.free(request.plan.ids)
        for place in range(len(request)):
            request.fail(place, error)

    def _settle_group(self, chunk: Chunk, write: Slots, outcomes: npt.NDArray[np.uint8]) -> None:
        plan = chunk.request.plan
        assert plan is not None
        if outcomes.any():
            self._pool.give(write)
            self.fail_sequences(chunk, ModelError("the model failed on a sequence"))
            return
        work, ids = self._work, chunk.ids
        is_over = work.done[ids] == work.length[ids]
        over = int(np.count_nonzero(is_over))
        plan.left -= over
        self.pending_sequences -= over
        self._keep_finals(chunk, ids[is_over], write[is_over])
        self._pool.give(write[is_over])
        if not is_over.all():
            self._ready.keep(chunk, ids[~is_over], write[~is_over])
            self._ready.push(chunk)
            return
        self._ready.end(chunk)
        self._end_group(chunk)

    def _keep_finals(self, chunk: Chunk, ids: Index, slots: Slots) -> None:
        plan = chunk.request.plan
        assert plan is not None
        if plan.finals is None or not ids.size:
            return
        places = self._work.place[ids]
        for name, rows in self._pool.read(slots).items():
            plan.finals[name][places] = rows

    def _end_group(self, chunk: Chunk) -> None:
        request = chunk.request
        plan = request.plan
        assert plan is not None
        assert plan.ids is not None
        plan.turn += 1
        if plan.turn < len(plan.groups):
            self.begin_group(chunk)
            return
        starts, computes = self._work.start_ns[plan.ids], self._work.compute_ns[plan.ids]
        zeros = [0] * len(request)
        self._work.free(plan.ids)
        places = list(range(len(request)))
        request.answer(Applied(places, zeros, zeros, starts.tolist(), computes.tolist()))


def _fenced() -> Fenced:
    """Nothing was applied here; a repeat finds the session where it is now."""
    return Fenced("another server has this session now: repeat the step", retry_s=0.0)
