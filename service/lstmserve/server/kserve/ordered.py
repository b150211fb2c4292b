"""Owns the order of a stream's answers: that of its requests. An error may be the last one."""

from __future__ import annotations

from lstmserve.server.window import Cancellable, Window

_END = b""  # no answer is empty


class OrderedWindow(Window):
    """A Window whose answers leave as its messages came, as clients of Triton expect."""

    def __init__(self, count_max: int) -> None:
        super().__init__(count_max)
        self._held: dict[Cancellable, bytes | Exception] = {}
        self._error: Exception | None = None

    def answer(self, message: Cancellable, reply: bytes) -> None:
        """As Window.answer, once all before it are answered."""
        self._hold(message, reply)

    def fail(self, message: Cancellable, error: Exception) -> None:
        """When all before it are written, next() raises the error."""
        self._hold(message, error)

    def close(self) -> None:
        """As Window.close."""
        super().close()
        self._held.clear()

    def _hold(self, message: Cancellable, reply: bytes | Exception) -> None:
        if self._is_closed:
            return
        message.lease.resize(0 if isinstance(reply, Exception) else len(reply))
        self._held[message] = reply
        while self.unanswered and (first := next(iter(self.unanswered))) in self._held:
            held = self._held.pop(first)
            if isinstance(held, Exception):
                self._error = self._error or held
                held = _END
            super().answer(first, held)

    async def next(self) -> bytes | None:
        """As Window.next. Raises what fail() was given."""
        reply = await super().next()
        if reply == _END and self._error is not None:
            raise self._error
        return reply
