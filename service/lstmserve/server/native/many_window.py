"""Owns the order of a StepMany stream's answers: messages of disjoint sessions may overtake."""

from __future__ import annotations

from typing import cast

from lstmserve.server.native.many_message import ManyMessage
from lstmserve.server.window import Cancellable, Window


class ManyWindow(Window):
    """A Window of ManyMessages: one is answered after all before it that share a session with it.

    A message whose sessions are unknown, because they could not be read, shares with every other.
    """

    def __init__(self, count_max: int) -> None:
        super().__init__(count_max)
        self._held: dict[Cancellable, bytes] = {}

    def answer(self, message: Cancellable, reply: bytes) -> None:
        """As Window.answer, once those before it of its sessions are answered."""
        if self._is_closed:
            return
        if not self._held and not self._is_behind(message):
            super().answer(message, reply)
            return
        message.lease.resize(len(reply))
        self._held[message] = reply
        for each in [each for each in self.unanswered if each in self._held]:
            if not self._is_behind(each):
                super().answer(each, self._held.pop(each))

    def close(self) -> None:
        """As Window.close."""
        super().close()
        self._held.clear()

    def _is_behind(self, message: Cancellable) -> bool:
        cohort = cast(ManyMessage, message).cohort
        for earlier in self.unanswered:
            if earlier is message:
                return False
            if cohort.overlaps(cast(ManyMessage, earlier).cohort):
                return True
        raise AssertionError("the message was answered before")
