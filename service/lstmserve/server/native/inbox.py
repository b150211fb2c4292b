"""Owns the messages that have arrived and are not steps yet: all are read when a batch is due.

One after the other in one go, because most of what a message costs is code and memory that has
left the processor's caches since the last one (docs/ARCHITECTURE.md). On the loop's thread.
"""

from __future__ import annotations

from typing import Protocol

from lstmserve.engine.driver import Driver
from lstmserve.server.native.crowd import Crowd
from lstmserve.server.native.single import Single

UNREAD_MAX = 256  # more are read at once: what is refused must not be held first


class Message(Single, Protocol):
    """What waits here."""

    def read(self) -> bool:
        """Reads it; whether it is to be submitted. What is wrong with it is its answer."""


class Inbox:
    """A source of the driver."""

    def __init__(self, driver: Driver, crowd: Crowd) -> None:
        self._driver = driver
        self._crowd = crowd
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
            self._crowd.submit([message for message in messages if message.read()])
