"""Owns a stream in both directions: its unanswered messages, and who reads and writes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import grpc.aio

from lstmserve.server.overtime import TooSlow
from lstmserve.server.pending_bytes import Account, Lease, PendingBytes
from lstmserve.server.rpc import Context


class Cancellable(Protocol):
    """A message that waits in a window; `lease` is that of its bytes, until its reply is sent."""

    lease: Lease

    def cancel(self) -> None:
        """The stream is gone: no reply reaches it. Releases the lease."""


class Window:
    """The reader adds, sinks answer, the writer takes what is next; all on one loop.

    The reader waits for room, so a client that sends without reading stops itself.
    """

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._ready: deque[tuple[bytes, Lease]] = deque()
        self._sending: Lease | None = None  # of what next() gave last
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._writer: asyncio.Future[None] | None = None  # waits in next(); an Event costs twice it
        self._has_room = asyncio.Event()
        self._is_ended = False
        self.unanswered: dict[Cancellable, None] = {}

    def add(self, message: Cancellable) -> None:
        """A message that will be answered; twice is once."""
        self.unanswered[message] = None

    def answer(self, message: Cancellable, reply: bytes) -> None:
        """Its reply is ready to be written; of a stream that is gone it is dropped."""
        if self._is_closed:
            return
        del self.unanswered[message]
        message.lease.resize(len(reply))
        self._ready.append((reply, message.lease))
        self._wake()

    def end(self) -> None:
        """No more is added; iteration ends after the last answer."""
        self._is_ended = True
        self._wake()

    @property
    def is_full(self) -> bool:
        """Whether room() waits."""
        return len(self.unanswered) + len(self._ready) >= self._count_max

    async def room(self) -> None:
        """Until there is room for one more."""
        while self.is_full:
            self._has_room.clear()
            await self._has_room.wait()

    async def next(self) -> bytes | None:
        """The next answer, in order; None after the last one. The one before was sent."""
        self._sent()
        while not self._ready:
            if self._is_ended and not self.unanswered:
                return None
            self._writer = self._loop.create_future()
            await self._writer
        reply, self._sending = self._ready.popleft()
        self._has_room.set()
        return reply

    def close(self) -> None:
        """The stream is gone: what waits is cancelled, and what is ready dropped."""
        self._is_closed = True
        for message in self.unanswered:
            message.cancel()
        self._sent()
        for _, lease in self._ready:
            lease.release()
        self._ready.clear()

    def _sent(self) -> None:
        lease, self._sending = self._sending, None
        if lease is not None:
            lease.release()

    def _wake(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)


class WriteTimeout:
    """`over` fails with TooSlow when one write lasts `seconds`.

    A timer a write would cost as much as an eighth of the message; this one looks now and then.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._since_s: float | None = None  # when the write under way began
        self._timer = self._loop.call_later(seconds, self._look)
        self.over: asyncio.Future[None] = self._loop.create_future()

    def begin(self) -> None:
        """A write begins."""
        self._since_s = self._loop.time()

    def end(self) -> None:
        """It is over."""
        self._since_s = None

    def stop(self) -> None:
        """Nothing more is written; twice is fine."""
        self._timer.cancel()
        if not self.over.done():
            self.over.set_result(None)

    def _look(self) -> None:
        now_s = self._loop.time()
        due_s = (now_s if self._since_s is None else self._since_s) + self._seconds
        if now_s < due_s:
            self._timer = self._loop.call_at(due_s, self._look)
        else:
            self.over.set_exception(TooSlow(f"no reply was read for {self._seconds:g} s"))


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream: its call, whose bytes its messages are, and how long a reply may lie unread."""

    context: Context
    pending: PendingBytes
    account: Account
    write_s_max: float

    async def admit(self, size: int) -> Lease:
        """A lease for a message that was read, when there are bytes for it."""
        return await self.pending.admit(self.account, size)


async def converse(
    stream: Stream, window: Window, accept: Callable[[bytes], Awaitable[int]]
) -> None:
    """Reads messages into the window while there is room, and writes its answers as they come.

    `accept(content)` gives the bytes that the message was admitted with. While there is no room
    for another one like it the stream is not read: gRPC's flow control stops its client.

    The end of the client's messages says nothing about their sessions; when the client goes away,
    what it still waited for is cancelled. What ends one side by an error ends the other. Raises
    TooSlow when the client reads nothing for `write_s_max`.
    """

    context, pending, account = stream.context, stream.pending, stream.account

    async def read() -> None:
        size = 0
        while (content := await context.read()) is not grpc.aio.EOF:
            accepting = accept(content)
            del content  # or it would be held here while that waits
            size = await accepting
            if window.is_full:
                await window.room()
            if not pending.has_room(account, size):
                await pending.vacancy(account, size)
        window.end()

    async def write() -> None:
        while (reply := await window.next()) is not None:
            timeout.begin()
            await context.write(reply)
            timeout.end()
            del reply  # or it would be held until there is another
        timeout.stop()

    await _begin(context)
    timeout = WriteTimeout(stream.write_s_max)
    sides = {asyncio.create_task(read()), asyncio.create_task(write()), timeout.over}
    try:
        await _until_one_fails(sides)
    finally:
        timeout.stop()
        window.close()
        for side in sides:
            side.cancel()
        ends = await asyncio.gather(*sides, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end


async def _begin(context: Context) -> None:
    """Sends the headers now: gRPC cannot end a stream whose first reply nobody reads.

    Nor one whose headers were cancelled half-way: it would send them again with the status, which
    is an error, and the client would wait to its deadline.
    """
    begun = asyncio.ensure_future(context.send_initial_metadata(()))
    try:
        await asyncio.shield(begun)
    except asyncio.CancelledError:
        await asyncio.gather(begun, return_exceptions=True)
        raise


async def _until_one_fails(sides: set[asyncio.Future[None]]) -> None:
    """Or all are done. Raises CancelledError for one that was cancelled.

    Nobody does that but a bug of ours, and asyncio.wait() takes it for a good end.
    """
    while sides:
        done, sides = await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
        if any(side.cancelled() for side in done):
            raise asyncio.CancelledError
        if any(side.exception() for side in done):
            return
