"""Owns the calls that bring no deadline of their own: which has been under way too long.

All have the same time, so that they end in the order they began: one timer watches the oldest. A
timer a call would cost as much as the checks of a step. On the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol


class TooSlow(Exception):
    """A call that took longer than it may; what it did is unknown, as with gRPC's own deadline."""


class Watched(Protocol):
    """A call under way."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""

    def expire(self, error: TooSlow) -> None:
        """Ends it with the error."""


class WatchedTask:
    """A call that is the current task. Who runs it sets `is_over`."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._error: TooSlow | None = None
        self.is_over = False

    def end(self, _: object) -> None:
        """It is over, says whoever heard of it."""
        self.is_over = True

    def expire(self, error: TooSlow) -> None:
        """Cancels the task."""
        self._error = error
        self._task.cancel()

    def expired(self) -> TooSlow | None:
        """What a cancellation stands for; None: the client went away."""
        if self._error is not None:
            self._task.uncancel()
        return self._error


class Overtime:
    """Ends calls that last longer than `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._calls: deque[tuple[float, Watched]] = deque()  # when each is due, in order
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, call: Watched) -> None:
        """From now on."""
        while self._calls and self._calls[0][1].is_over:
            self._calls.popleft()
        loop = asyncio.get_running_loop()
        due_s = loop.time() + self._seconds
        self._calls.append((due_s, call))
        if self._timer is None:
            self._timer = loop.call_at(due_s, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        while self._calls and (self._calls[0][0] <= now_s or self._calls[0][1].is_over):
            _, call = self._calls.popleft()
            if not call.is_over:
                text = f"not done after {self._seconds:g} s, the most for a call without a deadline"
                call.expire(TooSlow(text))
        self._timer = loop.call_at(self._calls[0][0], self._look) if self._calls else None
