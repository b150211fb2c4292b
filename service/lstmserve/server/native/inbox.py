"""Owns the messages that have arrived and are not steps yet: all are read when a batch is due.

One after the other in one go, because most of what a message costs is code and memory that has
left the processor's caches since the last one (docs/ARCHITECTURE.md). On the loop's thread.
"""

from __future__ import annotations

from typing import Protocol

from lstmserve.engine.driver import Driver

UNREAD_MAX = 256  # more are read at once: what is refused must not be held first


class Message(Protocol):
    """What waits here."""

    def read(self) -> None:
        """Checks it and submits its step; what is wrong with it is its answer. Must not raise."""


class Inbox:
    """The driver empties it before every batch."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._unread: list[Message] = []
        driver.add_source(self.empty)

    def put(self, message: Message) -> None:
        """It is read soon, in the order of arrival."""
        self._unread.append(message)
        if len(self._unread) >= UNREAD_MAX:
            self.empty()
        self._driver.notice()

    def empty(self) -> None:
        """Reads them all."""
        while self._unread:
            messages, self._unread = self._unread, []
            for message in messages:
                message.read()
