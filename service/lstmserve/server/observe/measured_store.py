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
from lstmserve.store import (
    LoadOutcome,
    StoreOfServer,
    StoreRefused,
    Write,
    WriteOutcome,
    Written,
)

LOG_S = 60.0  # at least, between two equal lines of the log
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
        self._logged_s: dict[str, float] = {}  # when each line was last written
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

    async def load(self, keys: Sequence[str]) -> list[LoadOutcome]:
        start_s = time.monotonic()
        loaded = await self._timed("load", self._store.load(keys))
        self._note_outcomes("load", loaded, start_s)
        return loaded

    async def put(self, writes: Sequence[Write]) -> list[WriteOutcome]:
        start_s = time.monotonic()
        written = await self._timed("put", self._store.put(writes))
        for each in written:
            if isinstance(each, Written) and each is not Written.OK:
                self._metrics.store_failed("put", each.name)
        if Written.FULL in written:
            self._log_rarely("store full: writes are refused until there is room")
        self._note_outcomes("put", written, start_s)
        return written

    async def quarantine(self, key: str, content: bytes) -> None:
        """Quarantines a record, and asks the operator by a line of the log to look at it."""
        log.error("damaged record put aside", bytes=len(content))
        start_s = time.monotonic()
        try:
            await self._timed("quarantine", self._store.quarantine(key, content))
        except ServeError as error:
            self._metrics.store_failed("quarantine", error.reason)
            if isinstance(error, StoreUnavailable | StoreTimeout):
                self._failed("quarantine", error)
            raise
        self._outage.passed(time.monotonic(), start_s, "quarantine")

    async def close(self) -> None:
        await self._store.close()

    def _note_outcomes(
        self, op: str, outcomes: Sequence[LoadOutcome | WriteOutcome], start_s: float
    ) -> None:
        """Counts the keys that failed. The store is away when it served none of a call's keys."""
        failed = [each for each in outcomes if isinstance(each, StoreUnavailable | StoreTimeout)]
        for error in failed:
            self._metrics.store_failed(op, error.reason)
        away = [error for error in failed if not error.is_of_key]
        final = [error for error in away if error.is_final]
        if final or (away and len(failed) == len(outcomes)):
            self._failed(op, (final or away)[0])
            return
        if failed:
            cause = failed[0].cause or failed[0].message
            self._log_rarely("store fails some keys", op=op, keys=len(failed), cause=cause)
        self._outage.passed(time.monotonic(), start_s, op)

    def _log_rarely(self, event: str, **facts: str | int) -> None:
        """Asks the operator to act, at most once in LOG_S; the metrics count every failure."""
        now_s = time.monotonic()
        if now_s - self._logged_s.get(event, -LOG_S) >= LOG_S:
            self._logged_s[event] = now_s
            log.error(event, **facts)

    async def _timed(self, op: str, call: Awaitable[Result]) -> Result:
        start_ns = time.monotonic_ns()
        try:
            return await call
        except ServeError:
            raise
        except Exception as error:
            self._metrics.store_failed(op, ServeError.reason)
            self._bug(op, error)
            raise
        finally:
            self._metrics.store_took(op, time.monotonic_ns() - start_ns)

    def _failed(self, op: str, error: StoreUnavailable | StoreTimeout, *, calls: int = 1) -> None:
        self.is_over = self.is_over or error.is_final
        self._outage.failed(op, error.cause or error.message, time.monotonic(), calls=calls)

    def _bug(self, op: str, error: Exception) -> None:
        """Logs the traceback of the first bug of an outage."""
        cause = f"a bug of ours: {type(error).__name__}"
        if cause != self.cause:
            log.error("store failed by a bug", op=op, exc_info=error)
        self._outage.failed(op, cause, time.monotonic())
