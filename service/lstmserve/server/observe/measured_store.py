"""Counts and logs what the store does: times, errors, outages, damaged records.

It must not change what the store answers.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import structlog

from lstmserve.engine.errors import ServeError, StoreTimeout, StoreUnavailable
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.observe.outage import Outage
from lstmserve.store import StoreOfServer, StoreRefused, Write, Written

FULL_LOG_S = 60.0  # at least, between two lines of the log that say "store full"
REFUSED: Final = "the store cannot be used: "

Result = TypeVar("Result")
log = structlog.get_logger()


class MeasuredStore:
    """A store whose calls are counted (lstm_store_seconds, lstm_store_errors_total) and logged.

    `is_over` says that it will not serve this process again.
    """

    def __init__(self, store: StoreOfServer, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        metrics.has_store()
        self._full_logged_s = -FULL_LOG_S
        self._outage = Outage()
        self._advice = ""
        self.is_over = False

    @property
    def cause(self) -> str:
        """Why the store does not serve now; "" when nothing is known to be wrong."""
        return self._outage.cause

    def spare(self, is_held: Callable[[str], bool]) -> None:
        self._store.spare(is_held)

    async def check(self) -> str:
        """Checks the store, and logs a warning when sessions are at risk.

        Raises what StoreOfServer.check() raises; the caller logs StoreRefused.
        """
        start_s = time.monotonic()
        try:
            advice = await self._store.check()
        except (StoreUnavailable, StoreTimeout) as error:
            self._failed("check", error, calls=0)
            raise
        self._outage.passed(time.monotonic(), start_s)
        if advice and advice != self._advice:
            log.warning("the store puts sessions at risk", why=advice)
        self._advice = advice
        return advice

    async def look(self) -> bool:
        """Whether the store serves now. It raises nothing, and logs a change."""
        try:
            await self.check()
        except StoreRefused as error:
            cause = str(error).removeprefix(REFUSED)
            self._outage.failed("check", cause, time.monotonic(), calls=0)
        except (StoreUnavailable, StoreTimeout):
            pass
        except Exception as error:
            self._bug("check", error)
        else:
            return True
        return False

    async def load(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self._measure("load", self._store.load(keys))

    async def put(self, writes: Sequence[Write]) -> list[Written]:
        written = await self._measure("put", self._store.put(writes))
        for each in written:
            if each is not Written.OK:
                self._metrics.store_failed("put", each.name)
        if Written.FULL in written:
            self._log_full(time.monotonic())
        return written

    async def quarantine(self, key: str, content: bytes) -> None:
        """Quarantines a record, and asks the operator by a line of the log to look at it."""
        log.error("damaged record put aside", bytes=len(content))
        await self._measure("quarantine", self._store.quarantine(key, content))

    async def close(self) -> None:
        await self._store.close()

    def _log_full(self, now_s: float) -> None:
        """Asks the operator to make room; the metrics count every step refused until then."""
        if now_s - self._full_logged_s >= FULL_LOG_S:
            self._full_logged_s = now_s
            log.error("store full: writes are refused until there is room")

    async def _measure(self, op: str, call: Awaitable[Result]) -> Result:
        start_s, start_ns = time.monotonic(), time.monotonic_ns()
        try:
            result = await call
        except ServeError as error:
            self._metrics.store_failed(op, error.reason)
            if isinstance(error, StoreUnavailable | StoreTimeout):
                self._failed(op, error)
            raise
        except Exception as error:
            self._metrics.store_failed(op, ServeError.reason)
            self._bug(op, error)
            raise
        finally:
            self._metrics.store_took(op, time.monotonic_ns() - start_ns)
        self._outage.passed(time.monotonic(), start_s, op)
        return result

    def _failed(self, op: str, error: StoreUnavailable | StoreTimeout, *, calls: int = 1) -> None:
        self.is_over = self.is_over or error.is_final
        self._outage.failed(op, error.cause or error.message, time.monotonic(), calls=calls)

    def _bug(self, op: str, error: Exception) -> None:
        """Logs the traceback of the first bug of an outage."""
        cause = f"a bug of ours: {type(error).__name__}"
        if cause != self.cause:
            log.error("store failed by a bug", op=op, exc_info=error)
        self._outage.failed(op, cause, time.monotonic())
