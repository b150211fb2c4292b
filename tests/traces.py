"""Random traces of one model's work, and everything that its scheduler, old or new, does with them.

A trace is a seed: single steps, steps that arrived together, messages of many sessions, Predicts,
cancels, deadlines, holds, sessions that are replaced, moved or closed, a store that fails. Only the
next event depends on what the scheduler did before, so one difference changes everything after it.
This module must not know the scheduler's classes: an adapter (Side) hands the work over.

It compares, of every row, its number, the bits of y, the durable step, whether it was replayed, or
the reason and metadata of its error, in order per session; what each batch had, and what its commit
stored; after every event the pending steps and those in flight; and the sessions at the end.

It leaves out what differs on purpose between old and new, or was promised to no client:

- the order of answers of different sessions, and of slots and columns: therefore batches are large
  enough for all that is ready, except in traces of single steps alone, of one Predict at a time, or
  of messages of idle sessions, whose rows wait as columns ("split");
- which steps of a list are refused if it finds room (pending_steps_max) for some of its rows only:
  a list is cut to the room that there is, but a message of many, which is refused whole, is not;
- times in a message of many and in a list (the old ones had the latest of their rows'): the times
  of single steps and of Predicts are compared;
- words of errors, and seconds of retries.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lstmserve.config import Config
from lstmserve.engine.compute.slots import SlotAllocator
from lstmserve.engine.table import (
    CLOSING,
    CONTESTED,
    DETACHED,
    MOVED,
    NOT_STORED,
    OPEN,
    SUSPECT,
    SessionTable,
)

SLICE = 4  # time steps
OUTPUT_SIZE = 2
GARBAGE = np.float32(1e6)  # where y means nothing
MS = 10**6
TTL_NS = 3600 * 10**9
APPLIED, FAILED = 0, 1  # the first two outcomes of a batch's row
STORE_OUTCOMES = (2, 2, 3, 4, 5, 5)  # not stored, store full, fenced, unknown
MODES = ("wide", "deep", "wide", "tight", "narrow", "predict", "split")

Array = npt.NDArray[Any]


@dataclass
class Call:
    """What arrived together: `kind` is "step", "list", "many" or "predict"; row i has input i."""

    kind: str
    uid: int
    rows: list[int]
    inputs: list[Array]  # x [T, 2] or tokens [T, 1] of each
    numbers: list[int]  # 0: none
    last_only: bool
    each_last_only: list[bool]  # of a list
    deadlines_ns: list[int]  # 0: without a deadline
    arrival_ns: int
    answer: Callable[..., None] = field(repr=False)  # (place, *what)
    gap: int = 0  # unused rows of x before each input
    initial: dict[str, Array] | None = None
    finals: dict[str, Array] | None = None
    cost: Any = None
    work: Any = None  # what the side made of the call
    left: int = 0

    @property
    def lengths(self) -> list[int]:
        """The time steps of each row."""
        return [len(x) for x in self.inputs]

    def flat(self) -> tuple[Array, Array, int]:
        """x of all rows, with gaps; where each begins in it; and its height."""
        lengths = np.array(self.lengths, np.int64)
        pieces = []
        for x in self.inputs:
            pieces += [np.full_like(x, 96)] * bool(self.gap) + [x]
        steps = lengths * (1 + bool(self.gap))
        starts = np.cumsum(steps) - lengths
        return np.concatenate(pieces), starts, int(steps.sum())


class Side(Protocol):
    """A scheduler, and how it gets work. It answers by call.answer(place, ...)."""

    scheduler: Any

    def submit(self, call: Call) -> None:
        """Hands the call over, and answers what is refused at once."""

    def cancel(self, call: Call, place: int) -> None:
        """Cancels this row of a list or a step, or a whole call of another kind."""

    def check(self) -> None:
        """Asserts what is true also while rows wait or run."""

    def columns(self, batch: Any) -> list[tuple[int, int, int]]:
        """(row of the table, 0, 0) of each column, or (-1, uid, place) of a Predict's."""

    def stop(self, now_ns: int) -> None:
        """Ends all that is not in flight."""

    def saved_reply(self, table: SessionTable, row: int) -> list[Any] | None:
        """Length and bits of what a repeat of the session's last step is answered with."""

    @property
    def pending_sequences(self) -> int:
        """The number of pending sequences of Predicts."""


class ArrayPool:
    """The pool's interface on numpy arrays."""

    def __init__(self, slots: int) -> None:
        self.widths = {"h.0": 1, "c.0": 1}
        self.tensors = {name: np.zeros((slots, 1), np.float32) for name in self.widths}
        self._free = SlotAllocator(1, slots - 1)

    @property
    def free_count(self) -> int:
        """The number of slots without an owner."""
        return len(self._free)

    def take(self, count: int) -> Array:
        """Takes slots [count]."""
        return self._free.take(count)

    def take_one(self) -> int:
        """Takes a slot."""
        return self._free.take_one()

    def give(self, slots: Array) -> None:
        """Gives slots [n] back."""
        self._free.give(slots[slots != 0])

    def give_one(self, slot: int) -> None:
        """Gives a slot back."""
        if slot:
            self._free.give_one(slot)

    def read(self, slots: Array) -> dict[str, Array]:
        """Rows [n, width] by name."""
        return {name: tensor[slots] for name, tensor in self.tensors.items()}

    def write(self, slots: Array, rows: dict[str, Array]) -> None:
        """Rows [n, width] by name."""
        assert slots.all()
        for name, tensor in self.tensors.items():
            tensor[slots] = rows[name]

    def check_integrity(self, used: Array) -> None:
        """Asserts that every slot has one owner, and that the zero slot is zero."""
        self._free.check_integrity(used[used != 0])
        assert not any(tensor[0].any() for tensor in self.tensors.values())

    def run(self, x: Array, lengths: Array, read: Array, write: Array) -> Array:
        """x [T, B, 2] or tokens [T, B, 1] -> y [T, B, O], all of small integers.

        Float32 is exact for them, on any machine.
        """
        if x.dtype == np.float32:
            x = x[..., 0] + 5 * x[..., 1]
        values = x.reshape(x.shape[:2]).astype(np.int64)
        h, c = (self.tensors[name][read, 0].astype(np.int64) for name in ("h.0", "c.0"))
        y = np.full((*values.shape, OUTPUT_SIZE), GARBAGE, np.float32)
        for t in range(len(values)):
            is_on = t < lengths
            h = np.where(is_on, (3 * h + values[t]) % 97, h)
            c = np.where(is_on, (5 * c + h + 1) % 89, c)
            y[t, is_on, 0], y[t, is_on, 1] = h[is_on], (100 * c + h)[is_on]
        self.tensors["h.0"][write, 0], self.tensors["c.0"][write, 0] = h, c
        return y


@dataclass(eq=False)
class Session:
    """What its client, and the trace, know of a session."""

    uid: int
    key: str
    row: int
    sent: dict[int, tuple[Array, bool]] = field(default_factory=dict)  # input of each number


@dataclass(eq=False)
class Flight:
    """A batch under way."""

    serial: int
    batch: Any
    who: list[tuple[int, int, int]]  # uid of the session, or (-1, uid, place), by column
    stage: int = 0  # 1: computed, 2: stored
    compute_ns: int = 0


class Random:
    """Random numbers of one seed that no version of Python changes."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed).random

    def below(self, count: int) -> int:
        """0 .. count - 1"""
        return int(self._draw() * count)

    def chance(self, share: float) -> bool:
        """Whether an event with this probability happens."""
        return self._draw() < share

    def pick(self, items: Any) -> Any:
        """One of a sequence."""
        return items[self.below(len(items))]

    def sample(self, items: Any, count: int) -> list[Any]:
        """`count` items, none twice."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(min(count, len(left)))]


class Trace:
    """One seed's events on one side; `log` has the results."""

    def __init__(self, seed: int, make_side: Callable[..., Side]) -> None:
        self.seed = seed
        self.rng = rng = Random(seed)
        self.mode = MODES[seed % len(MODES)]
        self.store = rng.pick(("memory", "memory", "through", "through", "behind"))
        self.fault = rng.pick((0.0, 0.03, 0.2))
        self.is_tokens = rng.chance(0.15)
        self.is_numbered = rng.pick((0.2, 0.8, 1.0))  # share of steps
        self.config = self._config()
        counts = {"wide": 6 + rng.below(14), "deep": 2, "tight": 3 + rng.below(6), "narrow": 5}
        counts["split"] = 4 + rng.below(12)
        self.sessions_max = counts.get(self.mode, 0)
        self.table = SessionTable(64)
        self.pool = ArrayPool(2048)
        self.side = make_side(self.config, self.table, self.pool, self._on_idle, self._on_moved)
        self.scheduler = self.side.scheduler
        self.now_ns = 10**9
        self.log: list[Any] = []
        self.answers: list[Any] = []
        self.calls: dict[int, Call] = {}  # calls that are not over
        self.messages: set[int] = set()  # uids of messages of many sessions
        self.open: dict[str, Session] = {}
        self.at_row: dict[int, Session] = {}  # also those that are detached
        self.holds: list[Any] = []  # (session, the result of hold())
        self.flights: list[Flight] = []
        self.serial = self.uids = 0

    def _config(self) -> Config:
        rng, limits = self.rng, {}
        if self.mode == "tight":
            limits = {
                "pending_steps_max": 4 + rng.below(9),
                "session_pending_max": 1 + rng.below(4),
            }
        if self.mode == "deep" and rng.chance(0.5):
            limits = {"session_pending_max": 2 + rng.below(8)}
        batch = {"batch_sessions_max": 1024, "batch_cells_max": 1 << 14, "long_steps_max": 512}
        if self.mode in ("narrow", "predict", "split"):
            batch = {
                "batch_sessions_max": 1 + rng.below(4),
                "batch_cells_max": 4 + rng.below(12),
                "long_steps_max": 1 + rng.below(3),
            }
        reply_bytes_max = rng.pick((65_536, 65_536, 65_536, 8, 16, 0))
        return Config(slice_rows_max=SLICE, reply_bytes_max=reply_bytes_max, **batch, **limits)

    # Events -------------------------------------------------------------------------------------

    def run(self) -> list[Any]:
        """Runs the whole trace. Returns the log."""
        for _ in range(self.sessions_max):
            self._open()
        self._note("begin")
        events = 24 + self.rng.below(50)
        for _ in range(events):
            self._note(self._event())
        self._end()
        return self.log

    def _event(self) -> str:
        rng = self.rng
        work: tuple[Any, ...] = (self._step, self._step, self._list, self._many, self._predict)
        if self.mode == "wide":
            work = (*work, self._lists)
        if self.mode == "narrow":
            work = (self._step,)
        if self.mode == "split":
            work = (self._many,)
        if self.mode == "predict":
            work = (self._predict_alone,)
        others = (self._cancel, self._cancel, self._hold, self._release, self._leave, self._trust)
        draw = rng.below(100)
        if draw < 44:
            event = rng.pick(work)
        elif draw < 80:
            event = self._advance
        elif draw < 84:
            event = self._pass_time
        else:
            event = rng.pick((*others, self._durable, self._open))
        event()
        return event.__name__

    def _note(self, event: str) -> None:
        scheduler = self.scheduler
        answers, self.answers = self.answers, []
        # Stable: in order per session. Messages of many are answered whole, after the others.
        answers.sort(key=lambda each: (each[0], each[1] if each[1] in self.messages else 0))
        self.side.check()
        counts = [scheduler.pending_steps, scheduler.in_flight_steps, scheduler.has_ready]
        self.log.append([event, *counts, answers])

    def _tell(self, uid: int, *what: Any) -> None:
        self.answers.append([uid, *what])

    def _open(self) -> None:
        every = (f"s{i}" for i in range(self.sessions_max))
        names = [name for name in every if self.table.find(name) is None]
        if not names or len(self.at_row) > 50:
            return
        table, rng, key = self.table, self.rng, names[0]
        row = table.add(key)
        self.uids += 1
        session = self.open[key] = self.at_row[row] = Session(self.uids, key, row)
        table.durable_step[row] = NOT_STORED
        table.step[row] = table.digest[row] = 0
        if rng.chance(0.3):  # it goes on from what a store, or another life, had
            table.step[row] = 1 + rng.below(5)
            if self.store != "memory":
                table.durable_step[row] = table.step[row]
            table.slot[row] = self.pool.take_one()
            state = {name: np.full((1, 1), rng.below(80), np.float32) for name in self.pool.widths}
            self.pool.write(table.slot[row : row + 1].copy(), state)
        table.begin_time(row, self.now_ns, TTL_NS)
        if rng.chance(0.15):
            table.set_trust(row, SUSPECT)
        self._tell(session.uid, "opened", table.step.item(row))

    def _step(self) -> None:
        if self.open:
            session = self.rng.pick(list(self.open.values()))
            self._submit("step", [session])

    def _list(self) -> None:
        if not self.open:
            return
        rng, count = self.rng, 2 + self.rng.below(2 + 2 * len(self.open))
        sessions = [rng.pick(list(self.open.values())) for _ in range(count)]
        if rng.chance(0.7):
            sessions = rng.sample(self.open.values(), count)
        pending = self.scheduler.pending_steps - self.side.pending_sequences
        room = self.config.pending_steps_max - pending
        if room > 0:
            sessions = sessions[:room]
        self._submit("list", sessions)

    def _lists(self) -> None:
        """Sends lists of most sessions, one behind the other: the rows of the second list wait
        together."""
        for _ in range(2):
            sessions = self.rng.sample(self.open.values(), 3 + self.rng.below(12))
            if sessions:
                self._submit("list", sessions, is_simple=True)

    def _many(self) -> None:
        sessions = self.rng.sample(self.open.values(), 1 + self.rng.below(len(self.open) + 2))
        if self.mode == "split":  # the rows that wait are taken out in another order
            sessions = [each for each in sessions if not self.table.pending[each.row]]
            sessions = sessions if len(sessions) >= 4 else []  # fewer wait one by one
        if sessions:
            self._submit("many", sessions)

    def _submit(self, kind: str, sessions: list[Session], *, is_simple: bool = False) -> None:
        rng = self.rng
        is_numbered, is_wild = rng.chance(self.is_numbered), rng.chance(0.4) and not is_simple
        is_single, last_only = rng.chance(0.6) or is_simple, rng.chance(0.2) and not is_simple
        is_plain = rng.chance(0.5) or is_simple  # of a list: all alike
        deadline_ns = self._deadline()
        ahead: dict[int, int] = {}  # steps of this call by session
        numbers, inputs, lasts, deadlines = [], [], [], []
        for session in sessions:
            if kind == "list" and not is_plain:
                is_numbered = rng.chance(self.is_numbered)
                last_only = rng.chance(0.1)
                deadline_ns = self._deadline()
            due = self.table.accepted(session.row).item() + 1 + ahead.get(session.uid, 0)
            number = self._number(session, due, is_wild) if is_numbered else 0
            x, sent_last = self._input(is_single), last_only
            if number in session.sent and number and number != due and rng.chance(0.85):
                x, sent_last = session.sent[number]
            if kind != "many":
                last_only = sent_last
            if number in (0, due):
                session.sent[due] = x, last_only
                ahead[session.uid] = ahead.get(session.uid, 0) + 1
            numbers.append(number)
            inputs.append(x)
            lasts.append(last_only)
            deadlines.append(deadline_ns)
        rows = [session.row for session in sessions]
        call = self._call(kind, rows, inputs, numbers, last_only, lasts, deadlines)
        call.gap = int(kind == "many" and rng.chance(0.2))
        names = [session.uid for session in sessions]
        self._hand_over(call, names)

    def _deadline(self) -> int:
        rng = self.rng
        return self.now_ns + rng.below(30) * MS if rng.chance(0.15) else 0

    def _number(self, session: Session, due: int, is_wild: bool) -> int:
        """Mostly the next number, else a repeat, an old number, or one too far ahead."""
        rng, last = self.rng, self.table.step.item(session.row)
        if not is_wild or rng.chance(0.6):
            return due
        kind = rng.below(8)
        if kind < 3:
            return max(1, last)
        if kind < 6 and due > last + 1:
            return last + 1 + rng.below(due - last - 1)
        return due + 1 + rng.below(3) if kind == 6 else max(1, last - 1 - rng.below(2))

    def _input(self, is_single: bool) -> Array:
        rng = self.rng
        length = 1 if is_single or rng.chance(0.4) else 1 + rng.below(3 * SLICE)
        count = length if self.is_tokens else 2 * length
        values = [rng.below(60) for _ in range(count)]
        if self.is_tokens:
            return np.array(values, np.int64)[:, np.newaxis]
        return np.array(values, np.float32).reshape(length, 2)

    def _call(self, kind: str, rows: list[int], inputs: list[Array], *rest: Any) -> Call:
        self.uids += 1
        call = Call(kind, self.uids, rows, inputs, *rest, arrival_ns=self.now_ns, answer=print)
        call.left = len(rows)
        self.now_ns += self.rng.below(3) * MS
        return call

    def _hand_over(self, call: Call, uids: list[int]) -> None:
        def answer(place: int, *what: Any) -> None:
            call.left -= 1
            assert call.left >= 0, "a row was answered twice"
            if not call.left:
                self.calls.pop(call.uid, None)
            self._tell(uids[place], call.uid, place, *what)

        call.answer = answer
        self.calls[call.uid] = call
        if call.kind == "many":
            self.messages.add(call.uid)
        self.side.submit(call)

    def _predict(self) -> None:
        rng = self.rng
        inputs = [self._input(rng.chance(0.2)) for _ in range(1 + rng.below(7))]
        count = len(inputs)
        call = self._call("predict", [-1] * count, inputs, [0] * count, rng.chance(0.3), [], [])
        if rng.chance(0.4):
            states = [[rng.below(80)] for _ in range(count)]
            call.initial = {name: np.array(states, np.float32) for name in self.pool.widths}
        if rng.chance(0.5):
            call.finals = {name: np.empty((count, 1), np.float32) for name in self.pool.widths}
        nanoseconds = rng.pick((100, 10_000, 300_000))
        call.cost = SimpleNamespace(run_ns=10_000, step_ns=2_000, row_ns=nanoseconds)
        self._hand_over(call, [call.uid] * count)

    def _predict_alone(self) -> None:
        if not self.calls:
            self._predict()

    def _cancel(self) -> None:
        if self.calls:
            call = self.rng.pick(list(self.calls.values()))
            self.side.cancel(call, self.rng.below(len(call.rows)))

    def _hold(self) -> None:
        held = [session for session, _ in self.holds]
        free = [session for session in self.open.values() if session not in held]
        if free and len(held) < 3:
            session = self.rng.pick(free)
            hold = self.scheduler.hold(session.row, lambda: self._tell(session.uid, "at rest"))
            self.holds.append((session, hold))

    def _release(self) -> None:
        if self.holds:
            _, hold = self.holds.pop(self.rng.below(len(self.holds)))
            self.scheduler.release(hold)

    def _leave(self) -> None:
        """Replaces, moves or closes a session, or lets a replaced one live on."""
        rng, table = self.rng, self.table
        replaced = [row for row in self.at_row if table.phase[row] == DETACHED]
        if replaced and rng.chance(0.3):
            table.set_phase(rng.pick(replaced), MOVED)
        elif self.open and rng.chance(0.7):
            session = rng.pick(list(self.open.values()))
            kind = rng.below(3)
            if kind < 2:
                self._detach(session, (DETACHED, MOVED)[kind])
                return
            del self.open[session.key]
            table.set_phase(session.row, CLOSING)
            if not table.pending[session.row]:
                self._on_idle(session.row)

    def _detach(self, session: Session, phase: int) -> None:
        table, row = self.table, session.row
        self.open.pop(session.key, None)
        table.detach(row, phase)
        if not table.pending[row]:
            self._free(row)

    def _free(self, row: int) -> None:
        self.pool.give_one(self.table.slot.item(row))
        self.table.slot[row] = 0
        self.table.release(row)
        del self.at_row[row]

    def _on_idle(self, row: int) -> None:
        session = self.at_row[row]
        self._tell(session.uid, "idle", self.table.step.item(row))
        if self.table.phase[row] == CLOSING:
            self.table.detach(row)
        self._free(row)

    def _on_moved(self, row: int) -> None:
        session = self.at_row[row]
        self._tell(session.uid, "moved", self.table.step.item(row))
        self._detach(session, MOVED)

    def _trust(self) -> None:
        if self.open:
            row = self.rng.pick(list(self.open.values())).row
            self.table.set_trust(row, self.rng.pick((SUSPECT, SUSPECT, CONTESTED)))

    def _durable(self) -> None:
        """Notes that a store behind has caught up with some sessions."""
        if self.store == "behind":
            for session in self.rng.sample(self.open.values(), 3):
                self.table.durable_step[session.row] = self.table.step[session.row]

    def _pass_time(self) -> None:
        self.now_ns += self.rng.below(40) * MS

    # Batches ------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Advances one batch by a stage, or a few batches to their end."""
        rng = self.rng
        self.now_ns += MS
        if rng.chance(0.5):
            while self.flights:
                self._go_on(self.flights[0])
            for _ in range(1 + rng.below(3)):
                if self._begin():
                    while self.flights:
                        self._go_on(self.flights[0])
        elif self.flights and (len(self.flights) == 2 or rng.chance(0.6)):
            self._go_on(rng.pick(self.flights))
        else:
            self._begin()

    def _begin(self) -> bool:
        batch = self.scheduler.schedule(self.now_ns)
        if batch is None:
            return False
        self.serial += 1
        who = [
            (self.at_row[row].uid, uid, place) if row >= 0 else (row, uid, place)
            for row, uid, place in self.side.columns(batch)
        ]
        assert len(who) == batch.size
        self.flights.append(Flight(self.serial, batch, who))
        self._tell(0, "batch", self.serial, sorted(who), batch.length_max, batch.rows_count)
        return True

    def _go_on(self, flight: Flight) -> None:
        if flight.stage == 0:
            self._compute(flight)
        elif flight.stage == 1:
            self._commit(flight)
        else:
            self.flights.remove(flight)
            self.now_ns += MS
            self.scheduler.settle(flight.batch, self.now_ns, flight.compute_ns)
        flight.stage += 1

    def _draw(self, *what: Any) -> int:
        """A random number 0 .. 2^32 - 1 that depends on its arguments only, not on the order."""
        name = f"{self.seed} {what}".encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=4).digest(), "little")

    def _is_fault(self, *what: Any) -> bool:
        return self.fault > 0 and self._draw(*what) < self.fault * 2**32

    def _compute(self, flight: Flight) -> None:
        batch = flight.batch
        flight.compute_ns = 1000 + flight.serial
        y = self.pool.run(batch.inputs, batch.lengths, batch.read, batch.write)
        for column, who in enumerate(flight.who):
            if self._is_fault("kernel", flight.serial, who) and self._draw("rare", who) % 3 == 0:
                batch.outcomes[column] = FAILED
                y[:, column] = np.nan
                for tensor in self.pool.tensors.values():
                    tensor[batch.write[column]] = -1
        batch.absorb(y)

    def _commit(self, flight: Flight) -> None:
        """Commits the batch as a write-through store does."""
        if self.store != "through":
            return
        batch, table = flight.batch, self.table
        ended = batch.endings()
        is_here = table.phase[ended.rows] < DETACHED
        columns, rows = ended.columns[is_here], ended.rows[is_here].tolist()
        states = self.pool.read(ended.slots[is_here])
        lasts = list(batch.numbered(columns))
        assert len(lasts) == len(rows)
        for i, (column, row) in enumerate(zip(columns.tolist(), rows, strict=True)):
            uid, (digest, y) = flight.who[column][0], lasts[i]
            state = [each[i, 0].item() for each in states.values()]
            self._tell(uid, "stored", digest, None if y is None else bits(y), state)
            outcome = APPLIED
            if self._is_fault("store", flight.serial, uid):
                outcome = STORE_OUTCOMES[self._draw("how", flight.serial, uid) % 6]
            batch.outcomes[column] = outcome
            if outcome == APPLIED:
                table.durable_step[row] = table.step.item(row) + 1

    # The end ------------------------------------------------------------------------------------

    def _end(self) -> None:
        is_stopped = self.rng.chance(0.15)
        while self.flights:
            self._go_on(self.flights[0])
        if is_stopped:
            self.side.stop(self.now_ns)
        while self.holds:
            self._release()
        while self._begin():
            while self.flights:
                self._go_on(self.flights[0])
        self._note("end")
        assert self.scheduler.pending_steps == 0
        assert not self.calls, "a row was not answered"
        for session in sorted(self.open.values(), key=lambda each: each.uid):
            self.log.append(self._session(session))
        self.table.check_integrity()
        self.scheduler.check_integrity(np.array(sorted(self.at_row), np.int64))

    def _session(self, session: Session) -> list[Any]:
        table, row = self.table, session.row
        columns = (table.step, table.digest, table.durable_step, table.trust, table.expiry_ns)
        reply = None
        if table.digest[row]:  # else nothing is ever answered with it
            reply = self.side.saved_reply(table, row)
        state = [each.item() for each in self.pool.read(table.slot[row : row + 1]).values()]
        assert table.phase[row] == OPEN
        return [session.uid, *(column.item(row) for column in columns), state, reply]


def failure(error: Any) -> list[Any]:
    """The answer of a refused row, as far as it is compared."""
    return ["failed", error.reason, error.metadata]


def bits(y: Array) -> str:
    """The bits of y [t, O]."""
    return np.ascontiguousarray(y, "<f4").tobytes().hex()


def canonical(log: list[Any]) -> str:
    """The log as text."""
    return "\n".join(json.dumps(each, separators=(",", ":")) for each in log)


def result(seed: int, make_side: Callable[..., Side]) -> str:
    """The sha256 of everything that a seed's trace gave."""
    return hashlib.sha256(canonical(Trace(seed, make_side).run()).encode()).hexdigest()
