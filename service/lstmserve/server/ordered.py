"""Owns the order of a stream's answers: within a line, that of its messages. Knows no session.

Triton's clients expect one line for the whole stream, StepStream's one for each session. What is
answered early, such as an error, waits for the answers before it in its line.
"""

from __future__ import annotations

from collections import deque

from lstmserve.server.window import Cancellable, Window

_END = b""  # no answer is empty


class OrderedWindow(Window):
    """A Window in which a message that stands in a line is answered after all before it there.

    A message that is answered while it stands in no line is before nothing and after nothing.
    """

    def __init__(self, count_max: int) -> None:
        super().__init__(count_max)
        self._lines: dict[str, deque[Cancellable]] = {}
        self._line_of: dict[Cancellable, str] = {}
        self._held: dict[Cancellable, bytes | Exception] = {}
        self._error: Exception | None = None

    def enter(self, message: Cancellable, line: str) -> None:
        """It stands in that line now; once for each message."""
        self._line_of[message] = line
        if (others := self._lines.get(line)) is None:
            self._lines[line] = deque((message,))
        else:
            others.append(message)

    def answer(self, message: Cancellable, reply: bytes) -> None:
        """As Window.answer, once all before it are answered."""
        self._settle(message, reply)

    def fail(self, message: Cancellable, error: Exception) -> None:
        """When all before it are written, next() raises the error."""
        self._settle(message, error)

    def close(self) -> None:
        """As Window.close."""
        super().close()
        self._held.clear()
        self._lines.clear()
        self._line_of.clear()

    def _settle(self, message: Cancellable, outcome: bytes | Exception) -> None:
        if self._is_closed:
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
            self._give(first, self._held.pop(first))
        if not line:
            del self._lines[name]

    def _give(self, message: Cancellable, outcome: bytes | Exception) -> None:
        if isinstance(outcome, Exception):
            self._error = self._error or outcome
            outcome = _END
        super().answer(message, outcome)

    async def next(self) -> bytes | None:
        """As Window.next. Raises what fail() was given."""
        reply = await super().next()
        if reply == _END and self._error is not None:
            raise self._error
        return reply
