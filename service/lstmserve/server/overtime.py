"""Finds the calls that have been under way for too long. It ends none of them itself.

All calls have the same time, so they are due in the order in which they began, and one timer
watches the oldest. A timer for each call would cost as much as the checks of a step. It runs on the
event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Call = TypeVar("Call")


class Overtime(Generic[Call]):
    """Calls `on_late(call)` for each that is not over after `seconds`."""

    def __init__(
        self, seconds: float, is_over: Callable[[Call], bool], on_late: Callable[[Call], None]
    ) -> None:
        self._seconds = seconds
        self._is_over = is_over
        self._on_late = on_late
        self._calls: deque[tuple[float, Call]] = deque()  # when each is due, in order
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, call: Call) -> None:
        """Begins to count the call's time."""
        while self._calls and self._is_over(self._calls[0][1]):
            self._calls.popleft()
        loop = asyncio.get_running_loop()
        due_s = loop.time() + self._seconds
        self._calls.append((due_s, call))
        if self._timer is None:
            self._timer = loop.call_at(due_s, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        while self._calls and (self._calls[0][0] <= now_s or self._is_over(self._calls[0][1])):
            _, call = self._calls.popleft()
            if not self._is_over(call):
                self._on_late(call)
        self._timer = loop.call_at(self._calls[0][0], self._look) if self._calls else None
