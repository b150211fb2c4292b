"""Exactly-once, and the order within each session: what an arriving step means to its session.

A session answers one number from its record, the last applied one. A number that is still pending
is joined; an old one, a gap and another input under the same number are refused apart, because each
asks something else of the client. A session's first step is ready or in flight; the others wait
behind it. Pure: no clock, no I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from lstmserve.config import Config
from lstmserve.engine.arrays import Digests, Index, Output
from lstmserve.engine.errors import (
    Overloaded,
    ServeError,
    StateRolledBack,
    StepGap,
    StepPayloadMismatch,
    StepSuperseded,
)
from lstmserve.engine.scheduling.work import Applied, Chunk, Place, Request, chunks_of
from lstmserve.engine.table import OPEN, SUSPECT, SessionTable
from lstmserve.rows import RowFormat

RETRY_S = 0.05
COLUMNS_FROM = 4  # for fewer rows, columns cost more than one row after the other


class Ordering:
    """Writes the table's `pending`, `pending_digest`, `digest`, `replies` and `expiry_ns`.

    `on_idle(row)` is called when a session that is no longer open has no step left.
    """

    def __init__(
        self,
        config: Config,
        table: SessionTable,
        outputs: RowFormat,
        on_idle: Callable[[int], None],
    ) -> None:
        self._config = config
        self._table = table
        self._outputs = outputs
        self._reply_bytes_max = config.reply_bytes_max
        self._on_idle = on_idle
        self._waiting: dict[int, deque[Place]] = {}  # by row of the table, behind its first step
        self._joined: dict[tuple[int, int], list[Place]] = {}  # repeats, by row and number
        self._joined_of: dict[int, int] = {}  # how many, by row
        self.joined_steps = 0  # of all rows
        self.pending_steps = 0  # of all sessions, without the joined ones

    # Arrival ------------------------------------------------------------------------------------

    def accept(self, request: Request) -> list[Chunk]:
        """Accepts the rows; returns those that are first in their session: they may run.

        Rows that are repeats are answered or join a pending step; the others are refused: the
        responder hears of both. Raises Overloaded where the request is to be refused as a whole.
        """
        if request.is_whole:
            self._check_whole(request)
        if len(request) < COLUMNS_FROM:
            return self.accept_each(request, range(len(request)))
        return self.accept_columns(request)

    def accept_each(self, request: Request, places: Iterable[int]) -> list[Chunk]:
        """accept() for few rows: one after the other."""
        found = []
        for i in places:
            try:
                chunk = self._accept_one(request, i)
            except ServeError as error:
                request.fail(i, error.with_traceback(None))  # whose frames hold the request
            else:
                if chunk is not None:
                    found.append(chunk)
        return found

    def accept_columns(self, request: Request) -> list[Chunk]:
        """accept() for many rows: what is plain as columns, the others one after the other."""
        is_distinct = request.is_distinct or len(set(request.rows)) == len(request)
        rows = request.as_arrays()
        is_plain = self._are_plain(request, rows)
        if not is_distinct:
            is_first = np.zeros(rows.size, np.bool_)
            is_first[np.unique(rows, return_index=True)[1]] = True
            is_plain &= is_first
        room = self._room()
        if room >= rows.size and is_plain.all():
            return self._accept_plain(request, np.arange(rows.size), rows, request.digests())
        places = np.flatnonzero(is_plain)[: max(0, room)]
        digests = request.digests()
        own = None if digests is None else digests[places]
        chunks = self._accept_plain(request, places, rows[places], own) if places.size else []
        is_plain[:] = False
        is_plain[places] = True
        return chunks + self.accept_each(request, np.flatnonzero(~is_plain).tolist())

    def _are_plain(self, request: Request, rows: Index) -> npt.NDArray[np.bool_]:
        """The mask [N] of the rows that are each the short next step of an idle session."""
        table, numbers = self._table, request.numbers
        is_plain: npt.NDArray[np.bool_] = table.pending[rows] == 0
        if numbers is not None:
            numbers = np.asarray(numbers)
            is_next = numbers == table.step[rows] + 1
            is_plain &= is_next if numbers.all() else is_next | (numbers == 0)
        if table.suspects:
            is_plain &= ~table.is_suspect(rows) | (False if numbers is None else numbers != 0)
        if request.lengths is not None:
            is_plain &= np.asarray(request.lengths) <= self._config.slice_rows_max
        return is_plain

    def _accept_plain(
        self, request: Request, places: Index, rows: Index, digests: Digests | None
    ) -> list[Chunk]:
        table = self._table
        if digests is not None and table.suspects:
            table.hear(rows[digests != 0])
        table.pending_digest[rows] = 0 if digests is None else digests
        table.pending[rows] = 1
        request.inputs_left += rows.size
        self.pending_steps += rows.size
        if request.lengths is None:
            return [Chunk(request, places, rows, 1)]
        lengths = np.asarray(request.lengths)[places]
        classes = np.ceil(np.log2(lengths))
        chunks = []
        for each in np.unique(classes):
            own = np.flatnonzero(classes == each)
            longest = int(lengths[own].max())
            chunks.append(Chunk(request, places[own], rows[own], longest, lengths[own]))
        return chunks

    def _accept_one(self, request: Request, i: int) -> Chunk | None:
        """Accepts row i; returns its chunk if it may run now. Raises the error that refuses it."""
        table, row, number = self._table, int(request.rows[i]), request.number(i)
        last, pending = table.step.item(row), table.pending.item(row)
        if number and number != last + pending + 1:
            self._repeat(request, i, last, pending)
            self._hear(row)
            return None
        if not number and table.suspects:
            self._check_trust(row)
        self.check_room(1)
        if pending:
            self._check_session(row, pending)
        if number:
            self._hear(row)
        self.pending_steps += 1
        request.inputs_left += 1
        table.pending[row] = pending + 1
        if pending:
            self._waiting.setdefault(row, deque()).append((request, i))
            return None
        table.pending_digest[row] = request.digest(i)
        return Chunk(request, i, row, request.length(i))

    def _check_trust(self, row: int) -> None:
        """Raises StateRolledBack until the client knows of it, however often it sends the step."""
        if self._table.trust.item(row) == SUSPECT:
            raise _rolled_back(self._table.step.item(row))

    def _repeat(self, request: Request, i: int, last: int, pending: int) -> None:
        """Answers row i from the record, or lets it join the pending step of its number.

        Raises StepGap, StepSuperseded, StepPayloadMismatch, Overloaded.
        """
        table, row, number = self._table, int(request.rows[i]), request.number(i)
        if number > last + pending:
            due = last + pending + 1
            raise StepGap(
                f"step {number} came before step {due}: send step {due} first",
                metadata={"expected_step": str(due)},
            )
        if number <= last:
            if number < last or not table.digest[row]:
                raise _superseded(number, last)
            _check_same(number, request.digest(i), table.digest.item(row))
            self._answer(request, i, row)
            return
        _check_same(number, request.digest(i), self._digest_of_pending(row, number - last - 1))
        self.check_room(1)
        self._check_session(row, pending)
        self._joined.setdefault((row, number), []).append((request, i))
        self._joined_of[row] = self._joined_of.get(row, 0) + 1
        self.joined_steps += 1

    def _digest_of_pending(self, row: int, place: int) -> int:
        """The digest of the session's pending step at `place`, 0 the first; 0 when it has no
        number."""
        if place == 0:
            return self._table.pending_digest.item(row)
        request, i = self._waiting[row][place - 1]
        return request.digest(i)

    def _hear(self, row: int) -> None:
        """Notes that the client numbers its steps, so that it knows what its step goes on from."""
        if self._table.suspects:
            self._table.hear(np.array([row]))

    def _room(self) -> int:
        return self._config.pending_steps_max - self.pending_steps - self.joined_steps

    def check_room(self, count: int) -> None:
        """Checks whether `count` more steps may wait, repeats included. Raises Overloaded."""
        if count > self._room():
            limit, waiting = self._config.pending_steps_max, self.pending_steps + self.joined_steps
            raise Overloaded(
                f"{waiting} steps are waiting, the limit is {limit} (--pending-steps-max): "
                "send this one again later",
                retry_s=RETRY_S,
            )

    def _check_session(self, row: int, pending: int) -> None:
        """Checks whether one more step of the session may wait, repeats included. Raises
        Overloaded."""
        waiting, limit = pending + self._joined_of.get(row, 0), self._config.session_pending_max
        if waiting >= limit:
            raise Overloaded(
                f"{waiting} steps of the session are waiting, the limit is {limit}: "
                "read its replies before you send more",
                retry_s=RETRY_S,
            )

    def _check_whole(self, request: Request) -> None:
        self.check_room(len(request))
        rows = np.asarray(request.rows)
        pending = self._table.pending[rows]
        if pending.any():
            fullest = int(pending.argmax())
            self._check_session(int(rows[fullest]), int(pending[fullest]))

    # The end of a step --------------------------------------------------------------------------

    def save(self, row: int, y: Output) -> None:
        """Saves the reply y [t, ...] of the session's first step, which was applied, for
        repeats."""
        table = self._table
        digest = table.digest[row] = table.pending_digest.item(row)
        if digest and y.nbytes <= self._reply_bytes_max:
            table.replies.save(row, y, self._outputs)
        else:
            table.replies.forget(row)

    def save_rows(self, rows: Index, y: Output) -> None:
        """save() of steps with one row of output each, y [N, ...]."""
        table = self._table
        digests: Digests = table.pending_digest[rows]
        table.digest[rows] = digests
        if digests.any() and self._outputs.bytes <= self._reply_bytes_max:
            table.replies.save_rows(rows, y, self._outputs)
        else:
            table.replies.forget_rows(rows)

    def is_joined(self, row: int) -> bool:
        """Whether a repeat waits for the session's first step: then it must run."""
        return bool(self._joined) and (row, self._table.step.item(row) + 1) in self._joined

    @property
    def has_joined(self) -> bool:
        """Whether a repeat waits for any pending step."""
        return bool(self._joined)

    def answer_joined(self, row: int) -> None:
        """Answers the repeats that joined the session's first step, which was applied and saved."""
        for request, i in self._take_joined(row, self._table.step.item(row)):
            try:
                self._answer(request, i, row)
            except StepSuperseded as error:
                request.fail(i, error.with_traceback(None))

    def fail_joined(self, row: int, number: int, error: ServeError) -> None:
        """Fails the repeats that joined that step, which was not applied."""
        for request, i in self._take_joined(row, number):
            request.fail(i, error)

    def leave(self, row: int, now_ns: int) -> Chunk | None:
        """Ends the session's first step; returns the next one, which may run."""
        table = self._table
        self.pending_steps -= 1
        pending = table.pending.item(row) - 1
        table.pending[row] = pending
        if pending:
            request, i = self._next(row)
            return Chunk(request, i, row, request.length(i))
        self._rest(row, now_ns)
        return None

    def leave_rows(self, rows: Index, now_ns: int) -> list[Chunk]:
        """Ends the first steps of these sessions; returns the next ones, which may run."""
        table = self._table
        self.pending_steps -= rows.size
        table.pending[rows] -= 1
        table.expiry_ns[rows] = table.ttl_ns[rows] + now_ns
        if table.leaving:
            is_over = (table.phase[rows] != OPEN) & (table.pending[rows] == 0)
            for row in rows[is_over].tolist():
                self._on_idle(row)
        if not self._waiting:
            return []
        following = rows[table.pending[rows] > 0].tolist()
        return chunks_of([self._next(row) for row in following], following)

    def abandon(self, row: int, now_ns: int) -> list[Place]:
        """Ends a failed first step and all steps behind it; returns those behind, in order."""
        behind = list(self._waiting.pop(row, ()))
        self.pending_steps -= 1 + len(behind)
        self._table.pending[row] -= 1 + len(behind)
        assert self._table.pending[row] == 0, "a waiting step is not counted"
        self._rest(row, now_ns)
        return behind

    def _next(self, row: int) -> Place:
        """Makes the step that waited behind the session's first one the first."""
        waiting = self._waiting[row]
        request, i = waiting.popleft()
        if not waiting:
            del self._waiting[row]
        self._table.pending_digest[row] = request.digest(i)
        return request, i

    def _rest(self, row: int, now_ns: int) -> None:
        table = self._table
        table.expiry_ns[row] = now_ns + table.ttl_ns.item(row)
        if table.phase.item(row) != OPEN:
            self._on_idle(row)

    def _take_joined(self, row: int, number: int) -> list[Place]:
        """Takes the repeats of that step out; they wait no more."""
        places = self._joined.pop((row, number), [])
        if places:
            self.joined_steps -= len(places)
            self._joined_of[row] -= len(places)
            if not self._joined_of[row]:
                del self._joined_of[row]
        return places

    def _answer(self, request: Request, i: int, row: int) -> None:
        table = self._table
        last, durable = table.step.item(row), table.durable_step.item(row)
        saved = table.replies.get(row, self._outputs)
        if saved is None:
            raise _superseded(request.number(i), last)
        request.outputs(self._outputs.axes, self._outputs.dtype)
        request.output(i)[:] = saved
        request.answer(Applied([i], [last], [durable], request.arrival_ns, 0, is_replayed=True))

    def check_integrity(self) -> None:
        """Asserts the counts of waiting steps and of repeats; a request of repeats alone has no
        input."""
        pending = self._table.pending
        for row, waiting in self._waiting.items():
            assert waiting, "an empty line is kept"
            assert len(waiting) == pending[row] - 1, "a waiting step is not counted"
        joined: dict[int, int] = {}
        for (row, number), places in self._joined.items():
            assert places, "an empty list of repeats is kept"
            last = self._table.step.item(row)
            assert last < number <= last + pending[row], "a repeat waits for no pending step"
            assert all(len(r.x) == 0 or r.inputs_left for r, _ in places), "a repeat holds input"
            joined[row] = joined.get(row, 0) + len(places)
        assert joined == self._joined_of, "repeats are miscounted"
        assert self.joined_steps == sum(joined.values())
        assert int(np.min(pending, initial=0)) >= 0


def _check_same(number: int, digest: int, expected: int) -> None:
    if digest != expected:
        raise StepPayloadMismatch(f"step {number} was sent before with another input", field="step")


def _superseded(number: int, last: int) -> StepSuperseded:
    return StepSuperseded(
        f"step {number} was applied and its reply is no longer held; the last is {last}",
        metadata={"last_step": str(last)},
    )


def _rolled_back(step: int) -> StateRolledBack:
    """The error for a step that would go on from a step which the client may not have meant."""
    return StateRolledBack(
        f"steps after step {step} may have been answered and then lost, and this step has no "
        "number: open the session again (RESUME or RESTART), or send a step by its number",
        metadata={"step": str(step)},
    )
