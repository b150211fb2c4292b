"""The order of one model's work: what waits, what runs together, what settles. Pure.

No clock, no I/O, no await: time is an argument. Responders and `on_idle` are called from here.

A session's steps run one after the other because the session is in the ready queues at most once,
and never while in flight; its other steps wait behind the first. A batch reads the sessions' slots
and writes spare ones; settling flips the index. Until then nothing has happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lstmserve.config import Config
from lstmserve.engine.arrays import Index
from lstmserve.engine.compute.pool import Pool
from lstmserve.engine.errors import Cancelled, DeadlineExpired, Overloaded, ServeError
from lstmserve.engine.scheduling.batch import Batch
from lstmserve.engine.scheduling.ordering import Ordering
from lstmserve.engine.scheduling.queues import ReadyQueues
from lstmserve.engine.scheduling.settle import Settlement
from lstmserve.engine.scheduling.work import NO_SESSION, Chunk, Request, Work
from lstmserve.engine.table import SessionTable

RETRY_S = 0.05


@dataclass(slots=True, eq=False)
class Pause:
    """Of one session, also after it was detached; not of the next one in its row."""

    row: int
    life: int
    chunk: Chunk | None = None  # its first step, once its turn has come


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
        # Steps and the sequences of Predict have the same limit, each its own.
        self._work = Work(2 * config.pending_steps_max)
        self._ready = ReadyQueues(config, self._work, pool)
        self._ordering = Ordering(config, table, self._work, output_size, on_idle)
        self._settlement = Settlement(
            table, self._work, pool, self._ready, self._ordering, on_moved
        )
        self._pauses: dict[int, Pause] = {}  # by row
        self._in_flight: dict[Batch, list[Callable[[], None]]] = {}  # and who waits for its end

    def __repr__(self) -> str:
        return (
            f"Scheduler(pending={self.pending_steps}, ready={len(self._ready)}, "
            f"in_flight={self.in_flight_steps})"
        )

    @property
    def pending_steps(self) -> int:
        """Accepted and not settled: repeats of pending steps and the sequences of Predict too."""
        ordering = self._ordering
        sequences = self._settlement.pending_sequences
        return ordering.pending_steps + ordering.joined_steps + sequences

    @property
    def in_flight_steps(self) -> int:
        """Scheduled and not settled."""
        return sum(batch.size for batch in self._in_flight)

    @property
    def has_ready(self) -> bool:
        """Whether schedule() would find anything."""
        return len(self._ready) > 0

    def accept(self, request: Request) -> None:
        """Accepts the steps of a request. Each that is not next in its session is answered from the
        record, joins the pending step of its number, or is refused: the responder hears of it.

        Raises Overloaded for a request that is refused as a whole.
        """
        ready = self._ordering.accept(request)
        if not request.inputs_left:
            request.forget_input()
        if ready.size == 1:
            self._ready.push_one(request, ready.item())
        elif ready.size:
            self._ready.push_rows(request, ready)

    def accept_sequences(self, request: Request) -> None:
        """Accepts the sequences of a Predict, which has a plan; raises Overloaded.

        They have a limit of their own, so that they never refuse a session its step.
        """
        plan = request.plan
        assert plan is not None
        limit, pending = self._config.pending_steps_max, self._settlement.pending_sequences
        if pending + len(request) > limit:
            raise Overloaded(
                f"{pending} sequences are waiting, the limit is {limit}", retry_s=RETRY_S
            )
        self._settlement.pending_sequences += len(request)
        plan.ids = self._work.add_rows(request, np.arange(len(request)), NO_SESSION, 0)
        self._settlement.begin_group(Chunk(request, plan.ids))

    def schedule(self, now_ns: int) -> Batch | None:
        """The next batch, in flight until settle(); None when nothing is ready."""
        while chunks := self._ready.pop(self._pool.free_count):
            kept = []
            for chunk in chunks:
                if self._pauses:
                    self._keep_paused(chunk)
                if chunk.size:
                    self._end_lapsed(chunk, now_ns)
                if chunk.size:
                    kept.append(chunk)
            if kept:
                return self._begin(kept, now_ns)
        return None

    def settle(self, batch: Batch, now_ns: int, compute_ns: int) -> None:
        """Ends a batch by its outcomes. Replies are given, successors made ready."""
        self._settlement.settle(batch, now_ns, compute_ns)
        for on_rest in self._in_flight.pop(batch):
            on_rest()

    def hold(self, row: int, on_rest: Callable[[], None]) -> Pause:
        """The session's steps wait from now on; on_rest() is called once none is in flight.

        A step that is in flight now is settled as ever; none follows it.
        """
        pause = self._pauses[row] = Pause(row, self._table.life.item(row))
        for batch, waiting in self._in_flight.items():
            if (self._work.session[batch.ids] == row).any():
                waiting.append(on_rest)
                return pause
        on_rest()
        return pause

    def release(self, pause: Pause) -> None:
        """Its steps have their turns again; the caller wakes the batch loop."""
        if self._pauses.get(pause.row) is pause:  # else it ended, and another holds the row
            del self._pauses[pause.row]
            self._give_back(pause)

    def fail_all(self, error: ServeError, now_ns: int) -> None:
        """Ends everything that is not in flight."""
        for pause in self._pauses.values():
            self._give_back(pause)
        for chunk in self._ready.drain():
            self._settlement.fail(chunk, error, now_ns)

    def _begin(self, chunks: list[Chunk], now_ns: int) -> Batch:
        write = self._pool.take(sum(chunk.size for chunk in chunks))
        slots = self._table.slot
        batch = Batch(self._work, chunks, slots, write, self._config.slice_rows_max)
        starts_ns = self._work.start_ns[batch.ids]
        self._work.start_ns[batch.ids] = np.where(starts_ns == 0, now_ns, starts_ns)
        self._in_flight[batch] = []
        return batch

    def _keep_paused(self, chunk: Chunk) -> None:
        """Takes the steps of held sessions out of the chunk."""
        if chunk.request.plan is not None:
            return
        rows = self._work.session[chunk.ids].tolist()
        is_held = np.array([self._is_held(row) for row in rows])
        if not is_held.any():
            return
        if chunk.size == 1:  # also a long one, which may have begun
            own = Chunk(chunk.request, chunk.ids, chunk.held)
            self._pauses[rows[0]].chunk = own
        else:
            for row, work in zip(rows, chunk.ids.tolist(), strict=True):
                if self._is_held(row):
                    self._pauses[row].chunk = Chunk(chunk.request, self._work.one(work))
        chunk.ids = chunk.ids[~is_held]

    def _is_held(self, row: int) -> bool:
        pause = self._pauses.get(row)
        return pause is not None and self._table.life.item(row) in (pause.life, 0)

    def _give_back(self, pause: Pause) -> None:
        chunk, pause.chunk = pause.chunk, None
        if chunk is not None:
            self._ready.push(chunk)

    def _end_lapsed(self, chunk: Chunk, now_ns: int) -> None:
        """Ends what nobody waits for any more and what is late; the chunk keeps the rest.

        A step that a repeat waits for runs, even if its first caller cancelled or its time passed.
        """
        request, work = chunk.request, self._work
        if request.plan is not None:
            if request.is_cancelled:
                self._settlement.fail_sequences(chunk, _gone())
                chunk.ids = chunk.ids[:0]
            return
        is_late = (work.deadline_ns[chunk.ids] < now_ns) & (work.done[chunk.ids] == 0)
        if not (request.is_cancelled or request.cancelled or is_late.any()):
            return
        kept = []
        own = Chunk(request, chunk.ids, chunk.held)
        for each, late in zip(chunk.ids.tolist(), is_late.tolist(), strict=True):
            is_gone = request.is_cancelled or work.place.item(each) in request.cancelled
            if (is_gone or late) and not self._ordering.is_joined(each):
                self._settlement.fail_step(own, each, _gone() if is_gone else _late(), now_ns)
            else:
                kept.append(each)
        chunk.ids = np.array(kept, np.int64)

    def check_integrity(self, rows: Index) -> None:
        """For tests and idle moments: `rows` are this model's used rows of the table."""
        assert not self._in_flight, "check when nothing is in flight"
        self._ordering.check_integrity(rows)
        paused = [pause.chunk.ids for pause in self._pauses.values() if pause.chunk is not None]
        used = [self._ready.queued(), self._ordering.waiting(), *paused]
        self._pool.check_integrity(
            np.concatenate([self._table.slot[rows], self._work.scratch[np.concatenate(used)]])
        )
        self._check_work(np.concatenate(used))

    def _check_work(self, used: Index) -> None:
        """A Predict's rows wait as one, of which only a group is queued."""
        requests = {id(each): each for each in self._work.requests[used]}
        plans = [each.plan for each in requests.values() if each.plan is not None]
        used = used[self._work.session[used] != NO_SESSION]
        of_plans = [plan.ids for plan in plans if plan.ids is not None]
        self._work.check_integrity(np.concatenate([used, *of_plans]))


def _late() -> DeadlineExpired:
    return DeadlineExpired("the deadline passed before the step was computed")


def _gone() -> Cancelled:
    return Cancelled("the caller went away before the step was computed")
