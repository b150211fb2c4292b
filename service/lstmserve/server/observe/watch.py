"""Checks the store and the clocks once a second, and reports when they change.

It repairs nothing: its callbacks make the server ready, or tell routers to go elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Protocol

import structlog

from lstmserve.engine.clock import Clock, Now, read_clocks

LOOK_S: Final = 1.0
STORE: Final = "store: "  # begins the remark
JUMP_NS: Final = 1_000_000_000  # the wall clock was moved, not merely slewed

log = structlog.get_logger()


class WatchedStore(Protocol):
    """What Watch needs of the store. `is_over`: it will not serve this process again."""

    is_over: bool

    @property
    def cause(self) -> str:
        """Why the store does not serve now; "" if nothing is known to be wrong."""

    async def look(self) -> bool:
        """Whether the store would serve now. It logs changes, and raises nothing."""


class Watch:
    """Awaits `on_there()` whenever the store answers, and `on_over()` once it is lost for good.

    `is_over`: the store will not serve this process again. `remarks` are lines of /readyz, which
    another thread reads; one of them says what is wrong with the store.
    """

    def __init__(
        self,
        store: WatchedStore | None,
        remarks: list[str],
        on_there: Callable[[], Awaitable[None]],
        on_over: Callable[[], Awaitable[None]],
        clock: Clock = read_clocks,
    ) -> None:
        self._store = store
        self._remarks = remarks
        self._on_there = on_there
        self._on_over = on_over
        self._clock = clock
        self._last = clock()
        self._forever = asyncio.Event()
        self.is_over = False

    async def run(self) -> None:
        """Looks once a second, until cancelled."""
        while True:
            await self.look()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._forever.wait(), LOOK_S)

    async def look(self) -> None:
        self._look_at_clocks(self._clock())
        store = self._store
        if store is None or self.is_over:
            return
        is_there = await store.look()
        if store.is_over:
            await self._end(store.cause)
            return
        others = [line for line in self._remarks if not line.startswith(STORE)]
        self._remarks[:] = [*others, f"{STORE}{store.cause}"] if store.cause else others
        if is_there:
            await self._on_there()

    async def _end(self, cause: str) -> None:
        self.is_over = True
        self._remarks.append(f"store lost until a restart: {cause}")
        log.critical("store lost: sessions are refused until this server is restarted", cause=cause)
        await self._on_over()

    def _look_at_clocks(self, now: Now) -> None:
        """Logs a jump of the wall clock. Sessions use the monotonic clock, so none ends by it."""
        passed_ns = now.monotonic_ns - self._last.monotonic_ns
        moved_ns = now.wall_ns - self._last.wall_ns - passed_ns
        self._last = now
        if abs(moved_ns) > JUMP_NS:
            log.warning("wall clock moved: no session ends by it", by_s=round(moved_ns / 1e9, 1))
