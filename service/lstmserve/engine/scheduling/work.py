"""The work table: one row per accepted step, or per sequence of a Predict, in columns.

A row lives from acceptance to its reply. It must not know who is answered or how: that is its
request's responder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Digests, Index, Input, Output
from lstmserve.engine.compute.pool import Rows, Slots
from lstmserve.engine.errors import ServeError
from lstmserve.engine.free_list import FreeList
from lstmserve.engine.scheduling.digest import digest, digests_of_rows

NONE: Final = 0  # the id of no work
NO_SESSION: Final = -1  # the session row of a Predict's sequence
NEVER_NS: Final = int(np.iinfo(np.int64).max)


class Outcome(IntEnum):
    """What became of a batch's row."""

    APPLIED = 0
    FAILED = 1  # the kernel could not compute it
    NOT_STORED = 2  # surely not
    STORE_FULL = 3
    FENCED = 4  # another server has the session now: what is cached here is stale
    UNKNOWN = 5  # the store's answer was lost: what is cached here may be stale


class Applied(NamedTuple):
    """Rows of a request that were applied together, as lists of equal length.

    `places` are their indices in the request, whose output() has y. Times are nanoseconds:
    `starts_ns` on the engine's clock, `computes_ns` the sum over the batches a row ran in.
    """

    places: list[int]
    numbers: list[int]
    durable_steps: list[int]
    starts_ns: list[int]
    computes_ns: list[int]
    is_replayed: bool = False  # answered from the session's record; nothing was computed


class Responder(Protocol):
    """Answers the rows of a request: each once, on the loop's thread. Must not raise."""

    def applied(self, request: Request, rows: Applied) -> None:
        """These rows were applied."""

    def failed(self, request: Request, place: int, error: ServeError) -> None:
        """This row was not applied (but for StoreTimeout, where that is unknown)."""


class _Answered:
    """The responder of a request without rows left: it must not keep the real one alive."""

    def applied(self, request: Request, rows: Applied) -> None:
        raise AssertionError("a row was answered twice")

    def failed(self, request: Request, place: int, error: ServeError) -> None:
        raise AssertionError("a row was answered twice")


ANSWERED = _Answered()

Column = Sequence[int] | Index
Flags = bool | npt.NDArray[np.bool_]


class Request:
    """Steps of one model that arrived together; also one step alone.

    Row i is a step of the session in row rows[i] of the session table. Its input is
    x[firsts[i] : firsts[i] + lengths[i]] (x [cells, I], or tokens [cells]), its output goes to
    y[outs[i] : ...]: lengths[i] rows of y [height, O], or one with last_only. Columns are lists or
    arrays; None stands for lengths of 1, for the same order in x and y, for no numbers, and for no
    deadlines. A number of 0 is none. y is NaN where nothing was applied.
    """

    __slots__ = (
        "_digests",
        "arrivals_ns",
        "cancelled",
        "deadlines_ns",
        "firsts",
        "height",
        "inputs_left",
        "is_cancelled",
        "is_distinct",
        "is_whole",
        "last_only",
        "left",
        "lengths",
        "numbers",
        "outs",
        "plan",
        "responder",
        "rows",
        "x",
        "y",
    )

    def __init__(
        self,
        x: Input,
        rows: Column,
        responder: Responder,
        *,
        height: int,
        arrivals_ns: int | Column,
        numbers: Column | None = None,
        lengths: Column | None = None,
        firsts: Column | None = None,
        outs: Column | None = None,
        last_only: Flags = False,
        deadlines_ns: int | Column = 0,
        is_distinct: bool = False,
        is_whole: bool = False,
    ) -> None:
        self.x = x
        self.rows = rows
        self.responder = responder
        self.height = height
        self.arrivals_ns = arrivals_ns
        self.numbers = numbers
        self.lengths = lengths
        self.firsts = firsts
        self.outs = outs
        self.last_only = last_only
        self.deadlines_ns = deadlines_ns  # of the start of compute, of all or each; 0: none
        self.is_distinct = is_distinct  # no session is twice among the rows
        self.is_whole = is_whole  # refused as one where there is no room for all rows
        self.left = len(rows)  # not answered yet
        self.inputs_left = 0  # rows that will read x
        self.is_cancelled = False
        self.cancelled: set[int] = set()  # single rows that nobody waits for
        self.plan: Plan | None = None  # of a Predict's sequences, which have no session
        self.y: Output | None = None
        self._digests: Digests | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def length(self, i: int) -> int:
        """Time steps of row i."""
        return 1 if self.lengths is None else int(self.lengths[i])

    def first(self, i: int) -> int:
        """The first cell of row i in x."""
        return i if self.firsts is None else int(self.firsts[i])

    def out(self, i: int) -> int:
        """The first row of row i in y."""
        return i if self.outs is None else int(self.outs[i])

    def number(self, i: int) -> int:
        """Of row i's step; 0 where its client gave none."""
        return 0 if self.numbers is None else int(self.numbers[i])

    def is_last_only(self, i: int) -> bool:
        """Whether row i's output is that of its last time step."""
        flags = self.last_only
        return flags if isinstance(flags, bool) else bool(flags[i])

    def input(self, i: int) -> Input:
        """x [T, I] or tokens [T] of row i."""
        start = self.first(i)
        return self.x[start : start + self.length(i)]

    def output(self, i: int) -> Output:
        """y [T, O] of row i, or [1, O] with last_only."""
        assert self.y is not None
        start = self.out(i)
        return self.y[start : start + (1 if self.is_last_only(i) else self.length(i))]

    def outputs(self, output_size: int) -> Output:
        """y [height, O], to be written to."""
        if self.y is None:
            self.y = np.full((self.height, output_size), np.nan, np.float32)
        return self.y

    def digest(self, i: int) -> int:
        """Of row i's input; 0 where its step has no number."""
        if not self.number(i):
            return 0
        if self._digests is not None:
            return self._digests.item(i)
        return digest(self.input(i), self.is_last_only(i))

    def digests(self) -> Digests:
        """digest() of all rows, [N]."""
        if self._digests is None:
            self._digests = self._all_digests()
        return self._digests

    def _all_digests(self) -> Digests:
        if self.numbers is None:
            return np.zeros(len(self), np.uint64)
        if self.lengths is not None and not (np.asarray(self.lengths) == 1).all():
            return np.fromiter(map(self.digest, range(len(self))), np.uint64, len(self))
        x = self.x if self.firsts is None else self.x[self.firsts]
        found = digests_of_rows(x, self.last_only)
        found[np.asarray(self.numbers) == 0] = 0
        return found

    def cancel(self) -> None:
        """Nobody waits for it any more: rows whose last slice has not been scheduled never run."""
        self.is_cancelled = True

    def cancel_row(self, i: int) -> None:
        """The same for row i alone."""
        self.cancelled.add(i)

    def answer(self, rows: Applied) -> None:
        """Tells the responder of rows that were applied."""
        responder = self._answered(len(rows.places))
        responder.applied(self, rows)

    def fail(self, i: int, error: ServeError) -> None:
        """Tells the responder of a row that was not applied."""
        self._answered(1).failed(self, i, error)

    def _answered(self, count: int) -> Responder:
        responder = self.responder
        self.left -= count
        if not self.left:
            self.responder = ANSWERED  # the real one may hold the request
        return responder

    def forget_input(self) -> None:
        """No row of it will read x again."""
        self.x = self.x[:0].copy()


@dataclass(slots=True)
class Plan:
    """How the sequences of a Predict run: one group after the other, each of like lengths.

    `groups` are their places, the longest first. `initial` and `finals` have a row per sequence for
    every tensor of the pool; None: they begin from zeros, nobody wants their final states.
    """

    groups: list[Index]
    left: int  # sequences whose last time step has not been computed
    initial: Rows | None = None
    finals: Rows | None = None
    ids: Index | None = None  # in the work table, [N]
    turn: int = 0  # of the group that waits or runs


@dataclass(slots=True, eq=False)
class Chunk:
    """Work of one request that waits and runs together: ids [n], in the order of the request."""

    request: Request
    ids: Index
    held: int = 0  # scratch slots that it may hold between its batches

    @property
    def size(self) -> int:
        """n"""
        return self.ids.size


class Work:
    """Columns by id; ids are those of `capacity` rows at most, from 1 on."""

    def __init__(self, capacity: int) -> None:
        def column(dtype: type = np.int64) -> npt.NDArray[np.int64]:
            return np.zeros(capacity + 1, dtype)

        self.requests = np.empty(capacity + 1, object)
        self.place = column()  # in the request
        self.session = column()  # row of the session table, or NO_SESSION
        self.number = column()
        self.digest: Digests = np.zeros(capacity + 1, np.uint64)  # 0: the client gave no number
        self.first = column()  # cell of the request's x
        self.out = column()  # row of the request's y
        self.length = column()
        self.last_only = np.zeros(capacity + 1, np.bool_)
        self.done = column()  # time steps computed
        self.scratch: Slots = column()  # has the state after `done` time steps, between slices
        self.arrival_ns = column()
        self.deadline_ns = column()  # of the start of compute; NEVER_NS: none
        self.start_ns = column()  # when its first slice ran
        self.compute_ns = column()
        self.next = column()  # the next work of the same session
        self._all = np.arange(capacity + 1)
        self._free = FreeList(1, capacity + 1)

    def __len__(self) -> int:
        """Rows in use."""
        return self._all.size - 1 - len(self._free)

    def one(self, work: int) -> Index:
        """The id as an array, [1]."""
        return self._all[work : work + 1]

    def add(self, request: Request, i: int, session: int, number: int, digest: int) -> int:
        """A row for row i of the request."""
        work = self._free.take_one()
        self.requests[work] = request
        self.place[work] = i
        self.session[work] = session
        self.number[work] = number
        self.digest[work] = digest
        self.first[work] = request.first(i)
        self.out[work] = request.out(i)
        self.length[work] = request.length(i)
        self.last_only[work] = request.is_last_only(i)
        self.done[work] = self.scratch[work] = self.start_ns[work] = self.compute_ns[work] = 0
        self.next[work] = NONE
        self.arrival_ns[work] = _of(request.arrivals_ns, i)
        self.deadline_ns[work] = _of(request.deadlines_ns, i) or NEVER_NS
        return work

    def add_rows(
        self, request: Request, places: Index, sessions: Index | int, numbers: Index | int
    ) -> Index:
        """Rows for these of the request, [N]; digests are the request's where it has numbers."""
        ids = self._free.take(places.size)
        self.requests[ids] = request
        self.place[ids] = places
        self.session[ids] = sessions
        self.number[ids] = numbers
        self.digest[ids] = 0 if request.numbers is None else request.digests()[places]
        self.first[ids] = _at(request.firsts, places, places)
        self.out[ids] = _at(request.outs, places, places)
        self.length[ids] = _at(request.lengths, places, 1)
        flags = request.last_only
        self.last_only[ids] = flags if isinstance(flags, bool) else flags[places]
        for column in (self.done, self.scratch, self.start_ns, self.compute_ns, self.next):
            column[ids] = 0
        self.arrival_ns[ids] = _at(request.arrivals_ns, places, 0)
        deadlines_ns = request.deadlines_ns
        if isinstance(deadlines_ns, int):
            self.deadline_ns[ids] = deadlines_ns or NEVER_NS
        else:
            found = np.asarray(deadlines_ns, np.int64)[places]
            self.deadline_ns[ids] = np.where(found == 0, NEVER_NS, found)
        return ids

    def free_one(self, work: int) -> None:
        """It is over and answered."""
        self.requests[work] = None
        self._free.give_one(work)

    def free(self, ids: Index) -> None:
        """They are over and answered."""
        self.requests[ids] = None
        self._free.give(ids)

    def check_integrity(self, used: Index) -> None:
        """Every row is free or in `used`, once."""
        self._free.check_integrity(used)


def _of(column: int | Column, i: int) -> int:
    return column if isinstance(column, int) else int(column[i])


def _at(column: int | Column | None, places: Index, default: int | Index) -> int | Index:
    if column is None:
        return default
    if isinstance(column, int):
        return column
    return np.asarray(column, np.int64)[places]
