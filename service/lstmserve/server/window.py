"""Owns a stream's unanswered messages: how many, and which are ready to be written, in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

Reply = TypeVar("Reply")


class Window(Generic[Reply]):
    """The reader adds, sinks answer, the writer iterates; all on one loop.

    The reader waits for room, so a client that sends without reading stops itself.
    """

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._ready: deque[Reply] = deque()
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._is_ended = False
        self.unanswered: dict[Reply, None] = {}

    def add(self, reply: Reply) -> None:
        """A message that will be answered; twice is once."""
        self.unanswered[reply] = None
        self._note_room()

    def answer(self, reply: Reply) -> None:
        """Its reply is ready to be written."""
        del self.unanswered[reply]
        self._ready.append(reply)
        self._changed.set()

    def end(self) -> None:
        """No more is added; iteration ends after the last answer."""
        self._is_ended = True
        self._changed.set()

    async def room(self) -> None:
        """Until there is room for one more."""
        await self._has_room.wait()

    def _note_room(self) -> None:
        if len(self.unanswered) + len(self._ready) < self._count_max:
            self._has_room.set()
        else:
            self._has_room.clear()

    async def __aiter__(self) -> AsyncIterator[Reply]:
        while True:
            while self._ready:
                yield self._ready.popleft()
                self._note_room()
            if self._is_ended and not self.unanswered:
                return
            self._changed.clear()
            await self._changed.wait()
