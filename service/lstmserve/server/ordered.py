"""Keeps a stream's answers in the order of its messages, within each line. Knows no session.

Triton's clients expect one line for the whole stream, StepStream's clients one for each session. An
early answer, such as an error, waits for the answers before it in its line.
"""

from __future__ import annotations

from collections import deque

from lstmserve.server.access.tenants import Tenant
from lstmserve.server.conversation import Item, Window
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.transport import StreamCall


class OrderedWindow(Window[Item]):
    """A Window that answers the messages of one line in their order.

    A message in no line is answered at once.
    """

    def __init__(self, stream: StreamCall, pending: PendingBytes, tenant: Tenant) -> None:
        super().__init__(stream, pending, tenant)
        self._lines: dict[str, deque[Item]] = {}
        self._line_of: dict[Item, str] = {}
        self._held: dict[Item, bytes | Exception] = {}

    def enter(self, message: Item, line: str) -> None:
        """Puts the message at the end of the line. A message enters one line, once."""
        self._line_of[message] = line
        if (others := self._lines.get(line)) is None:
            self._lines[line] = deque((message,))
        else:
            others.append(message)

    def answer(self, message: Item, reply: bytes) -> None:
        """Sends the message's reply once those before it in its line are answered."""
        self._settle(message, reply)

    def fail(self, message: Item, error: Exception) -> None:
        """Ends the stream with the error once those before it in its line are answered."""
        self._settle(message, error)

    def gone(self) -> None:
        super().gone()
        self._held.clear()
        self._lines.clear()
        self._line_of.clear()

    def _settle(self, message: Item, outcome: bytes | Exception) -> None:
        if self.is_closed:
            return
        name = self._line_of.pop(message, None)
        if name is None:
            self._give(message, outcome)
            return
        line = self._lines[name]
        if line[0] is not message:
            message.lease.resize(0 if isinstance(outcome, Exception) else len(outcome))
            self._held[message] = outcome
            return
        line.popleft()
        self._give(message, outcome)
        while line and line[0] in self._held:
            first = line.popleft()
            self._line_of.pop(first, None)
            self._give(first, self._held.pop(first))
        if not line:
            self._lines.pop(name, None)

    def _give(self, message: Item, outcome: bytes | Exception) -> None:
        if isinstance(outcome, Exception):
            self.end_by(outcome)  # which cancels the message, too
        else:
            super().answer(message, outcome)
