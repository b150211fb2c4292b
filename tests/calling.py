"""Calls for tests without gRPC: what serves a call or a stream sees of one, and how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from lstmserve.server.access.tenants import Tenant
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.rpc import Frame


class Caller:
    """A unary call with a deadline far away. `done` is its answer, or the error it ended by."""

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
        """None."""
        return ()

    def take(self) -> bytes:
        """As UnaryCall.take."""
        content, self.content = self.content, b""
        return content

    def reply(self, content: bytes) -> None:
        """As UnaryCall.reply; it is sent at once."""
        self._end()
        self.done.set_result(content)

    def fail(self, error: BaseException) -> None:
        """What CallerFrame makes of an abort."""
        if not self.is_over:
            self._end()
            self.done.set_exception(error)

    def leave(self) -> None:
        """The client goes away."""
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
    """A frame whose calls are Callers: they end by the error itself."""

    def reply(self, call: Any, content: bytes) -> None:
        """As Frame.reply, of whatever length."""
        if not call.is_over:
            call.reply(content)

    def abort(self, call: Any, error: BaseException, name: str) -> None:
        """As Frame.abort."""
        call.fail(error)


async def answered(receive: Callable[[list[Any]], None], caller: Caller) -> bytes:
    """The answer of one call. Raises what it ended by; to be cancelled is to leave."""
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
        """As StreamCall.invocation_metadata."""
        return self._metadata

    def admitted(self, size: int) -> None:
        """All is read already."""

    def write(self, content: bytes) -> None:
        """As StreamCall.write."""
        if not self.is_over:
            self.replies.append(content)
            asyncio.get_running_loop().call_soon(self.conversation.sent)

    def finish(self) -> None:
        """As StreamCall.finish."""
        self.is_over = True
        if not self._ended.done():
            self._ended.set_result(None)

    def fail(self, stream: Sender, error: Exception) -> None:
        """As Streams.fail."""
        self.is_over = True
        self.conversation.gone()
        if not self._ended.done():
            self._ended.set_exception(error)

    async def run(
        self, begin: Callable[[Any, Tenant], Any], tenant: Tenant, sent: list[bytes]
    ) -> None:
        """Sends the messages and waits for the end of the stream; to be cancelled is to leave."""
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
