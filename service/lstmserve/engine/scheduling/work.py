"""Accepted work: requests, whose rows are steps of sessions, and chunks of them that run together.

A request holds what arrived together: one step, a message of many, the sequences of a Predict. Its
responder answers; this module must not know how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lstmserve.engine.arrays import Digests, Index, Input, Output
from lstmserve.engine.compute.pool import Slots, States
from lstmserve.engine.errors import ServeError
from lstmserve.engine.scheduling.digest import digest, digests_of_rows
from lstmserve.rows import make_unknown, unknown_rows

NO_SLOTS: Slots = np.zeros(0, np.int64)


class Outcome(IntEnum):
    """What became of a batch's row."""

    APPLIED = 0
    FAILED = 1  # the kernel could not compute it
    NOT_STORED = 2  # surely not
    STORE_FULL = 3
    FENCED = 4  # another server has the session now: what is cached here is stale
    UNKNOWN = 5  # the store's answer was lost: what is cached here may be stale


class Applied(NamedTuple):
    """Rows of a request that were applied together; sequences are of equal length.

    `places` are their indices in the request, whose output() has y. `start_ns` is on the engine's
    clock, `compute_ns` the sum over the batches they ran in.
    """

    places: Sequence[int]
    numbers: list[int]
    durable_steps: list[int]
    start_ns: int
    compute_ns: int
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

Column = Sequence[int] | npt.NDArray[np.integer[Any]]


class Request:
    """Steps of one model that arrived together; also one step alone.

    Row i is a step of the session in row rows[i] of the session table. Its input is
    x[firsts[i] : firsts[i] + lengths[i]] (x [cells, ...]), its output goes to y[outs[i] : ...]:
    lengths[i] rows of y [height, ...], or one with last_only. x and y are rows of the model's
    inputs and outputs (lstmserve/rows.py). Columns are lists or arrays; None stands for lengths of
    1, for the same order in x and y, for no numbers, and for no deadlines. A number of 0 is none.
    y is unknown (NaN, or 0 for integers) where nothing was applied.
    """

    __slots__ = (
        "_digests",
        "arrival_ns",
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
        arrival_ns: int,
        height: int = 1,
        numbers: Column | None = None,
        lengths: Column | None = None,
        firsts: Column | None = None,
        outs: Column | None = None,
        last_only: bool = False,
        deadlines_ns: Column | None = None,
        is_distinct: bool = False,
        is_whole: bool = False,
    ) -> None:
        self.x = x
        self.rows = rows
        self.responder = responder
        self.arrival_ns = arrival_ns  # of the last message of it
        self.height = height
        self.numbers = numbers
        self.lengths = lengths
        self.firsts = firsts
        self.outs = outs
        self.last_only = last_only
        self.deadlines_ns = deadlines_ns  # of the start of compute; 0: none
        self.is_distinct = is_distinct  # no session is twice among the rows
        self.is_whole = is_whole  # refused as one where there is no room for all rows
        self.left = len(rows)  # rows that are not answered yet
        self.inputs_left = 0  # rows that will read x
        self.is_cancelled = False
        self.cancelled: set[int] | None = None  # single rows whose clients have left
        self.plan: Plan | None = None  # of a Predict's sequences, which have no session
        self.y: Output | None = None
        self._digests: Digests | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def as_arrays(self) -> Index:
        """Turns columns that are lists into arrays; returns `rows`, [N]."""
        rows: Index = np.asarray(self.rows, np.int64)
        self.rows = rows
        for name in ("numbers", "lengths", "firsts", "outs", "deadlines_ns"):
            column = getattr(self, name)
            if column is not None:
                setattr(self, name, np.asarray(column, np.int64))
        return rows

    def length(self, i: int) -> int:
        """Time steps of row i."""
        return 1 if self.lengths is None else int(self.lengths[i])

    def number(self, i: int) -> int:
        """The number of row i's step; 0 where its client gave none."""
        return 0 if self.numbers is None else int(self.numbers[i])

    def deadline_ns(self, i: int) -> int:
        """The deadline of row i; 0 for none."""
        return 0 if self.deadlines_ns is None else int(self.deadlines_ns[i])

    def first(self, i: int) -> int:
        """The first cell of row i in x."""
        return i if self.firsts is None else int(self.firsts[i])

    def input(self, i: int) -> Input:
        """x [T, ...] of row i."""
        start = self.first(i)
        return self.x[start : start + self.length(i)]

    def output(self, i: int) -> Output:
        """y [T, ...] of row i, or [1, ...] with last_only."""
        assert self.y is not None
        start = i if self.outs is None else int(self.outs[i])
        return self.y[start : start + (1 if self.last_only else self.length(i))]

    def outputs(self, axes: tuple[int, ...], dtype: np.dtype[Any]) -> Output:
        """y [height, *axes], to be written to."""
        if self.y is None:
            self.y = unknown_rows((self.height, *axes), dtype)
        return self.y

    def digest(self, i: int) -> int:
        """The digest of row i's input; 0 where its step has no number."""
        if self._digests is not None:
            return self._digests.item(i)
        return digest(self.input(i), self.last_only) if self.number(i) else 0

    def digests(self) -> Digests | None:
        """The digests of all rows, [N]; None where no row has a number."""
        if self._digests is None and self.numbers is not None:
            if self.lengths is None:
                x = self.x if self.firsts is None else self.x[self.firsts]
                digests = digests_of_rows(x, self.last_only)
                numbers = np.asarray(self.numbers)
                if not numbers.all():
                    digests[numbers == 0] = 0
            else:
                digests = np.fromiter(map(self.digest, range(len(self))), np.uint64, len(self))
            self._digests = digests
        return self._digests

    def cancel(self) -> None:
        """Cancels the request, whose client has left: rows whose last slice is not scheduled never
        run."""
        self.is_cancelled = True

    def cancel_row(self, i: int) -> None:
        """Cancels row i alone, as cancel() does."""
        self.cancelled = {*(self.cancelled or ()), i}

    def answer(self, rows: Applied) -> None:
        """Tells the responder of rows that were applied."""
        self._answered(len(rows.places)).applied(self, rows)

    def fail(self, i: int, error: ServeError) -> None:
        """Tells the responder of a row that was not applied; its output is unknown."""
        if self.y is not None:
            make_unknown(self.output(i))
        self._answered(1).failed(self, i, error)

    def _answered(self, count: int) -> Responder:
        responder = self.responder
        self.left -= count
        if not self.left:
            self.responder = ANSWERED  # the real one may hold the request
        return responder

    def forget_input(self) -> None:
        """Drops x, which no row will read any more."""
        self.x = self.x[:0].copy()

    def forget_arrays(self) -> None:
        """Drops x and y; all rows are answered, and the responder has read y."""
        assert not self.left
        self.forget_input()
        self.y = None


@dataclass(slots=True)
class Plan:
    """How the sequences of a Predict run: one group after the other, each of like lengths.

    `groups` are their places, the longest first. `initial` and `finals` have a row per sequence of
    every state. Without `initial` each begins from the model's initial state; without `finals` the
    final states are dropped.
    """

    groups: list[Index]
    left: int  # sequences whose last time step has not been computed
    initial: States | None = None
    finals: States | None = None
    turn: int = 0  # of the group that waits or runs
    start_ns: int = 0  # when the first slice ran
    compute_ns: int = 0  # of the groups that are over


class Chunk:
    """Rows of one request that wait and run together, at the same time step.

    `places` [n] are in the order of the request (is_whole relies on it), or, of a Predict, the
    longest first. `rows` [n] are those of the session table, of a Predict none. `lengths` [n];
    None: all are of `length`, else that is the longest. A chunk that goes on keeps its states in
    `scratch` [n] between its batches.
    """

    __slots__ = (
        "_place",
        "_places",
        "_row",
        "_rows",
        "compute_ns",
        "done",
        "held",
        "length",
        "lengths",
        "request",
        "scratch",
        "size",
        "start_ns",
    )

    def __init__(
        self,
        request: Request,
        places: Index | int,
        rows: Index | int,
        length: int,
        lengths: Index | None = None,
    ) -> None:
        self.request = request
        self._places: Index | None = None
        self._rows: Index | None = None
        self.size = 1
        if isinstance(places, int) and isinstance(rows, int):
            self._place, self._row = places, rows  # arrays of one cost more than all else here
        else:
            self._places, self._rows = np.asarray(places), np.asarray(rows)
            self.size = self._places.size
        self.length = length
        self.lengths = lengths
        self.done = 0  # time steps computed
        self.scratch = NO_SLOTS
        self.held = 0  # scratch slots that it may hold between its batches
        self.start_ns = 0  # when its first slice ran
        self.compute_ns = 0

    def __repr__(self) -> str:
        return f"Chunk({self.size} rows, done={self.done}/{self.length})"

    @property
    def places(self) -> Index:
        """The chunk's places in the request, [n]."""
        if self._places is None:
            self._places = np.array((self._place,))
        return self._places

    @property
    def rows(self) -> Index:
        """The chunk's rows of the session table, [n]."""
        if self._rows is None:
            self._rows = np.array((self._row,))
        return self._rows

    def place(self, i: int) -> int:
        """The place of row i in the request."""
        return self._place if self._places is None else self._places.item(i)

    def row(self, i: int) -> int:
        """The session table's row for row i."""
        return self._row if self._rows is None else self._rows.item(i)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its request, in order."""
        return self.size == len(self.request.rows) and self.request.plan is None

    def keep(self, is_kept: npt.NDArray[np.bool_]) -> None:
        """Drops all rows but these [n]."""
        self._places = self.places[is_kept]
        self.size = self._places.size
        if self.request.plan is None:
            self._rows = self.rows[is_kept]
        if self.lengths is not None and self.size:
            self.lengths = self.lengths[is_kept]
            self.length = int(self.lengths.max())
        if self.scratch.size:
            self.scratch = self.scratch[is_kept]

    def split(self, count: int) -> Chunk:
        """Keeps the first `count` rows, which have begun nothing; returns the others."""
        is_first = np.arange(self.size) < count
        others = Chunk(self.request, self.places, self.rows, self.length, self.lengths)
        others.keep(~is_first)
        self.keep(is_first)
        return others

    def cells(self) -> Index:
        """Where the next time step of each row is in x, [n]."""
        firsts = self.request.firsts
        cells: Index = self.places if firsts is None else np.asarray(firsts)[self.places]
        return cells + self.done if self.done else cells

    def outs(self) -> Index:
        """Where the output of each row begins in y, [n]."""
        outs = self.request.outs
        found: Index = self.places if outs is None else np.asarray(outs)[self.places]
        return found


def chunks_of(places: list[Place], rows: list[int]) -> list[Chunk]:
    """Of rows of any requests, each first in its session; those of one request run together."""
    chunks: list[Chunk] = []
    start = 0
    for stop in range(1, len(places) + 1):
        request, i = places[start]
        if request.lengths is None and stop < len(places) and places[stop][0] is request:
            continue
        if stop - start == 1:
            chunks.append(Chunk(request, i, rows[start], request.length(i)))
        else:
            own = np.array([place for _, place in places[start:stop]])
            order = np.argsort(own)  # sessions come free in any order
            chunks.append(Chunk(request, own[order], np.array(rows[start:stop])[order], 1))
        start = stop
    return chunks


Place = tuple[Request, int]  # a row of a request
