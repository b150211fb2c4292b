"""Owns what is seen of the store: times, errors and damaged records. Changes nothing of it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from typing import TypeVar

import structlog

from lstmserve.engine.errors import ServeError
from lstmserve.server.observe.metrics import Metrics
from lstmserve.store import Store, Write, Written

FULL_TOLD_S = 60.0  # between two lines of the log that say so

Result = TypeVar("Result")
log = structlog.get_logger()


class MeasuredStore:
    """The store, counted: lstm_store_seconds and lstm_store_errors_total."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        metrics.has_store()
        self._full_told_s = -FULL_TOLD_S

    async def load(self, keys: Sequence[str]) -> list[bytes | None]:
        """As Store.load()."""
        return await self._measure("load", self._store.load(keys))

    async def put(self, writes: Sequence[Write]) -> list[Written]:
        """As Store.put()."""
        written = await self._measure("put", self._store.put(writes))
        for each in written:
            if each is not Written.OK:
                self._metrics.store_failed("put", each.name)
        if Written.FULL in written:
            self._tell_full(time.monotonic())
        return written

    async def quarantine(self, key: str, content: bytes) -> None:
        """As Store.quarantine(); an operator is to look at it."""
        log.error("damaged record put aside", bytes=len(content))
        await self._measure("quarantine", self._store.quarantine(key, content))

    async def close(self) -> None:
        """As Store.close()."""
        await self._store.close()

    def _tell_full(self, now_s: float) -> None:
        """An operator is to make room; every step refused until then is in the metrics."""
        if now_s - self._full_told_s >= FULL_TOLD_S:
            self._full_told_s = now_s
            log.error("store full: writes are refused until there is room")

    async def _measure(self, op: str, call: Awaitable[Result]) -> Result:
        start_ns = time.monotonic_ns()
        try:
            return await call
        except ServeError as error:
            self._metrics.store_failed(op, error.reason)
            log.warning("store failed", op=op, reason=error.reason)
            raise
        except Exception as error:
            self._metrics.store_failed(op, ServeError.reason)
            log.error("store failed by a bug", op=op, exc_info=error)
            raise
        finally:
            self._metrics.store_took(op, time.monotonic_ns() - start_ns)
