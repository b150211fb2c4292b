"""Owns whose turn it is with one session, on the event loop. Knows nothing of steps."""

from __future__ import annotations

import asyncio

from lstmserve.client.status import late


class Turn:
    """Taken by one at a time, in order of asking."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def take(self, timeout_s: float | None) -> None:
        """Waits for it; give() it back, always. Raises DeadlineExceeded, nothing applied."""
        if timeout_s is None or not self._lock.locked():
            await self._lock.acquire()
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._lock.acquire()
        except TimeoutError:
            raise late(applied=False) from None

    def give(self) -> None:
        """To the next."""
        self._lock.release()
