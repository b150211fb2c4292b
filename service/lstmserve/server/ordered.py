"""The order of a stream's answers: within a line, that of its messages. Knows no session.

Triton's clients expect one line for the whole stream, StepStream's one for each session. What is
answered early, such as an error, waits for the answers before it in its line.
"""

from __future__ import annotations

from collections import deque

from lstmserve.server.access.tenants import Tenant
from lstmserve.server.conversation import Item, Window
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.transport import StreamCall


class OrderedWindow(Window[Item]):
    """A Window in which a message that stands in a line is answered after all before it there.

    A message that is answered while it stands in no line is before nothing and after nothing.
    """

    def __init__(self, stream: StreamCall, pending: PendingBytes, tenant: Tenant) -> None:
        super().__init__(stream, pending, tenant)
        self._lines: dict[str, deque[Item]] = {}
        self._line_of: dict[Item, str] = {}
        self._held: dict[Item, bytes | Exception] = {}

    def enter(self, message: Item, line: str) -> None:
        """It stands in that line now; once for each message."""
        self._line_of[message] = line
        if (others := self._lines.get(line)) is None:
            self._lines[line] = deque((message,))
        else:
            others.append(message)

    def answer(self, message: Item, reply: bytes) -> None:
        """As Window.answer, once all before it are answered."""
        self._settle(message, reply)

    def fail(self, message: Item, error: Exception) -> None:
        """When all before it are answered, the stream ends by the error."""
        self._settle(message, error)

    def gone(self) -> None:
        """As Window.gone."""
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
