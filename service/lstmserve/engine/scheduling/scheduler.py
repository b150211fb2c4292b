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
import numpy.typing as npt

from lstmserve.config import Config
from lstmserve.engine.arrays import Index
from lstmserve.engine.compute.pool import Pool
from lstmserve.engine.errors import Cancelled, DeadlineExpired, Overloaded, ServeError
from lstmserve.engine.scheduling.batch import Batch
from lstmserve.engine.scheduling.ordering import Ordering
from lstmserve.engine.scheduling.queues import ReadyQueues
from lstmserve.engine.scheduling.settle import Settlement
from lstmserve.engine.scheduling.work import Chunk, Request
from lstmserve.engine.table import SessionTable
from lstmserve.rows import RowFormat

RETRY_S = 0.05


@dataclass(slots=True, eq=False)
class Pause:
    """Holds back one session's steps, also after its detachment, but not those of its row's next
    one."""

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
        outputs: RowFormat,
        on_idle: Callable[[int], None],
        on_moved: Callable[[int], None],
    ) -> None:
        self._config = config
        self._table = table
        self._pool = pool
        self._ready = ReadyQueues(config, pool)
        self._ordering = Ordering(config, table, outputs, on_idle)
        self._settlement = Settlement(table, pool, self._ready, self._ordering, on_moved)
        self._pauses: dict[int, Pause] = {}  # by row
        self._in_flight: dict[Batch, list[Callable[[], None]]] = {}  # with the callbacks of its end

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

    def rows_in_flight(self) -> Index:
        """The rows of the table whose steps are in flight."""
        rows = np.concatenate([np.empty(0, np.int64), *(each.rows() for each in self._in_flight)])
        return np.unique(rows[rows >= 0])

    @property
    def has_ready(self) -> bool:
        """Whether schedule() would find anything."""
        return len(self._ready) > 0

    def accept(self, request: Request) -> None:
        """Accepts the steps of a request. Each that is not next in its session is answered from the
        record, joins the pending step of its number, or is refused: the responder hears of it.

        Raises Overloaded for a request that is refused as a whole.
        """
        for chunk in self._ordering.accept(request):
            self._ready.push(chunk)
        if not request.inputs_left:
            request.forget_input()

    def accept_sequences(self, request: Request) -> None:
        """Accepts the sequences of a Predict, which has a plan; raises Overloaded.

        They have a limit of their own, so that they never refuse a session its step.
        """
        limit, pending = self._config.pending_steps_max, self._settlement.pending_sequences
        if pending + len(request) > limit:
            raise Overloaded(
                f"{pending} sequences are waiting, the limit is {limit}", retry_s=RETRY_S
            )
        self._settlement.begin_sequences(request)

    def schedule(self, now_ns: int) -> Batch | None:
        """The next batch, in flight until settle(); None when nothing is ready."""
        while chunks := self._ready.pop(self._pool.free_count):
            if self._pauses:
                chunks = [each for chunk in chunks if (each := self._unpaused(chunk)) is not None]
            chunks = [chunk for chunk in chunks if self._end_lapsed(chunk, now_ns)]
            if chunks:
                return self._begin(chunks, now_ns)
        return None

    def settle(self, batch: Batch, now_ns: int, compute_ns: int) -> None:
        """Ends a batch by its outcomes: gives the replies, and makes the next steps ready."""
        self._settlement.settle(batch, now_ns, compute_ns)
        for on_rest in self._in_flight.pop(batch):
            on_rest()

    def hold(self, row: int, on_rest: Callable[[], None]) -> Pause:
        """The session's steps wait from now on; on_rest() is called once none is in flight.

        A step that is in flight now is settled as ever; none follows it.
        """
        pause = self._pauses[row] = Pause(row, self._table.life.item(row))
        for batch, waiting in self._in_flight.items():
            if (batch.rows() == row).any():
                waiting.append(on_rest)
                return pause
        on_rest()
        return pause

    def release(self, pause: Pause) -> None:
        """Lets the session's steps have their turns again; the caller wakes the batch loop."""
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
        batch = Batch(chunks, self._table.slot, self._config.slice_rows_max)
        batch.write = self._pool.take(batch.size)
        for chunk in chunks:
            chunk.start_ns = chunk.start_ns or now_ns
        self._in_flight[batch] = []
        return batch

    def _unpaused(self, chunk: Chunk) -> Chunk | None:
        """The chunk without the steps of held sessions, which wait with their pauses."""
        is_held = np.array([self._is_held(row) for row in chunk.rows.tolist()], np.bool_)
        if not is_held.any():
            return chunk
        if chunk.size == 1:
            self._pauses[chunk.row(0)].chunk = chunk
            return None
        for i in np.flatnonzero(is_held).tolist():
            row = chunk.row(i)
            self._pauses[row].chunk = Chunk(
                chunk.request, chunk.place(i), row, chunk.request.length(chunk.place(i))
            )
        chunk.keep(~is_held)
        return chunk if chunk.size else None

    def _is_held(self, row: int) -> bool:
        pause = self._pauses.get(row)
        return pause is not None and self._table.life.item(row) in (pause.life, 0)

    def _give_back(self, pause: Pause) -> None:
        chunk, pause.chunk = pause.chunk, None
        if chunk is not None:
            self._ready.push_again(chunk)

    def _end_lapsed(self, chunk: Chunk, now_ns: int) -> bool:
        """Ends rows whose clients have left and rows that are late; whether any are left.

        A step that a repeat waits for runs, even if its first caller cancelled or its time passed.
        """
        request = chunk.request
        if request.plan is not None:
            if request.is_cancelled:
                self._settlement.fail_sequences(chunk, _gone())
            return not request.is_cancelled
        if request.deadlines_ns is None and not request.is_cancelled and not request.cancelled:
            return True
        is_cancelled = request.is_cancelled or request.cancelled
        if chunk.size == 1 and not is_cancelled and not self._is_late(chunk, now_ns):
            return True
        is_out = self._are_lapsed(chunk, now_ns)
        if not is_out.any():
            return True
        for i in np.flatnonzero(is_out).tolist():
            is_gone = self._is_gone(request, chunk.place(i))
            self._settlement.fail_step(chunk, i, _gone() if is_gone else _late(), now_ns)
        chunk.keep(~is_out)
        return chunk.size > 0

    def _are_lapsed(self, chunk: Chunk, now_ns: int) -> npt.NDArray[np.bool_]:
        """The mask [n] of the rows whose client has left or whose deadline has passed."""
        request, places = chunk.request, chunk.places
        is_out = np.zeros(chunk.size, np.bool_)
        if request.is_cancelled or request.cancelled:
            is_out |= [self._is_gone(request, place) for place in places.tolist()]
        if request.deadlines_ns is not None and not chunk.done:
            deadlines_ns = np.asarray(request.deadlines_ns)[places]
            is_out |= (deadlines_ns > 0) & (deadlines_ns < now_ns)
        for i in np.flatnonzero(is_out).tolist():
            is_out[i] = not self._ordering.is_joined(chunk.row(i))
        return is_out

    @staticmethod
    def _is_late(chunk: Chunk, now_ns: int) -> bool:
        """Whether the deadline of a chunk of one row has passed."""
        return not chunk.done and 0 < chunk.request.deadline_ns(chunk.place(0)) < now_ns

    @staticmethod
    def _is_gone(request: Request, place: int) -> bool:
        return request.is_cancelled or place in (request.cancelled or ())

    def check_integrity(self, rows: Index) -> None:
        """For tests and idle moments: `rows` are this model's used rows of the table."""
        assert not self._in_flight, "check when nothing is in flight"
        self._ordering.check_integrity()
        self._pool.check_integrity(np.concatenate([self._table.slot[rows], self._ready.held()]))


def _late() -> DeadlineExpired:
    return DeadlineExpired("the deadline passed before the step was computed")


def _gone() -> Cancelled:
    return Cancelled("the caller went away before the step was computed")
