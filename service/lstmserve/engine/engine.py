"""The engine's front, which the dialects call.

It makes the engine's parts, and batch_loop.py runs them. Everything here runs on the event loop's
thread.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from lstmserve.config import Config
from lstmserve.engine.arrays import Index
from lstmserve.engine.batch_loop import BatchLoop
from lstmserve.engine.clock import Clock, monotonic_of, read_clocks
from lstmserve.engine.errors import Draining
from lstmserve.engine.model import Model, ModelCounters
from lstmserve.engine.persist import CommitStage, Ownership, Records, make_stage
from lstmserve.engine.predict import Predictor
from lstmserve.engine.registry import ModelRegistry
from lstmserve.engine.scheduling.work import Request
from lstmserve.engine.session.capacity import SessionCapacity
from lstmserve.engine.session.lifecycle import SessionLifecycle, StoredLifecycle
from lstmserve.engine.session.live_sessions import LiveSessions
from lstmserve.engine.session.opening import SessionOpener
from lstmserve.engine.table import CLOSING, FREE, OPEN, SessionTable
from lstmserve.store import Store

SWEEP_S = 1.0
SWEEP_ON_S = 0.02  # while more has expired than one sweep ends


class EngineMetrics(Protocol):
    """Where the engine counts; server/observe/metrics.py implements it."""

    def model(self, name: str, version: int) -> ModelCounters:
        """The counters of one version."""


class Engine:
    """The sessions of all models and the task that steps them. `clock` is the only clock it
    reads."""

    def __init__(
        self,
        config: Config,
        models: Sequence[Model],
        metrics: EngineMetrics,
        *,
        store: Store | None = None,
        stage: CommitStage | None = None,
        clock: Clock = read_clocks,
    ) -> None:
        self.config = config
        self.clock = clock
        self.monotonic_ns = monotonic_of(clock)
        self.boot_id = secrets.token_hex(8)
        self.table = SessionTable(1)  # the registry extends it
        self.registry = ModelRegistry(
            config, self.table, metrics.model, self._on_idle, self._on_moved
        )
        for model in models:
            self.registry.add(model)
        self.sessions = LiveSessions(config, self.table, self.registry, self.boot_id)
        self._stage = stage or CommitStage()
        records = Records(
            self.table,
            self.registry,
            config.store_format,
            is_behind=config.store_mode == "behind",
        )
        if store is not None:
            self._stage = make_stage(config, self.table, records, store, self._on_moved)
        on_evict = None if store is None else self._stage.let_go
        self.capacity = SessionCapacity(self.table, self.registry, self.sessions, on_evict)
        opener = SessionOpener(config, self.table, self.sessions, self.capacity)
        self.batch_loop = BatchLoop(config, self.registry, self._stage, clock)
        self.lifecycle = SessionLifecycle(self.table, self.sessions, opener, clock)
        if store is not None:
            ownership = Ownership(
                self.table, self.sessions, self.capacity, records, store, clock, self._stage.flush
            )
            self.lifecycle = StoredLifecycle(
                self.table, self.sessions, opener, clock, ownership, self.batch_loop.notice
            )
        self.predictor = Predictor(config, self.registry, self.batch_loop)
        self.is_draining = False
        self._is_closed = False
        self._checks: list[Callable[[], None]] = []

    @property
    def models(self) -> tuple[Model, ...]:
        """The models that are served now, sorted by name and version."""
        return self.registry.models

    def model(self, name: str, version: int) -> Model:
        """The version, 0 for the newest. Raises ModelNotFound, ModelRetired, ModelNotHereYet."""
        return self.registry.find(name, version)

    def model_of(self, row: int) -> Model:
        """The model of a session's row."""
        return self.registry.of(self.table.model.item(row))

    def admit(self, rows: int | Index) -> None:
        """Raises StoreUnavailable when one of these sessions may not step now, for the store."""
        self._stage.admit(rows)

    def accept(self, model: Model, request: Request) -> None:
        """Accepts the steps of a request, or answers them: its responder hears of each.

        Raises Draining, StoreUnavailable where a session may not step now, and Overloaded for a
        request that is refused as a whole; then no responder hears of anything.
        """
        if self._is_closed:
            self.check_open()
        assert model.scheduler is not None
        rows = request.rows
        self.admit(int(rows[0]) if len(rows) == 1 else np.asarray(rows))
        model.scheduler.accept(request)
        self.batch_loop.notice()

    def durable_step(self, row: int) -> int:
        """The session's last step that survives a crash; 0 without a store."""
        return max(0, int(self.table.durable_step[row])) if self.lifecycle.has_store else 0

    def holds(self, key: str) -> bool:
        """Whether this server has the session, so that it ends here whatever a store's clock
        says."""
        return self.table.find(key) is not None

    def durable_lag_s(self) -> float:
        """Age of the oldest step that a store does not have yet; 0 without one."""
        return self._stage.lag_s()

    def check_open(self) -> None:
        """Raises Draining once close() was called."""
        if self._is_closed:
            raise Draining("this server is shutting down; go on at another one", retry_s=1.0)

    async def run(self) -> None:
        """Runs batches until close(). Raises the error that ended it, once every step has failed
        with it."""
        self._sweep()
        writing = asyncio.create_task(self._stage.run(), name="store")
        self.batch_loop.watch(writing)
        try:
            await self.batch_loop.run()
        finally:
            self._is_closed = True
            self.batch_loop.take_in()
            writing.cancel()

    def drain(self) -> None:
        """Opens no session from now on; open ones go on."""
        self.is_draining = True

    async def close(self, timeout_s: float) -> None:
        """Takes no more steps, finishes those it has within `timeout_s`, fails the rest."""
        self.drain()
        self._is_closed = True
        flushed = self.lifecycle.leave()
        if self.config.store_mode == "through":
            flushed.set()
        try:
            await self.batch_loop.stop(timeout_s, Draining("this server shut down", retry_s=1.0))
            await self._stage.drain(timeout_s)
            await self.lifecycle.finish(timeout_s)
        finally:
            flushed.set()

    def end_sessions(self) -> int:
        """Ends all sessions that are here, after the last call. Returns how many are lost.

        With a store those are lost whose last steps it does not have; without a store all are.
        """
        table = self.table
        used = slice(table.used)
        phase = table.phase[used]
        is_live = is_lost = (phase == OPEN) | (phase == CLOSING)
        if self.lifecycle.has_store:
            is_lost = is_live & (table.step[used] > table.durable_step[used])
        for row in np.flatnonzero(is_live).tolist():
            self.sessions.detach(row, "drained")
        return int(np.count_nonzero(is_lost))

    def add_check(self, check: Callable[[], None]) -> None:
        """Adds a function of another owner that the engine calls whenever it checks itself."""
        self._checks.append(check)

    def check_integrity(self) -> None:
        """Every slot and row has one owner. For tests, and idle moments with --debug."""
        for check in self._checks:
            check()
        self.table.check_integrity()
        self.registry.check_integrity()
        used = slice(self.table.used)
        is_used, handle = self.table.phase[used] != FREE, self.table.model[used]
        assert int(is_used.sum()) == sum(model.sessions for model in self.registry)
        for model in self.registry:
            rows = np.flatnonzero(is_used & (handle == model.handle))
            assert rows.size == model.sessions
            if model.scheduler is not None:
                model.scheduler.check_integrity(rows)

    def _on_moved(self, row: int) -> None:
        self.sessions.leave(row, "moved", self.clock())

    def _sweep(self) -> None:
        if self._is_closed:
            return
        is_all = self.capacity.sweep(self.clock())
        is_all &= self.registry.sweep()
        if self.config.debug and not self.batch_loop.pending_steps:
            self.check_integrity()
        asyncio.get_running_loop().call_later(SWEEP_S if is_all else SWEEP_ON_S, self._sweep)

    def _on_idle(self, row: int) -> None:
        self.sessions.on_idle(row, self.clock())
