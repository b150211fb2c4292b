"""Measures the event loop: whether it turns, and how late its timers fire.

It decides nothing: the liveness probe and the metrics read it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

INTERVAL_S = 0.25
AGE_S_MAX = 5.0


class Heartbeat:
    """Beats on the loop. Any thread may call is_alive()."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        observe_lag: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._observe_lag = observe_lag
        self._last_s = self._clock()
        self._timer = loop.call_later(INTERVAL_S, self._beat)

    def is_alive(self) -> bool:
        """Whether the loop has turned within AGE_S_MAX."""
        return self._clock() - self._last_s < AGE_S_MAX

    def stop(self) -> None:
        self._timer.cancel()

    def _beat(self) -> None:
        now_s = self._clock()
        self._observe_lag(max(0.0, now_s - self._last_s - INTERVAL_S))
        self._last_s = now_s
        self._timer = self._loop.call_later(INTERVAL_S, self._beat)
