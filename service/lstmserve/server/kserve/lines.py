"""Owns the order within a sequence where one request must wait for another. Knows no model.

Steps of a sequence go to the engine as they come, and it keeps their order. A START or an END is
more than a step, and with a store every request waits: then those of the same sequence stand in
line behind it. On the loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from lstmserve.engine.errors import Overloaded

RETRY_S = 0.05


class Turn(Protocol):
    """One request that waits."""

    async def take(self) -> None:
        """Its turn, from beginning to end. Must not raise."""


class Lines:
    """A line for each key that has one; at most `length_max` stand in it."""

    def __init__(self, length_max: int) -> None:
        self._length_max = length_max
        self._lines: dict[str, deque[Turn]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def has(self, key: str) -> bool:
        """Whether somebody of this key stands in line."""
        return key in self._lines

    def enter(self, key: str, turn: Turn) -> None:
        """It has its turn soon, or when all before it had theirs. Raises Overloaded."""
        line = self._lines.setdefault(key, deque())
        if len(line) >= self._length_max:
            raise Overloaded(
                f"{len(line)} requests of the sequence are waiting, the limit is "
                f"{self._length_max}: read its replies before you send more",
                retry_s=RETRY_S,
            )
        line.append(turn)
        if len(line) == 1:
            task = asyncio.create_task(self._serve(key, line), name="line")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, key: str, line: deque[Turn]) -> None:
        while line:
            await line[0].take()
            line.popleft()
        del self._lines[key]
