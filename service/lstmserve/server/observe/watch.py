"""Looks every second at what the server stands on: its store and its clocks."""

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


class Watched(Protocol):
    """The store, as far as it is looked at."""

    is_over: bool

    @property
    def cause(self) -> str:
        """Why it does not serve now; "" when nothing is known to be wrong."""

    async def look(self) -> bool:
        """Whether it would serve now. Raises nothing: the log has it when that changes."""


class Watch:
    """`is_over`: the store serves this process no more; `on_over()` is awaited once, then.

    `on_there()` is awaited whenever the store answers. `remarks` are lines of /readyz, among them
    what is wrong with the store; another thread reads them.
    """

    def __init__(
        self,
        store: Watched | None,
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
        """Until cancelled."""
        while True:
            await self.look()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._forever.wait(), LOOK_S)

    async def look(self) -> None:
        """Once."""
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
        """Logs a jump once. It changes nothing: sessions end by the monotonic clock."""
        passed_ns = now.monotonic_ns - self._last.monotonic_ns
        moved_ns = now.wall_ns - self._last.wall_ns - passed_ns
        self._last = now
        if abs(moved_ns) > JUMP_NS:
            log.warning("wall clock moved: no session ends by it", by_s=round(moved_ns / 1e9, 1))
