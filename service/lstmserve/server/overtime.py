"""Owns the calls that bring no deadline of their own: which has been under way too long.

All have the same time, so that they end in the order they began: one timer watches the oldest. A
timer a call would cost 3 us, as much as the checks of a step. On the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque


class TooSlow(Exception):
    """A call that took longer than it may; what it did is unknown, as with gRPC's own deadline."""


class Watched:
    """One call under way, in its task."""

    __slots__ = ("due_s", "is_over", "seconds", "task")

    def __init__(self, task: asyncio.Task[object], due_s: float, seconds: float) -> None:
        self.task: asyncio.Task[object] | None = task  # None: it has ended
        self.due_s = due_s
        self.seconds = seconds
        self.is_over = False  # its task was cancelled for that

    def end(self) -> TooSlow:
        """What the cancellation stands for; the task goes on, to say so."""
        assert self.task is not None
        self.task.uncancel()
        self.is_over = False
        return TooSlow(f"not done after {self.seconds:g} s, the most for a call without a deadline")


class Overtime:
    """Cancels the tasks of calls that last longer than `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._calls: deque[Watched] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self) -> Watched:
        """The current task's call begins."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        watched = Watched(task, loop.time() + self._seconds, self._seconds)
        self._calls.append(watched)
        if self._timer is None:
            self._timer = loop.call_at(watched.due_s, self._look)
        return watched

    def leave(self, watched: Watched) -> None:
        """It has ended."""
        watched.task = None
        while self._calls and self._calls[0].task is None:
            self._calls.popleft()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        while self._calls and self._calls[0].due_s <= now_s:
            watched = self._calls.popleft()
            if watched.task is not None:
                watched.is_over = True
                watched.task.cancel()
        self._timer = loop.call_at(self._calls[0].due_s, self._look) if self._calls else None
