"""Owns what all requests of one port have in common: the engine, the counts, who waits for whom."""

from __future__ import annotations

import asyncio

from lstmserve.engine import Engine, Model
from lstmserve.server.kserve.lines import Lines
from lstmserve.server.message_sizes import MessageSizes
from lstmserve.server.observe.counters import ModelMetrics
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.steps import Steps


class Dialect:
    """One for all calls of a port."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.engine = engine
        self.sizes = MessageSizes(engine.models, engine.config, has_states=True)
        self.steps = Steps(engine, metrics)
        self.lines = Lines(engine.config.session_pending_max)
        self._metrics = metrics
        self._unrested: list[tuple[str, asyncio.Future[None]]] = []
        engine.batch_loop.add_source(self._look)

    def counters(self, model: Model | None) -> ModelMetrics:
        """Of a model version; None: the request was for none that is served."""
        return self._metrics.model(*(("", 0) if model is None else (model.name, model.version)))

    async def rested(self, key: str) -> None:
        """Until the steps that this session was given have run."""
        while self._is_busy(key):
            rested: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._unrested.append((key, rested))
            await rested

    def _is_busy(self, key: str) -> bool:
        row = self.engine.table.find(key)
        return row is not None and self.engine.table.pending.item(row) > 0

    def _look(self) -> None:
        """Called by the batch loop before every batch."""
        if not self._unrested:
            return
        unrested, self._unrested = self._unrested, []
        for key, rested in unrested:
            if self._is_busy(key):
                self._unrested.append((key, rested))
            elif not rested.done():
                rested.set_result(None)
