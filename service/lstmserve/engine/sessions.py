"""Owns who a session is: its id, its life from open to end, what is told about one that is gone.

Synchronous; times are arguments. Steps are the scheduler's; this only starts and ends sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lstmserve.config import Config
from lstmserve.engine.clock import Now
from lstmserve.engine.endings import Ending, Endings, Tombstone
from lstmserve.engine.memory import SECOND_NS
from lstmserve.engine.model import Model
from lstmserve.engine.pool import ZERO, Rows
from lstmserve.engine.table import CLOSING, DETACHED, OPEN, SessionTable
from lstmserve.errors import ModelNotSteppable, SessionClosed, SessionLimit, SessionReplaced

SWEEP_ROWS = 1 << 16
FULL_SWEEP_NS = SECOND_NS // 10


@dataclass(frozen=True, slots=True)
class Start:
    """What a session starts from: pool rows [1, width] (None: zeros) and the step they are at."""

    source: str = "new"  # new, import, fork: the label of lstm_sessions_opened_total
    rows: Rows | None = None
    step: int = 0


class Sessions:
    """Writes the table's keys, phases, incarnations and TTLs, and the models' session counts."""

    def __init__(
        self, config: Config, table: SessionTable, models: Sequence[Model], boot_id: str
    ) -> None:
        self._table = table
        self._models = models
        self._endings = Endings(config, boot_id)
        self._incarnation = 0
        self._closers: dict[int, list[Callable[[int], None]]] = {}
        self._sweep_row = 0
        self._full_sweep_ns = 0

    def find(self, key: str, incarnation: int, now: Now) -> int:
        """The row of an open session. Raises SessionNotFound, SessionLost, SessionExpired,
        SessionClosed, SessionReplaced."""
        row = self._table.find(key)
        if row is None:
            raise self._endings.error(key, incarnation, now.monotonic_ns)
        if incarnation and incarnation != self._table.incarnation[row]:
            raise SessionReplaced(
                "this id was opened again; the session you had has ended",
                metadata={"incarnation": str(self._table.incarnation[row])},
            )
        if self._table.phase[row] == CLOSING:
            raise SessionClosed("the session was closed")
        if self._is_expired(row, now):
            self._end(row, "expired", now)
            raise self._endings.error(key, incarnation, now.monotonic_ns)
        return row

    def find_any(self, key: str, now: Now) -> int | None:
        """The row under this key, also one that is closing; None when there is none."""
        row = self._table.find(key)
        if row is not None and self._is_expired(row, now):
            self._end(row, "expired", now)
            return None
        return row

    def model_of(self, row: int) -> Model:
        """The session's model."""
        return self._models[int(self._table.model[row])]

    def check_room(self, model: Model, now: Now, replaced: int | None = None) -> None:
        """Whether open() would find room, also when the idle session `replaced` goes first.

        Raises SessionLimit, ModelNotSteppable.
        """
        if model.pool is None:
            raise ModelNotSteppable(
                f"{model.name} is bidirectional: it reads whole sequences, use Predict"
            )
        if model.sessions >= model.sessions_max and now.monotonic_ns >= self._full_sweep_ns:
            self._full_sweep_ns = now.monotonic_ns + FULL_SWEEP_NS  # not for every one refused
            self.sweep(now, self._table.rows)
        is_making_room = (
            replaced is not None
            and self.model_of(replaced) is model
            and not self._table.pending[replaced]
        )
        if model.sessions - is_making_room >= model.sessions_max:
            raise SessionLimit(
                f"all {model.sessions_max} sessions of {model.name}:{model.version} are in use: "
                "close some, wait for idle ones to expire, or start the server with more "
                "--pool-bytes",
                retry_s=1.0,
            )

    def open(self, key: str, model: Model, start: Start, ttl_ns: int, now: Now) -> int:
        """A new session under a key that has none. Raises SessionLimit, ModelNotSteppable."""
        self.check_room(model, now)
        assert model.pool is not None
        table = self._table
        row = table.add(key)
        model.sessions += 1
        self._incarnation = max(self._incarnation + 1, now.wall_ns // 1000)
        table.model[row] = model.index
        table.incarnation[row] = self._incarnation
        table.step[row] = start.step
        table.ttl_ns[row] = ttl_ns
        table.expiry_ns[row] = now.monotonic_ns + ttl_ns
        table.open_time_ns[row] = now.wall_ns
        if start.rows is not None:
            table.slot[row] = model.pool.take_one()
            model.pool.write(table.slot[row : row + 1].copy(), start.rows)
        self._endings.forget(key)
        model.metrics.opened(start.source)
        return row

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
            on_closed(self._endings.closed_step(key, incarnation, now.monotonic_ns))
            return
        if self._table.phase[row] == OPEN:
            self.find(key, incarnation, now)
            self._table.phase[row] = CLOSING
        self._closers.setdefault(row, []).append(on_closed)
        if not self._table.pending[row]:
            self.on_idle(row, now)

    def replace(self, row: int, now: Now) -> None:
        """Frees the id for a new session; pending steps of the old one end as SessionReplaced."""
        self._announce_closed(row)
        self._table.detach(row)
        self.model_of(row).metrics.closed("replaced")
        if not self._table.pending[row]:
            self.on_idle(row, now)

    def on_idle(self, row: int, now: Now) -> None:
        """A session that is no longer open has no step left."""
        if self._table.phase[row] == DETACHED:
            self._release(row)
        else:
            self._end(row, "closed", now)

    def sweep(self, now: Now, rows: int = SWEEP_ROWS) -> int:
        """Ends what expired among the next `rows` rows, and returns how many did."""
        start = self._sweep_row if rows < self._table.rows else 0
        stop = min(start + rows, self._table.rows)
        self._sweep_row = stop if stop < self._table.rows else 0
        expired = self._table.idle_before(now.monotonic_ns, start, stop)
        for row in expired:
            self._end(int(row), "expired", now)
        self._endings.sweep(now.monotonic_ns)
        return expired.size

    def _end(self, row: int, ending: Ending, now: Now) -> None:
        table = self._table
        model = self.model_of(row)
        tombstone = Tombstone(int(table.incarnation[row]), ending, int(table.step[row]))
        self._announce_closed(row)
        key = table.detach(row)
        self._endings.put(key, tombstone, now.monotonic_ns)
        model.metrics.closed("client" if ending == "closed" else "expired")
        self._release(row)

    def _is_expired(self, row: int, now: Now) -> bool:
        table = self._table
        is_idle = table.phase[row] == OPEN and not table.pending[row]
        return bool(is_idle and table.expiry_ns[row] <= now.monotonic_ns)

    def _announce_closed(self, row: int) -> None:
        for on_closed in self._closers.pop(row, ()):
            on_closed(int(self._table.step[row]))

    def _release(self, row: int) -> None:
        model = self.model_of(row)
        assert model.pool is not None
        model.pool.give_one(int(self._table.slot[row]))
        self._table.slot[row] = ZERO
        self._table.release(row)
        model.sessions -= 1
