"""The order of a StepMany stream's answers: messages of disjoint sessions may overtake."""

from __future__ import annotations

from lstmserve.server.access.tenants import Tenant
from lstmserve.server.conversation import Window
from lstmserve.server.native.many_message import ManyMessage
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.transport import StreamCall


class ManyWindow(Window[ManyMessage]):
    """A Window of ManyMessages: one is answered after all before it that share a session with it.

    A message whose sessions are unknown, because they could not be read, shares with every other.
    """

    def __init__(self, stream: StreamCall, pending: PendingBytes, tenant: Tenant) -> None:
        super().__init__(stream, pending, tenant)
        self._held: dict[ManyMessage, bytes] = {}

    def answer(self, message: ManyMessage, reply: bytes) -> None:
        """As Window.answer, once those before it of its sessions are answered."""
        if self.is_closed:
            return
        if not self._held and not self._is_behind(message):
            super().answer(message, reply)
            return
        message.lease.resize(len(reply))
        self._held[message] = reply
        for each in [each for each in self.unanswered if each in self._held]:
            if not self._is_behind(each):
                super().answer(each, self._held.pop(each))

    def gone(self) -> None:
        """As Window.gone."""
        super().gone()
        self._held.clear()

    def _is_behind(self, message: ManyMessage) -> bool:
        for earlier in self.unanswered:
            if earlier is message:
                return False
            if message.cohort.overlaps(earlier.cohort):
                return True
        raise AssertionError("the message was answered before")
