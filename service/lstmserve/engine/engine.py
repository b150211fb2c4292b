"""The engine's front: what servicers call. Owns nothing but its parts; see driver.py for the loop.

Everything here runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from lstmserve.config import Config
from lstmserve.engine import catalogue
from lstmserve.engine.arrays import Index
from lstmserve.engine.clock import Clock, monotonic_of, read_clocks
from lstmserve.engine.driver import Driver
from lstmserve.engine.errors import Draining
from lstmserve.engine.model import Model, ModelMetrics
from lstmserve.engine.persist import CommitStage, Ownership, Records, make_stage
from lstmserve.engine.predicting import Predicting
from lstmserve.engine.schedule.block import Block
from lstmserve.engine.schedule.step import Step
from lstmserve.engine.session.lifecycle import SessionLifecycle, StoredLifecycle
from lstmserve.engine.session.opening import Opening
from lstmserve.engine.session.room import Room
from lstmserve.engine.session.sessions import Sessions
from lstmserve.engine.table import CLOSING, FREE, OPEN, SessionTable
from lstmserve.store import Store

SWEEP_S = 1.0
SWEEP_ON_S = 0.02  # while more has expired than one sweep ends


class Metrics(Protocol):
    """Where the engine counts; server/metrics.py has the real one."""

    def model(self, name: str, version: int) -> ModelMetrics:
        """The counters of one version."""


class Engine:
    """The sessions of all models and the task that steps them. `clock` is the only one."""

    def __init__(
        self,
        config: Config,
        models: Sequence[Model],
        metrics: Metrics,
        *,
        store: Store | None = None,
        stage: CommitStage | None = None,
        clock: Clock = read_clocks,
    ) -> None:
        self.config = config
        self.models = list(models)
        self.clock = clock
        self.monotonic_ns = monotonic_of(clock)
        self.boot_id = secrets.token_hex(8)
        self.table = SessionTable(max(1, sum(model.sessions_max for model in models)))
        self.sessions = Sessions(config, self.table, self.models, self.boot_id)
        self._stage = stage or CommitStage()
        records = Records(
            self.table,
            self.models,
            config.store_format,
            is_behind=config.store_mode == "behind",
        )
        if store is not None:
            self._stage = make_stage(config, self.table, records, store, self._on_moved)
        on_evict = None if store is None else self._stage.let_go
        self.room = Room(self.table, self.sessions, on_evict)
        opening = Opening(config, self.table, self.sessions, self.room)
        self.driver = Driver(config, self.models, self._stage, clock)
        self.lifecycle = SessionLifecycle(self.table, self.sessions, opening, clock)
        if store is not None:
            ownership = Ownership(
                self.table, self.sessions, self.room, records, store, clock, self._stage.flush
            )
            self.lifecycle = StoredLifecycle(
                self.table, self.sessions, opening, clock, ownership, self.driver.notice
            )
        self.predicting = Predicting(config, self.driver)
        self.is_draining = False
        self._is_closed = False
        self._checks: list[Callable[[], None]] = []
        for index, model in enumerate(self.models):
            counters = metrics.model(model.name, model.version)
            model.attach(index, config, self.table, counters, self._on_idle, self._on_moved)

    def model(self, name: str, version: int) -> Model:
        """The version, 0 for the newest. Raises ModelNotFound, ModelRetired, ModelNotHereYet."""
        return catalogue.find(self.models, name, version)

    def model_of(self, row: int) -> Model:
        """The model of a session's row."""
        return self.models[int(self.table.model[row])]

    def admit(self, rows: int | Index) -> None:
        """Raises StoreUnavailable when one of these sessions may not step now, for the store."""
        self._stage.admit(rows)

    def submit(self, model: Model, step: Step) -> None:
        """Accepts a step; its sink is told the end. Raises Overloaded, Draining."""
        if self._is_closed:
            self.check_open()
        assert model.scheduler is not None
        self.admit(step.row)
        model.scheduler.submit(step)
        self.driver.notice()

    def submit_block(self, model: Model, block: Block) -> None:
        """Accepts a block whole or not at all; its sink is told the end. Raises as submit()."""
        self.check_open()
        assert model.scheduler is not None
        self.admit(block.rows)
        model.scheduler.submit_block(block)
        self.driver.notice()

    def durable_step(self, row: int) -> int:
        """The session's last step that survives a crash; 0 without a store."""
        return max(0, int(self.table.durable_step[row])) if self.lifecycle.has_store else 0

    def holds(self, key: str) -> bool:
        """Whether this server has the session: then it ends here, whatever a store's clock says."""
        return self.table.find(key) is not None

    def durable_lag_s(self) -> float:
        """Age of the oldest step that a store does not have yet; 0 without one."""
        return self._stage.lag_s()

    def check_open(self) -> None:
        """Raises Draining once close() was called."""
        if self._is_closed:
            raise Draining("this server is shutting down; go on at another one", retry_s=1.0)

    async def run(self) -> None:
        """Drives until close(). Raises what it died of; every step has been failed then."""
        self._sweep()
        writing = asyncio.create_task(self._stage.run(), name="store")
        self.driver.rounds.watch(writing)
        try:
            await self.driver.run()
        finally:
            self._is_closed = True
            self.driver.take_in()
            writing.cancel()

    def drain(self) -> None:
        """From now on no session is opened; those that are open go on."""
        self.is_draining = True

    async def close(self, timeout_s: float) -> None:
        """Takes no more steps, finishes those it has within `timeout_s`, fails the rest."""
        self.drain()
        self._is_closed = True
        flushed = self.lifecycle.leave()
        if self.config.store_mode == "through":
            flushed.set()
        try:
            await self.driver.stop(timeout_s, Draining("this server shut down", retry_s=1.0))
            await self._stage.drain(timeout_s)
            await self.lifecycle.finish(timeout_s)
        finally:
            flushed.set()

    def end_sessions(self) -> int:
        """Ends all that are here, when nobody calls any more. Returns how many are lost: with a
        store those of which it has not the last steps, without one all."""
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
        """`check()` asserts what somebody else owns, whenever the engine checks itself."""
        self._checks.append(check)

    def check_integrity(self) -> None:
        """Every slot and row has one owner. For tests, and idle moments with --debug."""
        for check in self._checks:
            check()
        self.table.check_integrity()
        used = slice(self.table.used)
        is_used, index = self.table.phase[used] != FREE, self.table.model[used]
        for model in self.models:
            rows = np.flatnonzero(is_used & (index == model.index))
            assert rows.size == model.sessions
            if model.scheduler is not None:
                model.scheduler.check_integrity(rows)

    def _on_moved(self, row: int) -> None:
        self.sessions.leave(row, "moved", self.clock())

    def _sweep(self) -> None:
        if self._is_closed:
            return
        is_all = self.room.sweep(self.clock())
        if self.config.debug and not self.driver.pending_steps:
            self.check_integrity()
        asyncio.get_running_loop().call_later(SWEEP_S if is_all else SWEEP_ON_S, self._sweep)

    def _on_idle(self, row: int) -> None:
        self.sessions.on_idle(row, self.clock())
