"""Owns the messages that have arrived and are not steps yet: all are read when a batch is due.

One after the other in one go, because most of what a message costs is code and memory that has
left the processor's caches since the last one (docs/ARCHITECTURE.md). On the loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from lstmserve.engine.driver import Driver

Message = TypeVar("Message")

UNREAD_MAX = 256  # more are read at once: what is refused must not be held first


class Inbox(Generic[Message]):
    """A source of the driver. `read(messages)` submits their steps, and must not raise."""

    def __init__(self, driver: Driver, read: Callable[[list[Message]], None]) -> None:
        self._driver = driver
        self._read = read
        self._unread: list[Message] = []
        driver.add_source(self.take_in)

    def put(self, message: Message) -> None:
        """It is read soon, in the order of arrival; at once, if no other is expected."""
        self._unread.append(message)
        if len(self._unread) == 1 and self._driver.run_now():
            return
        if len(self._unread) >= UNREAD_MAX:
            self.take_in()
        self._driver.notice()

    def take_in(self) -> None:
        """Reads them all."""
        while self._unread:
            messages, self._unread = self._unread, []
            self._read(messages)
