"""Holds messages unread until a batch is due, and then has all of them read together.

Most of what a message costs is code and memory that has left the processor's caches since the last
one (docs/ARCHITECTURE.md), so reading them in one go is cheaper. It runs on the event loop's
thread, and does not know what is in a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from lstmserve.engine.batch_loop import BatchLoop

Message = TypeVar("Message")

UNREAD_MAX = 256  # with more they are read now, so that few bytes are held of refused messages


class Inbox(Generic[Message]):
    """A source of the batch loop. `read(messages)` submits their steps, and must not raise."""

    def __init__(self, batch_loop: BatchLoop, read: Callable[[list[Message]], None]) -> None:
        self._batch_loop = batch_loop
        self._read = read
        self._unread: list[Message] = []
        self._is_due = False
        self._loop = asyncio.get_running_loop()
        batch_loop.add_source(self.take_in)

    def put(self, message: Message) -> None:
        """Has the message read soon, with the others that the transport hands over now."""
        self.put_all([message])

    def put_all(self, messages: Sequence[Message]) -> None:
        """put() for messages that arrived together."""
        self._unread.extend(messages)
        if len(self._unread) >= UNREAD_MAX:
            self._batch_loop.take_in_now()
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._is_due = False
        if not self._batch_loop.run_now():
            self._batch_loop.notice()

    def take_in(self) -> None:
        """Reads every message that waits."""
        while self._unread:
            messages, self._unread = self._unread, []
            self._read(messages)
