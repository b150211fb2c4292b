"""Makes room for sessions: ends expired ones, evicts idle ones to the store, and keeps the limits.

Without a store only expiry makes room. With one the pool is a cache: the sessions that were idle
longest move to the store. It decides who leaves; LiveSessions ends them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lstmserve.engine.arrays import Index
from lstmserve.engine.clock import SECOND_NS, Now
from lstmserve.engine.errors import ModelNotSteppable, Quota, SessionLimit
from lstmserve.engine.model import Model
from lstmserve.engine.session.live_sessions import LiveSessions
from lstmserve.engine.table import SessionTable

# Limits of one sweep, because steps wait for it.
EXPIRED_MAX = 512
BLOCKS_MAX = 128
FULL_SWEEP_NS = SECOND_NS // 10
EVICTED_PART = 100  # one session in 100 leaves at once, because looking for them is costly


class SessionCapacity:
    """`on_evict(model, rows)` gets sessions that are about to move to the store, which has their
    last step; None without a store.
    """

    def __init__(
        self,
        table: SessionTable,
        sessions: LiveSessions,
        on_evict: Callable[[Model, Index], None] | None,
    ) -> None:
        self._table = table
        self._sessions = sessions
        self._on_evict = on_evict
        self._full_sweep_ns = 0

    def make_room(self, model: Model, now: Now, replaced: int | None = None) -> None:
        """Makes room for one more session, which may take the place of the session `replaced`.

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
            return  # before an eviction, which could take the replaced session itself
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
        """Raises Quota, without a retry delay, if the tenant has as many sessions as it may.

        Sessions that moved to the store do not count: they take no room here.
        """
        if sessions_max is None or self._table.count_of(tenant) < sessions_max:
            return
        self._sweep_until(lambda: self._table.count_of(tenant) < sessions_max, now)
        if self._table.count_of(tenant) >= sessions_max:
            raise Quota(f"your limit is {sessions_max} sessions, and so many are open: close some")

    def _sweep_until(self, has_room: Callable[[], bool], now: Now) -> None:
        """Ends expired sessions until there is room; after a vain try, not again for a while."""
        if now.monotonic_ns < self._full_sweep_ns:
            return
        while not self._sweep(now, self._table.rows) and not has_room():
            pass
        if not has_room():
            self._full_sweep_ns = now.monotonic_ns + FULL_SWEEP_NS

    def sweep(self, now: Now) -> bool:
        """Ends some expired sessions. Returns whether none is left."""
        is_all = self._sweep(now, BLOCKS_MAX)
        self._sessions.past.sweep(now.monotonic_ns)
        return is_all

    def _sweep(self, now: Now, blocks_max: int) -> bool:
        expired = self._table.expired(now.monotonic_ns, EXPIRED_MAX, blocks_max)
        for row in expired.rows.tolist():
            self._sessions.expire(row, now)
        return expired.is_all

    def _evict(self, model: Model, now: Now, on_evict: Callable[[Model, Index], None]) -> None:
        """Moves the model's sessions that were idle longest to the store, which has them."""
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
