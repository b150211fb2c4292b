"""Calls for tests without gRPC: the interface of a call or a stream, and how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from lstmserve.server.access.tenants import Tenant
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.rpc import Frame


class Caller:
    """A unary call with a deadline far away. `done` is its answer, or the error that ended it."""

    def __init__(self, content: bytes, tenant: Tenant, pending: PendingBytes) -> None:
        self.content = content
        self.tenant = tenant
        self.lease = pending.enter(tenant.account, len(content))
        self.arrival_ns = time.monotonic_ns()
        self.deadline_ns: int | None = self.arrival_ns + 60_000_000_000
        self.on_gone: Callable[[], None] | None = None
        self.is_over = False
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def take(self) -> bytes:
        content, self.content = self.content, b""
        return content

    def reply(self, content: bytes) -> None:
        """Answers the call; the reply is sent at once."""
        self._end()
        self.done.set_result(content)

    def fail(self, error: BaseException) -> None:
        """Ends the call with the error."""
        if not self.is_over:
            self._end()
            self.done.set_exception(error)

    def leave(self) -> None:
        """Lets the client go away."""
        if not self.is_over:
            on_gone = self.on_gone
            self._end()
            self.done.cancel()
            if on_gone is not None:
                on_gone()

    def _end(self) -> None:
        assert not self.is_over, "answered twice"
        self.is_over, self.on_gone, self.content = True, None, b""
        self.lease.release()


class CallerFrame(Frame):
    """A frame whose calls are Callers, and end with the error itself."""

    def reply(self, call: Any, content: bytes) -> None:
        """Answers the call, with a reply of any length."""
        if not call.is_over:
            call.reply(content)

    def abort(self, call: Any, error: BaseException, name: str) -> None:
        """Ends the call with the error itself."""
        call.fail(error)


async def answered(receive: Callable[[list[Any]], None], caller: Caller) -> bytes:
    """The answer of one call. Raises the error that ended it. If cancelled, the client leaves."""
    receive([caller])
    try:
        return await asyncio.shield(caller.done)
    except asyncio.CancelledError:
        caller.leave()
        raise


class Sender:
    """A StreamCall whose client sends all its messages at once, and reads all replies at once."""

    def __init__(self, metadata: Sequence[tuple[str, str]] = ()) -> None:
        self._metadata = metadata
        self.conversation: Any = None
        self.method = self
        self.replies: list[bytes] = []
        self.is_over = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return self._metadata

    def admitted(self, size: int) -> None:
        """Does nothing: every message is read already."""

    def write(self, content: bytes) -> None:
        if not self.is_over:
            self.replies.append(content)
            asyncio.get_running_loop().call_soon(self.conversation.sent)

    def finish(self) -> None:
        self.is_over = True
        if not self._ended.done():
            self._ended.set_result(None)

    def fail(self, stream: Sender, error: Exception) -> None:
        self.is_over = True
        self.conversation.gone()
        if not self._ended.done():
            self._ended.set_exception(error)

    async def run(
        self, begin: Callable[[Any, Tenant], Any], tenant: Tenant, sent: list[bytes]
    ) -> None:
        """Sends the messages, and waits for the stream's end; if cancelled, the client leaves."""
        self.conversation = begin(self, tenant)
        try:
            for content in sent:
                self.conversation.receive(content)
            self.conversation.half_closed()
            await self._ended
        except asyncio.CancelledError:
            self.is_over = True
            self.conversation.gone()
            raise
        finally:
            self.conversation.closed()
