"""Makes room for sessions: ends expired ones, evicts idle ones to the store, and keeps the limits.

Models share --pool-bytes: memory that others do not need any more is taken first. Without a store
only expiry makes more room. With one the pool is a cache: the sessions that were idle longest move
to the store, of whichever model. It decides who leaves; LiveSessions ends them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lstmserve.engine.arrays import Index
from lstmserve.engine.budget import is_shared
from lstmserve.engine.clock import SECOND_NS, Now
from lstmserve.engine.errors import ModelNotSteppable, Quota, SessionLimit
from lstmserve.engine.model import Life, Model
from lstmserve.engine.registry import ModelRegistry
from lstmserve.engine.session.live_sessions import LiveSessions
from lstmserve.engine.table import SessionTable

# Limits of one sweep, because steps wait for it.
EXPIRED_MAX = 512
BLOCKS_MAX = 128
FULL_SWEEP_NS = SECOND_NS // 10
EVICTED_PART = 100  # one session in 100 leaves at once, because looking for them is costly


class SessionCapacity:
    """Makes room for sessions, and limits how many a tenant has.

    `on_evict(model, rows)` gets sessions that are about to move to the store, which has their last
    step; it is None without a store.
    """

    def __init__(
        self,
        table: SessionTable,
        registry: ModelRegistry,
        sessions: LiveSessions,
        on_evict: Callable[[Model, Index], None] | None,
    ) -> None:
        self._table = table
        self._registry = registry
        self._budget = registry.budget
        self._sessions = sessions
        self._on_evict = on_evict
        self._full_sweep_ns = 0

    def make_room(self, model: Model, now: Now, replaced: int | None = None) -> None:
        """Makes room for one more session, which may take the place of the session `replaced`.

        Raises SessionLimit, ModelNotSteppable, and ModelRetired for a model that is gone.
        """
        if model.life is Life.GONE:
            self._registry.check_served(model)
        if model.pool is None:
            raise ModelNotSteppable(_not_steppable(model))
        is_making_room = (
            replaced is not None
            and self._sessions.model_of(replaced) is model
            and not self._table.pending[replaced]
        )
        if is_making_room:
            return
        if self._budget.reclaim(model):
            return
        self._sweep_until(lambda: self._budget.reclaim(model), now)
        if self._budget.room(model) < 1 and self._on_evict is not None:
            self._evict(model, now, self._on_evict, replaced)
        if not self._budget.reclaim(model):
            raise SessionLimit(_full(model, len(self._table)), retry_s=1.0)

    def check_opens(self, model: Model) -> None:
        """Raises ModelRetired for a model that opens no session any more."""
        self._registry.check_opens(model)

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
        """Ends expired sessions until there is room; after a failure it does nothing for a
        while."""
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

    def _evict(
        self,
        model: Model,
        now: Now,
        on_evict: Callable[[Model, Index], None],
        replaced: int | None,
    ) -> None:
        """Moves the sessions that were idle longest to the store, which has them.

        They are of any model where all share the room, and none moves where all that could would
        not make enough. The session `replaced` stays: its successor ends it.
        """
        table = self._table
        rows = self._idle(model)
        rows = rows[rows != (-1 if replaced is None else replaced)]
        sizes = np.zeros(max(each.handle for each in self._registry) + 1, np.int64)
        for each in self._registry:
            sizes[each.handle] = each.slot_bytes
        freed = np.cumsum(sizes[table.model[rows]])
        enough = int(np.searchsorted(freed, max(1, self._budget.shortage(model)))) + 1
        if enough > rows.size:
            return
        rows = rows[: max(enough, min(rows.size, len(table) // EVICTED_PART))]
        for each in self._registry:
            own = rows[table.model[rows] == each.handle]
            if own.size:
                on_evict(each, own)
                for row in own.tolist():
                    self._sessions.leave(row, "evicted", now)

    def _idle(self, model: Model) -> Index:
        """Rows of sessions that may move out to make room for one of the model, those that have
        been idle longest first."""
        table = self._table
        models = [model]
        if self._budget.shortage(model):
            models = [each for each in self._registry if is_shared(each)]
        rows = table.evictable([each.handle for each in models])
        rested_ns = table.expiry_ns[rows] - table.ttl_ns[rows]
        rows = rows[np.argsort(rested_ns, kind="stable")]
        for each in models:
            own = np.flatnonzero(table.model[rows] == each.handle)
            # The room of another model's last session is its own: to move it out would free none.
            if each is not model and own.size and own.size == each.sessions:
                rows = np.delete(rows, own[-1])
        return rows


def _not_steppable(model: Model) -> str:
    if model.spec.states:
        return f"{model.name} is bidirectional: it reads whole sequences, use Predict"
    return (
        f"{model.name} has no states: it reads whole sequences, use Predict; to serve streams, "
        "import it with --window W"
    )


def _full(model: Model, sessions: int) -> str:
    shown = f"{model.name}:{model.version}"
    if model.sessions >= model.sessions_max:
        taken = f"all {model.sessions_max} sessions of {shown} are in use"
    else:
        taken = (
            f"--pool-bytes has no room for one more session of {shown}, which has "
            f"{model.sessions}, beside {sessions - model.sessions} of other models"
        )
    return (
        f"{taken}: close some, wait for idle ones to expire, or start the server with more "
        "--pool-bytes"
    )
