"""A stream in both directions: the bytes of its messages, and the messages without a reply.

A message is admitted when the budget has room for it and its reply, in the order of the stream.
While there is no room for another one like it the stream is not read, and gRPC's flow control stops
its client. Everything runs on the event loop's thread. It knows no session.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from lstmserve.server.access.tenants import Tenant
from lstmserve.server.pending_bytes import Lease, PendingBytes
from lstmserve.server.rpc import Streams
from lstmserve.server.transport import StreamCall

_FIRST_BYTES = 1  # assumed of the first message, whose size is not known


Work = Callable[[], Awaitable[None]]


class Message(Protocol):
    """A message that waits for its reply; `lease` counts its bytes until the reply is sent."""

    lease: Lease

    def size(self) -> int:
        """The bytes to admit it with. It is called once."""

    def cancel(self) -> None:
        """Gives the message up, because its stream is gone, and releases the lease."""


Item = TypeVar("Item", bound=Message)


class Window(ABC, Generic[Item]):
    """One stream. Each message is opened, admitted and accepted, and then answered once.

    A client that sends no more messages ends no session. When the client goes away, the messages
    that it still waits for are cancelled.
    """

    def __init__(self, stream: StreamCall, pending: PendingBytes, tenant: Tenant) -> None:
        self.stream = stream
        self.tenant = tenant
        self.unanswered: dict[Item, None] = {}
        self.is_closed = False
        self._pending = pending
        self._sending: deque[Lease] = deque()  # of replies that were written and not yet sent
        self._size = _FIRST_BYTES  # of the newest message, with its reply
        self._is_half_closed = False
        self._is_stalled = False  # whether the stream reads nothing until read_on()
        self._turns = InTurn(self._end_if_done, self.end_by)

    # --- for a dialect to implement

    @abstractmethod
    def open(self, content: bytes) -> Item:
        """Makes a message of the bytes; its size() is known from now on."""

    @abstractmethod
    def accept(self, message: Item) -> Work | None:
        """Begins to serve an admitted message. Later messages wait for the work that it returns."""

    # --- messages

    def receive(self, content: bytes) -> None:
        """Takes the stream's next message."""
        if self._turns.is_busy:
            self._turns.put(lambda: self._open(content))
            return
        message, length = self.open(content), len(content)
        size, account = message.size(), self.tenant.account
        lease = self._pending.take(account, size)
        if lease is None:
            self._turns.put(lambda: self._enter(message, size, length))
            return
        message.lease, self._size = lease, size
        self.unanswered[message] = None
        rest = self.accept(message)
        if rest is None and self._pending.has_room(account, size):
            self.stream.admitted(length)
        else:
            self._turns.put(lambda: self._make_room(length, rest))

    async def _open(self, content: bytes) -> None:
        message, length = self.open(content), len(content)
        del content  # or this frame would hold it while its message waits
        await self._enter(message, message.size(), length)

    async def _enter(self, message: Item, size: int, length: int) -> None:
        message.lease = await self._pending.admit(self.tenant.account, size)
        self.unanswered[message], self._size = None, size
        await self._make_room(length, self.accept(message))

    async def _make_room(self, length: int, rest: Work | None) -> None:
        """Reads on when the budget would admit another message like the newest."""
        if rest is not None:
            await rest()
        await self._pending.vacancy(self.tenant.account, self._size)
        self.stream.admitted(length)
        self._read_on()

    async def _make_room_again(self) -> None:
        if self._is_stalled:
            await self._pending.vacancy(self.tenant.account, self._size)
            self._read_on()

    def _read_on(self) -> None:
        if self._is_stalled:
            self._is_stalled = False
            self.stream.read_on()

    # --- replies

    def answer(self, message: Item, reply: bytes) -> None:
        """Sends the message's reply, or drops it if the stream is gone."""
        if self.is_closed:
            return
        del self.unanswered[message]
        message.lease.resize(len(reply))
        self._sending.append(message.lease)
        self.stream.write(reply)
        if self._is_half_closed:
            self._end_if_done()

    def end_by(self, error: Exception) -> None:
        """Ends the stream with the error, after the replies that were sent before."""
        method: Streams = self.stream.method  # type: ignore[assignment]  # its begin() made this
        method.fail(self.stream, error)

    def _end_if_done(self) -> None:
        if self._is_half_closed and not (self.unanswered or self._turns.is_busy):
            self.stream.finish()

    # --- as a Talk

    def half_closed(self) -> None:
        """Ends the stream after the last reply."""
        self._is_half_closed = True
        self._end_if_done()

    def gone(self) -> None:
        """Cancels the messages that wait."""
        self.is_closed = True
        self._turns.cancel()
        for message in self.unanswered:
            message.cancel()
        self.unanswered.clear()

    def sent(self) -> None:
        """Releases the oldest reply's bytes."""
        if self._sending:
            self._sending.popleft().release()

    def stalled(self) -> None:
        """Reads on when it is the stream's turn, unless the last message makes room before."""
        self._is_stalled = True
        self._turns.put(self._make_room_again)

    def closed(self) -> None:
        """Releases the replies that will never be sent."""
        self.is_closed = True
        while self._sending:
            self._sending.popleft().release()


class InTurn:
    """Runs one piece of work after the other, in a task that lives while there is any.

    When a piece raises an error, `on_error(error)` is called, and the next piece runs. `on_idle()`
    is called when no piece is left.
    """

    def __init__(self, on_idle: Callable[[], None], on_error: Callable[[Exception], None]) -> None:
        self._on_idle = on_idle
        self._on_error = on_error
        self._works: deque[Work] = deque()
        self._task: asyncio.Task[None] | None = None

    def put(self, work: Work) -> None:
        """Adds work at the end of the queue."""
        self._works.append(work)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="in turn")

    @property
    def is_busy(self) -> bool:
        """Whether work is under way."""
        return self._task is not None

    def cancel(self) -> None:
        """Drops all work, also what is under way."""
        self._works.clear()
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            while self._works:
                try:
                    await self._works.popleft()()
                except Exception as error:
                    self._on_error(error)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or not task.cancelling():  # a bug of ours, not the end of the stream
                self._on_error(RuntimeError(f"a wait was cancelled: {error!r}"))
        finally:
            self._task = None
        self._on_idle()
