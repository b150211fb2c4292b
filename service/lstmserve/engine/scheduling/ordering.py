"""Exactly-once, and the order within each session: what an arriving step means to its session.

A session answers one number from its record, the last applied one. A number that is still pending
is joined; an old one, a gap and another input under the same number are refused apart, because each
asks something else of the client. A session's first step is ready or in flight; the others wait
behind it. Pure: no clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
from lstmserve.engine.scheduling.work import NONE, Applied, Request, Work
from lstmserve.engine.table import OPEN, SUSPECT, SessionTable

RETRY_S = 0.05
COLUMNS_FROM = 6  # below so many rows, columns cost more than one row after the other


class Ordering:
    """Writes the table's `pending`, `digest`, `replies` and `expiry_ns`.

    `on_idle(row)` is called when a session that is no longer open has no step left.
    """

    def __init__(
        self,
        config: Config,
        table: SessionTable,
        work: Work,
        output_size: int,
        on_idle: Callable[[int], None],
    ) -> None:
        self._config = config
        self._table = table
        self._work = work
        self._output_size = output_size
        self._reply_bytes_max = config.reply_bytes_max
        self._on_idle = on_idle
        # Of a session with pending steps, by row of the table: its first step and its last.
        self._first = np.zeros(table.rows, np.int64)
        self._last = np.zeros(table.rows, np.int64)
        self._joined: dict[int, list[int]] = {}  # repeats of a pending step, by its id
        self._joined_of: dict[int, int] = {}  # how many, by row of the table
        self.joined_steps = 0  # of all rows
        self.pending_steps = 0  # of all sessions, without the joined ones

    # Arrival ------------------------------------------------------------------------------------

    def accept(self, request: Request) -> Index:
        """Accepts the rows; returns the ids of those that are first in their session: they may run.

        Rows that are repeats are answered or join a pending step; the others are refused: the
        responder hears of both. Raises Overloaded where the request is to be refused as a whole.
        """
        if request.is_whole:
            self._check_whole(request)
        if len(request) < COLUMNS_FROM:
            ready = [self.accept_one(request, i) for i in range(len(request))]
            if len(ready) == 1:
                return self._work.one(ready[0]) if ready[0] else np.zeros(0, np.int64)
            return np.array([work for work in ready if work], np.int64)
        return self.accept_columns(request)

    def accept_one(self, request: Request, i: int) -> int:
        """Accepts row i; its id where it may run, else NONE."""
        try:
            return self._accept_one(request, i)
        except ServeError as error:
            request.fail(i, error.with_traceback(None))  # whose frames hold the request
            return NONE

    def accept_columns(self, request: Request) -> Index:
        """accept() for many rows: what is plain as columns, the others one by one."""
        rows = np.asarray(request.rows, np.int64)
        is_plain = self._are_plain(request, rows)
        room = self._room()
        if is_plain.all() and room >= rows.size:
            return self._accept_plain(request, np.arange(rows.size), rows)
        places = np.flatnonzero(is_plain)[: max(0, room)]
        ready = self._accept_plain(request, places, rows[places])
        is_plain[:] = False
        is_plain[places] = True
        others = [self.accept_one(request, i) for i in np.flatnonzero(~is_plain).tolist()]
        return np.concatenate([ready, np.array([work for work in others if work], np.int64)])

    def _are_plain(self, request: Request, rows: Index) -> npt.NDArray[np.bool_]:
        """Whether each is the next step of an idle session, [N]."""
        table = self._table
        is_plain: npt.NDArray[np.bool_] = table.pending[rows] == 0
        numbers = None if request.numbers is None else np.asarray(request.numbers, np.int64)
        if numbers is not None:
            is_plain &= (numbers == table.step[rows] + 1) | (numbers == 0)
        if table.suspects:
            is_plain &= ~table.is_suspect(rows) | (numbers is not None and numbers != 0)
        if not request.is_distinct:
            is_first = np.zeros(rows.size, np.bool_)
            is_first[np.unique(rows, return_index=True)[1]] = True
            is_plain &= is_first
        return is_plain

    def _accept_plain(self, request: Request, places: Index, rows: Index) -> Index:
        if not places.size:
            return places
        table = self._table
        if request.numbers is not None and table.suspects:
            table.hear(rows[np.asarray(request.numbers)[places] != 0])
        ids = self._work.add_rows(request, places, rows, table.step[rows] + 1)
        request.inputs_left += ids.size
        self._first[rows] = ids
        self._last[rows] = ids
        table.pending[rows] = 1
        self.pending_steps += ids.size
        return ids

    def _accept_one(self, request: Request, i: int) -> int:
        table, row, number = self._table, int(request.rows[i]), request.number(i)
        last, pending = table.step.item(row), table.pending.item(row)
        if number and number != last + pending + 1:
            self._repeat(request, i, last, pending)
            self._hear(row)
            return NONE
        if not number and table.suspects and table.trust.item(row) == SUSPECT:
            raise _rolled_back(last)
        self.check_room(1)
        if pending:
            self._check_session(row, pending)
        if number:
            self._hear(row)
        work = self._work.add(request, i, row, last + pending + 1, request.digest(i))
        request.inputs_left += 1
        self.pending_steps += 1
        table.pending[row] = pending + 1
        if pending:
            self._work.next[self._last[row]] = work
            self._last[row] = work
            return NONE
        self._first[row] = self._last[row] = work
        return work

    def _repeat(self, request: Request, i: int, last: int, pending: int) -> None:
        """Answers row i from the record, or lets it join the pending step of its number.

        Raises StepGap, StepSuperseded, StepPayloadMismatch, Overloaded.
        """
        row, number, digest = int(request.rows[i]), request.number(i), request.digest(i)
        if number > last + pending:
            due = last + pending + 1
            raise StepGap(
                f"step {number} came before step {due}: send step {due} first",
                metadata={"expected_step": str(due)},
            )
        if number <= last:
            if number < last or not self._table.digest[row]:
                raise _superseded(number, last)
            _check_same(number, digest, self._table.digest.item(row))
            self._answer(request, i, row)
            return
        pending_work = self._pending(row, number - last - 1)
        _check_same(number, digest, self._work.digest.item(pending_work))
        self.check_room(1)
        self._check_session(row, pending)
        joined = self._work.add(request, i, row, number, digest)
        self._joined.setdefault(pending_work, []).append(joined)
        self._joined_of[row] = self._joined_of.get(row, 0) + 1
        self.joined_steps += 1

    def _hear(self, row: int) -> None:
        """The client steps by number: it knows what its step goes on from."""
        if self._table.suspects:
            self._table.hear(np.array([row]))

    def _pending(self, row: int, place: int) -> int:
        """The session's pending step at this place, 0 the first."""
        work = self._first.item(row)
        for _ in range(place):
            work = self._work.next.item(work)
        return work

    def _room(self) -> int:
        return self._config.pending_steps_max - self.pending_steps - self.joined_steps

    def check_room(self, count: int) -> None:
        """Whether so many more steps may wait, repeats included. Raises Overloaded."""
        if count > self._room():
            limit, waiting = self._config.pending_steps_max, self.pending_steps + self.joined_steps
            raise Overloaded(
                f"{waiting} steps are waiting, the limit is {limit} (--pending-steps-max): "
                "send this one again later",
                retry_s=RETRY_S,
            )

    def _check_session(self, row: int, pending: int) -> None:
        """Whether one more may wait in the session, repeats included. Raises Overloaded."""
        waiting, limit = pending + self._joined_of.get(row, 0), self._config.session_pending_max
        if waiting >= limit:
            raise Overloaded(
                f"{waiting} steps of the session are waiting, the limit is {limit}: "
                "read its replies before you send more",
                retry_s=RETRY_S,
            )

    def _check_whole(self, request: Request) -> None:
        self.check_room(len(request))
        pending = self._table.pending[np.asarray(request.rows)]
        fullest = int(pending.argmax())
        self._check_session(int(request.rows[fullest]), int(pending[fullest]))

    # The end of a step --------------------------------------------------------------------------

    def save(self, row: int, digest: int, y: Output) -> None:
        """The step that was just applied, y [t, O]; digest 0 for one without a number."""
        self._table.digest[row] = digest
        if digest and 4 * y.size <= self._reply_bytes_max:
            self._table.replies.save(row, y)
        else:
            self._table.replies.forget(row)

    def save_rows(self, rows: Index, digests: Digests, y: Output) -> None:
        """save() of steps with one row of output each, y [N, O]."""
        self._table.digest[rows] = digests
        if digests.any() and 4 * self._output_size <= self._reply_bytes_max:
            self._table.replies.save_rows(rows, y)
        else:
            self._table.replies.forget_rows(rows)

    @property
    def has_joined(self) -> bool:
        """Whether a repeat waits for any pending step."""
        return bool(self._joined)

    def is_joined(self, work: int) -> bool:
        """Whether a repeat waits for this step: it must run, whoever sent it first."""
        return work in self._joined

    def answer_joined(self, work: int) -> None:
        """The step was applied and saved: repeats that joined it are answered."""
        for joined, request, place in self._take_joined(work):
            row = self._work.session.item(joined)
            self._work.free_one(joined)
            try:
                self._answer(request, place, row)
            except StepSuperseded as error:
                request.fail(place, error.with_traceback(None))

    def fail_joined(self, work: int, error: ServeError) -> None:
        """The step was not applied; nor, then, are repeats that joined it."""
        for joined, request, place in self._take_joined(work):
            self._work.free_one(joined)
            request.fail(place, error)

    def leave(self, row: int, now_ns: int) -> int:
        """The session's first step is over; returns the next one, or NONE."""
        table = self._table
        self.pending_steps -= 1
        pending = table.pending.item(row) - 1
        table.pending[row] = pending
        following = self._work.next.item(self._first.item(row))
        self._first[row] = following
        if not pending:
            self._rest(row, now_ns)
        return following

    def leave_rows(self, rows: Index, now_ns: int) -> Index:
        """The first steps of these sessions are over; returns those that follow them."""
        table = self._table
        self.pending_steps -= rows.size
        table.pending[rows] -= 1
        table.expiry_ns[rows] = table.ttl_ns[rows] + now_ns
        following: Index = self._work.next[self._first[rows]]
        self._first[rows] = following
        if table.leaving:
            is_over = (table.phase[rows] != OPEN) & (following == NONE)
            for row in rows[is_over].tolist():
                self._on_idle(row)
        return following[following != NONE] if following.any() else np.zeros(0, np.int64)

    def abandon(self, row: int, now_ns: int) -> list[int]:
        """The first step failed: it and all behind it leave; returns those behind, in order."""
        behind = list(self._behind(row))
        self.pending_steps -= 1 + len(behind)
        self._table.pending[row] -= 1 + len(behind)
        assert self._table.pending[row] == 0, "a waiting step is not counted"
        self._first[row] = NONE
        self._rest(row, now_ns)
        return behind

    def _behind(self, row: int) -> Iterator[int]:
        work = self._work.next.item(self._first.item(row))
        while work:
            yield work
            work = self._work.next.item(work)

    def _rest(self, row: int, now_ns: int) -> None:
        table = self._table
        table.expiry_ns[row] = now_ns + table.ttl_ns.item(row)
        if table.phase.item(row) != OPEN:
            self._on_idle(row)

    def _take_joined(self, work: int) -> list[tuple[int, Request, int]]:
        """Repeats of that step, with their requests and places; they do not wait any more."""
        ids = self._joined.pop(work, None) if self._joined else None
        if ids is None:
            return []
        row = self._work.session.item(work)
        self.joined_steps -= len(ids)
        self._joined_of[row] -= len(ids)
        if not self._joined_of[row]:
            del self._joined_of[row]
        table = self._work
        return [(each, table.requests[each], table.place.item(each)) for each in ids]

    def _answer(self, request: Request, i: int, row: int) -> None:
        table = self._table
        last = table.step.item(row)
        saved = table.replies.get(row, self._output_size)
        if saved is None:
            raise _superseded(request.number(i), last)
        out = request.out(i)
        y = np.frombuffer(saved.y, np.float32).reshape(saved.length, -1)
        request.outputs(self._output_size)[out : out + saved.length] = y
        arrivals_ns = request.arrivals_ns
        arrival_ns = arrivals_ns if isinstance(arrivals_ns, int) else int(arrivals_ns[i])
        durable = table.durable_step.item(row)
        request.answer(Applied([i], [last], [durable], [arrival_ns], [0], is_replayed=True))

    def waiting(self) -> Index:
        """Ids that wait here, behind others of their session or for one that they repeat."""
        rows = np.flatnonzero(self._table.pending > 1)
        behind = [work for row in rows.tolist() if self._first[row] for work in self._behind(row)]
        joined = [work for ids in self._joined.values() for work in ids]
        return np.array(behind + joined, np.int64)

    def check_integrity(self, rows: Index) -> None:
        """Waiting steps are counted; `rows` [N] are the model's used rows of the table."""
        pending = self._table.pending
        for row in rows[pending[rows] > 0].tolist():
            count = 1 + sum(1 for _ in self._behind(row))
            assert count == pending[row], "a waiting step is not counted"
        assert int(pending[rows].sum()) == self.pending_steps
        waiting: dict[int, int] = {}
        for work, joined in self._joined.items():
            assert joined, "an empty list of repeats is kept"
            row = self._work.session.item(work)
            waiting[row] = waiting.get(row, 0) + len(joined)
        assert waiting == self._joined_of, "repeats are miscounted"
        assert self.joined_steps == sum(waiting.values())


def _check_same(number: int, digest: int, expected: int) -> None:
    if digest != expected:
        raise StepPayloadMismatch(f"step {number} was sent before with another input", field="step")


def _superseded(number: int, last: int) -> StepSuperseded:
    return StepSuperseded(
        f"step {number} was applied and its reply is no longer held; the last is {last}",
        metadata={"last_step": str(last)},
    )


def _rolled_back(step: int) -> StateRolledBack:
    """Nothing goes on from a step that the client may never have meant."""
    return StateRolledBack(
        f"steps after step {step} may have been answered and then lost, and this step has no "
        "number: open the session again (RESUME or RESTART), or send a step by its number",
        metadata={"step": str(step)},
    )
