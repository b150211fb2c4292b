"""Owns who a session is: its id, its life from open to end, what is told about one that is gone.

Synchronous; times are arguments. Steps are the scheduler's; this only starts and ends sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lstmserve.config import Config
from lstmserve.engine.clock import Now
from lstmserve.engine.compute.pool import ZERO, Rows
from lstmserve.engine.errors import SessionClosed, SessionReplaced
from lstmserve.engine.model import Model
from lstmserve.engine.session.endings import Ending, Endings, Held, Lifetime, Tombstone
from lstmserve.engine.session.start import Start
from lstmserve.engine.table import CLOSING, DETACHED, MOVED, NOT_STORED, OPEN, SessionTable


class Sessions:
    """Writes the table's keys, phases, incarnations and TTLs, and the models' session counts."""

    def __init__(
        self, config: Config, table: SessionTable, models: Sequence[Model], boot_id: str
    ) -> None:
        self._table = table
        self._models = models
        self.endings = Endings(config, boot_id)
        self._incarnation = 0
        self._closers: dict[int, list[Callable[[int], None]]] = {}
        self._quiet: dict[int, Callable[[], None]] = {}

    def find(self, key: str, incarnation: int, now: Now) -> int:
        """The row of an open session. Raises SessionNotFound, SessionLost, SessionExpired,
        SessionClosed, SessionReplaced."""
        row = self._table.find(key)
        if row is None:
            raise self.endings.error(key, incarnation, now.monotonic_ns)
        table = self._table
        if incarnation and incarnation != table.incarnation.item(row):
            self._check_incarnation(row, incarnation)
        if table.phase.item(row) == CLOSING:
            raise SessionClosed("the session was closed: open it again")
        if table.expiry_ns.item(row) <= now.monotonic_ns and self.is_expired(row, now):
            self._end(row, "expired", now)
            raise self.endings.error(key, incarnation, now.monotonic_ns)
        return row

    def _check_incarnation(self, row: int, incarnation: int) -> None:
        actual = self._table.incarnation.item(row)
        if incarnation not in (0, actual):
            raise SessionReplaced(
                "this id was opened again; the session you had has ended",
                metadata={"incarnation": str(actual)},
            )

    def find_any(self, key: str, now: Now) -> int | None:
        """The row under this key, also one that is closing; None when there is none."""
        row = self._table.find(key)
        if row is not None and self.is_expired(row, now):
            self._end(row, "expired", now)
            return None
        return row

    def model_of(self, row: int) -> Model:
        """The session's model."""
        return self._models[int(self._table.model[row])]

    def open(self, key: str, model: Model, start: Start, ttl_ns: int, now: Now) -> int:
        """A session under a key that has none, of a model that has room (see Room)."""
        assert model.pool is not None
        table = self._table
        row = table.add(key)
        model.sessions += 1
        table.model[row] = model.index
        table.incarnation[row] = start.incarnation or self.stamp(now)
        table.epoch[row] = start.epoch
        table.step[row] = start.step
        table.durable_step[row] = start.step if start.source == "load" else NOT_STORED
        table.digest[row] = start.digest
        if start.reply is not None:
            table.replies.restore(row, start.reply)
        if start.request_id:
            table.request_ids[row] = start.request_id
        table.begin_time(row, now.monotonic_ns, ttl_ns)
        table.open_time_ns[row] = start.open_time_ns or now.wall_ns
        if start.rows is not None:
            table.slot[row] = model.pool.take_one()
            model.pool.write(table.slot[row : row + 1].copy(), start.rows)
        self.endings.forget(key)
        if start.source == "load":
            self.endings.settle(key)
        model.metrics.opened(start.source)
        return row

    def renewal(self, row: int) -> Start:
        """What a new life of the session goes on from: all that it is."""
        table, model = self._table, self.model_of(row)
        return Start(
            "resume",
            self.state(row) if table.slot[row] else None,
            int(table.step[row]),
            open_time_ns=int(table.open_time_ns[row]),
            digest=int(table.digest[row]),
            reply=table.replies.get(row, model.output_size),
            request_id=table.request_ids.get(row, ""),
        )

    def state(self, row: int) -> Rows:
        """The rows [1, width] after the last applied step; it never waits."""
        pool = self.model_of(row).pool
        assert pool is not None
        return pool.read(self._table.slot[row : row + 1].copy())

    def close(self, key: str, incarnation: int, now: Now, on_closed: Callable[[int], None]) -> None:
        """Ends a session after its pending steps; on_closed(step) is called then, or at once.

        Twice is fine. Raises what find() raises for a session that was never closed.
        """
        row = self._table.find(key)
        if row is None:
            on_closed(self.endings.closed_step(key, incarnation, now.monotonic_ns))
            return
        self._check_incarnation(row, incarnation)
        if self._table.phase[row] == OPEN:
            self.find(key, incarnation, now)
            self._table.set_phase(row, CLOSING)
        self._closers.setdefault(row, []).append(on_closed)
        if not self._table.pending[row]:
            self.on_idle(row, now)

    def quieten(self, key: str, incarnation: int, now: Now, on_quiet: Callable[[], None]) -> None:
        """It takes no more steps; on_quiet() is called when none is pending. Raises as find()."""
        row = self.find(key, incarnation, now)
        self._table.set_phase(row, CLOSING)
        self._quiet[row] = on_quiet
        if not self._table.pending[row]:
            self.on_idle(row, now)

    def reopen(self, key: str) -> None:
        """What was to end goes on, if it is still here."""
        if (row := self._table.find(key)) is not None:
            self._table.set_phase(row, OPEN)

    def detach(self, row: int, reason: str) -> None:
        """Frees the id without a word.

        Pending steps end as the settlement says, and only then the row is spare.
        """
        if reason == "replaced":  # by a life that must be known for a later one
            self._incarnation = max(self._incarnation, self._table.incarnation.item(row))
        self._announce_closed(row)
        self._table.detach(row, DETACHED if reason == "replaced" else MOVED)
        self.model_of(row).metrics.closed(reason)
        if not self._table.pending[row]:
            self._release(row)

    def doubt(self, row: int) -> None:
        """Who was replaced in this row, and has steps left, may live on."""
        if self._table.phase[row] == DETACHED:
            self._table.set_phase(row, MOVED)

    def leave(self, row: int, reason: str, now: Now) -> None:
        """Detaches a session that a store has, or another server, and remembers what it was.

        `reason`: "evicted" for an idle one that moves out, "replaced" for one whose id is to be
        another session's, which may come to nothing, "moved" for any other.
        """
        if reason == "moved" and self._table.durable_step[row] == NOT_STORED:
            key, version = self._named(row)  # its first write may be there, without an answer
            self.endings.claim(key, version, int(self._table.trust[row]), now.monotonic_ns)
        self._remember(row, now, is_evicted=reason == "evicted")
        self.detach(row, reason)

    def _remember(self, row: int, now: Now, *, is_evicted: bool = False) -> None:
        """What a session was that a store has: it may come back, and so may an older copy."""
        durable, trust = int(self._table.durable_step[row]), int(self._table.trust[row])
        if durable != NOT_STORED:
            key, version = self._named(row)
            self.endings.hold(key, Held(version, durable, trust, is_evicted), now.monotonic_ns)

    def _named(self, row: int) -> tuple[str, Lifetime]:
        table, key = self._table, self._table.keys[row]
        assert key is not None
        return key, (int(table.incarnation[row]), int(table.epoch[row]), int(table.step[row]))

    def expire(self, row: int, now: Now) -> None:
        """Ends an idle session whose time ran out."""
        self._end(row, "expired", now)

    def on_idle(self, row: int, now: Now) -> None:
        """A session that is no longer open has no step left."""
        if self._table.phase[row] >= DETACHED:
            self._release(row)
        elif row in self._quiet:
            self._quiet.pop(row)()
        else:
            self._end(row, "closed", now)

    def stamp(self, now: Now) -> int:
        """Microseconds of the wall clock; higher than the last, also when that clock went back."""
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
        self.endings.put(key, tombstone, now.monotonic_ns)
        model.metrics.closed("client" if ending == "closed" else "expired")
        self._release(row)

    def is_expired(self, row: int, now: Now) -> bool:
        """Whether its time ran out, though it is still here."""
        table = self._table
        is_idle = table.phase.item(row) == OPEN and not table.pending.item(row)
        return is_idle and table.expiry_ns.item(row) <= now.monotonic_ns

    def _announce_closed(self, row: int) -> None:
        if row in self._quiet:
            self._quiet.pop(row)()
        for on_closed in self._closers.pop(row, ()):
            on_closed(int(self._table.step[row]))

    def _release(self, row: int) -> None:
        model = self.model_of(row)
        assert model.pool is not None
        model.pool.give_one(int(self._table.slot[row]))
        self._table.slot[row] = ZERO
        self._table.release(row)
        model.sessions -= 1
