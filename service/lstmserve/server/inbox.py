"""The messages that have arrived and are not steps yet: all are read when a batch is due.

They are read in one go, because most of what a message costs is code and memory that has left the
processor's caches since the last one (docs/ARCHITECTURE.md). On the loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from lstmserve.engine.batch_loop import BatchLoop

Message = TypeVar("Message")

UNREAD_MAX = 256  # more are read at once: what is refused must not be held first


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
        """The message is read soon, with the others that the transport hands over now."""
        self.put_all([message])

    def put_all(self, messages: Sequence[Message]) -> None:
        """put() of messages that arrived together."""
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
        """Reads them all."""
        while self._unread:
            messages, self._unread = self._unread, []
            self._read(messages)
