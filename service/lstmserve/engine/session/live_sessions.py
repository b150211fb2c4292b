"""The sessions that this server has: opens, finds, closes, expires and detaches them.

It is synchronous and gets the time as an argument. It neither runs nor orders steps: that is the
scheduler's work. It never asks a store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lstmserve.config import Config
from lstmserve.engine.arrays import Output
from lstmserve.engine.clock import Now
from lstmserve.engine.compute.pool import INITIAL, States
from lstmserve.engine.errors import SessionClosed, SessionReplaced
from lstmserve.engine.model import Model
from lstmserve.engine.registry import ModelRegistry
from lstmserve.engine.session.past_sessions import (
    Departure,
    Ending,
    Lifetime,
    PastSessions,
    Tombstone,
)
from lstmserve.engine.table import (
    CLOSING,
    DETACHED,
    MOVED,
    NOT_STORED,
    OPEN,
    SessionTable,
)


@dataclass(frozen=True, slots=True)
class SessionStart:
    """What a session starts from: the states, [1, *shape] each, and the step they belong to.

    `rows` None is the model's initial state. `request_id` is that of the OpenSession that creates
    the session. The fields between are set for a session that continues one from a store, and are
    0 or None for a new one.
    """

    source: str = "new"  # new, import, fork, load, resume: the label of lstm_sessions_opened_total
    rows: States | None = None
    step: int = 0
    incarnation: int = 0
    epoch: int = 0
    open_time_ns: int = 0
    digest: int = 0
    reply: Output | None = None  # y [t, ...] of its last step
    request_id: str = ""


class LiveSessions:
    """Writes the table's keys, phases, incarnations and TTLs, and tells the budget of each row."""

    def __init__(
        self, config: Config, table: SessionTable, registry: ModelRegistry, boot_id: str
    ) -> None:
        self._table = table
        self._registry = registry
        self.past = PastSessions(config, boot_id)
        self._incarnation = 0
        self._on_closed: dict[int, list[Callable[[int], None]]] = {}
        self._on_quiet: dict[int, Callable[[], None]] = {}

    def find(self, key: str, incarnation: int, now: Now) -> int:
        """The row of an open session. Raises SessionNotFound, SessionLost, SessionExpired,
        SessionClosed, SessionReplaced."""
        row = self._table.find(key)
        if row is None:
            raise self.past.error(key, incarnation, now.monotonic_ns)
        table = self._table
        if incarnation and incarnation != table.incarnation.item(row):
            self._check_incarnation(row, incarnation)
        if table.phase.item(row) == CLOSING:
            raise SessionClosed("the session was closed: open it again")
        if table.expiry_ns.item(row) <= now.monotonic_ns and self.is_expired(row, now):
            self._end(row, "expired", now)
            raise self.past.error(key, incarnation, now.monotonic_ns)
        return row

    def _check_incarnation(self, row: int, incarnation: int) -> None:
        actual = self._table.incarnation.item(row)
        if incarnation not in (0, actual):
            raise SessionReplaced(
                "this id was opened again; the session you had has ended",
                metadata={"incarnation": str(actual)},
            )

    def find_any(self, key: str, now: Now) -> int | None:
        """The row of this key, open or closing, or None."""
        row = self._table.find(key)
        if row is not None and self.is_expired(row, now):
            self._end(row, "expired", now)
            return None
        return row

    def model_of(self, row: int) -> Model:
        return self._registry.of(self._table.model.item(row))

    def open(self, key: str, model: Model, start: SessionStart, ttl_ns: int, now: Now) -> int:
        """Opens a session. The key must be free, and the model must have room (SessionCapacity)."""
        assert model.pool is not None
        table = self._table
        row = table.add(key)
        self._registry.budget.opened(model)
        table.model[row] = model.handle
        table.incarnation[row] = start.incarnation or self.next_incarnation(now)
        table.epoch[row] = start.epoch
        table.step[row] = start.step
        table.durable_step[row] = start.step if start.source == "load" else NOT_STORED
        table.digest[row] = start.digest
        if start.reply is not None:
            table.replies.save(row, start.reply, model.results)
        if start.request_id:
            table.request_ids[row] = start.request_id
        table.begin_time(row, now.monotonic_ns, ttl_ns)
        table.open_time_ns[row] = start.open_time_ns or now.wall_ns
        if start.rows is not None:
            table.slot[row] = model.pool.take_one()
            model.pool.write(table.slot[row : row + 1].copy(), start.rows)
        self.past.drop_tombstone(key)
        if start.source == "load":
            self.past.drop_departure(key)
        model.metrics.opened(start.source)
        return row

    def renewal(self, row: int) -> SessionStart:
        """Everything that the session's next incarnation continues from."""
        table, model = self._table, self.model_of(row)
        return SessionStart(
            "resume",
            self.state(row) if table.slot[row] else None,
            int(table.step[row]),
            open_time_ns=int(table.open_time_ns[row]),
            digest=int(table.digest[row]),
            reply=table.replies.get(row, model.results),
            request_id=table.request_ids.get(row, ""),
        )

    def state(self, row: int) -> States:
        """The session's states, [1, *shape] each, after its last applied step. It waits for
        nothing."""
        pool = self.model_of(row).pool
        assert pool is not None
        return pool.read(self._table.slot[row : row + 1].copy())

    def close(self, key: str, incarnation: int, now: Now, on_closed: Callable[[int], None]) -> None:
        """Ends a session after its pending steps, and then calls on_closed(step).

        A second close gets the same answer. Raises what find() raises for any other session.
        """
        row = self._table.find(key)
        if row is None:
            on_closed(self.past.closed_step(key, incarnation, now.monotonic_ns))
            return
        self._check_incarnation(row, incarnation)
        if self._table.phase[row] == OPEN:
            self.find(key, incarnation, now)
            self._table.set_phase(row, CLOSING)
        self._on_closed.setdefault(row, []).append(on_closed)
        if not self._table.pending[row]:
            self.on_idle(row, now)

    def quieten(self, key: str, incarnation: int, now: Now, on_quiet: Callable[[], None]) -> None:
        """Accepts no more steps, and calls on_quiet() once none is pending. Raises as find()."""
        row = self.find(key, incarnation, now)
        self._table.set_phase(row, CLOSING)
        self._on_quiet[row] = on_quiet
        if not self._table.pending[row]:
            self.on_idle(row, now)

    def reopen(self, key: str) -> None:
        """Undoes quieten(), if the session is still here."""
        if (row := self._table.find(key)) is not None:
            self._table.set_phase(row, OPEN)

    def detach(self, row: int, reason: str) -> None:
        """Frees the key at once, without a tombstone.

        Pending steps end when their batch settles; the row is freed after the last of them.
        """
        if reason == "replaced":  # its successor's incarnation must be higher
            self._incarnation = max(self._incarnation, self._table.incarnation.item(row))
        self._announce_closed(row)
        self._table.detach(row, DETACHED if reason == "replaced" else MOVED)
        self.model_of(row).metrics.closed(reason)
        if not self._table.pending[row]:
            self._release(row)

    def mark_moved(self, row: int) -> None:
        """Marks a replaced session that still has steps: it may live on elsewhere."""
        if self._table.phase[row] == DETACHED:
            self._table.set_phase(row, MOVED)

    def leave(self, row: int, reason: str, now: Now) -> None:
        """Detaches a session that the store or another server has, and remembers its version.

        `reason` is "evicted" for an idle session that moves to the store, "replaced" for one whose
        id another session takes (which may fail), and "moved" for any other.
        """
        if reason == "moved" and self._table.durable_step[row] == NOT_STORED:
            # The store may have its first write, whose answer was lost.
            key, version = self._key_and_version(row)
            self.past.add_claim(key, version, int(self._table.trust[row]), now.monotonic_ns)
        self._remember(row, now, is_evicted=reason == "evicted")
        self.detach(row, reason)

    def _remember(self, row: int, now: Now, *, is_evicted: bool = False) -> None:
        """Notes the version of a session that the store has: an older copy may come back."""
        durable, trust = int(self._table.durable_step[row]), int(self._table.trust[row])
        if durable != NOT_STORED:
            key, version = self._key_and_version(row)
            departure = Departure(version, durable, trust, is_evicted)
            self.past.add_departure(key, departure, now.monotonic_ns)

    def _key_and_version(self, row: int) -> tuple[str, Lifetime]:
        table, key = self._table, self._table.keys[row]
        assert key is not None
        return key, (int(table.incarnation[row]), int(table.epoch[row]), int(table.step[row]))

    def expire(self, row: int, now: Now) -> None:
        """Ends an idle session whose TTL has passed."""
        self._end(row, "expired", now)

    def on_idle(self, row: int, now: Now) -> None:
        """Finishes what waited for the last pending step of a session that is no longer open."""
        if self._table.phase[row] >= DETACHED:
            self._release(row)
        elif row in self._on_quiet:
            self._on_quiet.pop(row)()
        else:
            self._end(row, "closed", now)

    def next_incarnation(self, now: Now) -> int:
        """The wall clock in microseconds, or one above the last if that clock went back."""
        self._incarnation = max(self._incarnation + 1, now.wall_ns // 1000)
        return self._incarnation

    def _end(self, row: int, ending: Ending, now: Now) -> None:
        table = self._table
        model = self.model_of(row)
        tombstone = Tombstone(
            int(table.incarnation[row]), ending, int(table.step[row]), int(table.epoch[row])
        )
        self._announce_closed(row)
        self._remember(row, now)
        key = table.detach(row)
        self.past.add_tombstone(key, tombstone, now.monotonic_ns)
        model.metrics.closed("client" if ending == "closed" else "expired")
        self._release(row)

    def is_expired(self, row: int, now: Now) -> bool:
        """Whether an idle session's TTL has passed and it was not swept yet."""
        table = self._table
        is_idle = table.phase.item(row) == OPEN and not table.pending.item(row)
        return is_idle and table.expiry_ns.item(row) <= now.monotonic_ns

    def _announce_closed(self, row: int) -> None:
        if row in self._on_quiet:
            self._on_quiet.pop(row)()
        for on_closed in self._on_closed.pop(row, ()):
            on_closed(int(self._table.step[row]))

    def _release(self, row: int) -> None:
        model = self.model_of(row)
        assert model.pool is not None
        model.pool.give_one(int(self._table.slot[row]))
        self._table.slot[row] = INITIAL
        self._table.release(row)
        self._registry.budget.ended(model)
