"""Owns who leaves so that others fit: sessions whose time ran out, and idle ones a store has.

Without a store only expiry makes room; with one the pool is a cache: the idle longest moves out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lstmserve.engine.arrays import Index
from lstmserve.engine.clock import Now
from lstmserve.engine.errors import ModelNotSteppable, Quota, SessionLimit
from lstmserve.engine.memory import SECOND_NS
from lstmserve.engine.model import Model
from lstmserve.engine.session.sessions import Sessions
from lstmserve.engine.table import SessionTable

# Of one sweep, so that steps do not wait for it.
EXPIRED_MAX = 512
BLOCKS_MAX = 128
FULL_SWEEP_NS = SECOND_NS // 10
EVICTED_PART = 100  # one in so many leaves at once, so that looking for them costs little


class Room:
    """`on_evict(model, rows)` is called for sessions that are about to move out to the store, which
    has every session whose durable_step is its step; None: there is no store."""

    def __init__(
        self,
        table: SessionTable,
        sessions: Sessions,
        on_evict: Callable[[Model, Index], None] | None,
    ) -> None:
        self._table = table
        self._sessions = sessions
        self._on_evict = on_evict
        self._full_sweep_ns = 0

    def make(self, model: Model, now: Now, replaced: int | None = None) -> None:
        """Room for one more session, which may be in place of the session `replaced`.

        Raises SessionLimit, ModelNotSteppable.
        """
        if model.pool is None:
            raise ModelNotSteppable(
                f"{model.name} is bidirectional: it reads whole sequences, use Predict"
            )
        is_making_room = (
            replaced is not None
            and self._sessions.model_of(replaced) is model
            and not self._table.pending[replaced]
        )
        if is_making_room:
            return  # before anybody is evicted: it could be the replaced one itself
        if model.sessions >= model.sessions_max:
            self._sweep_until(lambda: model.sessions < model.sessions_max, now)
        if model.sessions >= model.sessions_max and self._on_evict is not None:
            self._evict(model, now, self._on_evict)
        if model.sessions >= model.sessions_max:
            raise SessionLimit(
                f"all {model.sessions_max} sessions of {model.name}:{model.version} are in use: "
                "close some, wait for idle ones to expire, or start the server with more "
                "--pool-bytes",
                retry_s=1.0,
            )

    def check_tenant(self, tenant: str, sessions_max: int | None, now: Now) -> None:
        """Whether the tenant may have one more. Raises Quota; to wait helps nothing, to close does.

        Sessions that moved out to a store do not count: they take no room here.
        """
        if sessions_max is None or self._table.count_of(tenant) < sessions_max:
            return
        self._sweep_until(lambda: self._table.count_of(tenant) < sessions_max, now)
        if self._table.count_of(tenant) >= sessions_max:
            raise Quota(f"your limit is {sessions_max} sessions, and so many are open: close some")

    def _sweep_until(self, has_room: Callable[[], bool], now: Now) -> None:
        """Ends what expired until there is room. Not for every one who is refused."""
        if now.monotonic_ns < self._full_sweep_ns:
            return
        while not self._sweep(now, self._table.rows) and not has_room():
            pass
        if not has_room():
            self._full_sweep_ns = now.monotonic_ns + FULL_SWEEP_NS

    def sweep(self, now: Now) -> bool:
        """Ends some of what expired, and returns whether it was all."""
        is_all = self._sweep(now, BLOCKS_MAX)
        self._sessions.endings.sweep(now.monotonic_ns)
        return is_all

    def _sweep(self, now: Now, blocks_max: int) -> bool:
        expired = self._table.expired(now.monotonic_ns, EXPIRED_MAX, blocks_max)
        for row in expired.rows.tolist():
            self._sessions.expire(row, now)
        return expired.is_all

    def _evict(self, model: Model, now: Now, on_evict: Callable[[Model, Index], None]) -> None:
        """The sessions of the model that are idle longest; the store has them."""
        table = self._table
        idle = table.evictable(model.index)
        if not idle.size:
            return
        count = min(idle.size, max(1, model.sessions_max // EVICTED_PART))
        rested_ns = table.expiry_ns[idle] - table.ttl_ns[idle]
        rows = idle[np.argpartition(rested_ns, count - 1)[:count]]
        on_evict(model, rows)
        for row in rows.tolist():
            self._sessions.leave(row, "evicted", now)
