"""Owns the look that the server takes every second at what it stands on: its store, its clocks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog

from lstmserve.engine.clock import Clock, Now, read_clocks
from lstmserve.store import StoreOfServer, StoreRefused
from lstmserve.store.errors import StoreTimeout, StoreUnavailable

LOOK_S: Final = 1.0
JUMP_NS: Final = 1_000_000_000  # the wall clock was moved, not merely slewed

log = structlog.get_logger()


class Watch:
    """`is_over`: the store serves this process no more; `on_over()` is awaited once, then.

    `remarks` grows by a line for /readyz.
    """

    def __init__(
        self,
        store: StoreOfServer | None,
        remarks: list[str],
        on_over: Callable[[], Awaitable[None]],
        clock: Clock = read_clocks,
    ) -> None:
        self._store = store
        self._remarks = remarks
        self._on_over = on_over
        self._clock = clock
        self._last = clock()
        self._forever = asyncio.Event()
        self.is_over = False

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._forever.wait(), LOOK_S)

    async def look(self) -> None:
        """Once."""
        self._look_at_clocks(self._clock())
        if self._store is None or self.is_over:
            return
        try:
            await self._store.check()
        except (StoreUnavailable, StoreTimeout) as error:
            if error.is_final:
                await self._end(error.cause)
        except StoreRefused:
            pass  # it may be set right; each call says until then what is wrong
        except Exception as error:
            log.error("look at the store failed by a bug", exc_info=error)

    async def _end(self, cause: str) -> None:
        self.is_over = True
        self._remarks.append(f"store lost until a restart: {cause}")
        log.critical("store lost: sessions are refused until this server is restarted", cause=cause)
        await self._on_over()

    def _look_at_clocks(self, now: Now) -> None:
        """A jump is told once, and changes nothing: sessions end by the monotonic clock."""
        passed_ns = now.monotonic_ns - self._last.monotonic_ns
        moved_ns = now.wall_ns - self._last.wall_ns - passed_ns
        self._last = now
        if abs(moved_ns) > JUMP_NS:
            log.warning("wall clock moved: no session ends by it", by_s=round(moved_ns / 1e9, 1))
