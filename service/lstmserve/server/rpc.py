"""Owns the frame around every call: who calls, parse, count, and an end with a status, always.

grpc.aio sends no status for a handler that leaves with a CancelledError, and the text of any other
exception to the client: neither gets past here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from lstmserve.engine.errors import Malformed
from lstmserve.server.access.auth import Authenticator
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import Request, parse
from lstmserve.server.observe.logs import session_hash
from lstmserve.server.observe.metrics import SERVICE, Metrics
from lstmserve.server.overtime import Overtime, TooSlow, WatchedTask
from lstmserve.server.pending_bytes import Lease, PendingBytes
from lstmserve.server.status import Abort, to_abort
from lstmserve.tokens import Limits

SESSION_KEY = "x-session-id"
SENT_AT_ONCE_BYTES = 16 << 10  # gRPC sends a shorter reply whether it is read or not
PROBES_BYTES_MAX = 1 << 62

T = TypeVar("T")

Context = grpc.aio.ServicerContext[Any, bytes]


class Incoming:
    """A unary call's message, its sender, and the lease of its bytes until the reply is sent."""

    __slots__ = ("_content", "context", "lease", "tenant")

    def __init__(self, content: bytes, context: Context, tenant: Tenant, lease: Lease) -> None:
        self._content = content
        self.context = context
        self.tenant = tenant
        self.lease = lease

    def take(self) -> bytes:
        """The message; it is not kept here any more."""
        content, self._content = self._content, b""
        return content

    def end(self, _: object) -> None:
        """The call is over: its reply was sent, or will not be."""
        self.lease.release()


Call = Callable[[Incoming], Awaitable[bytes]]
Unary = Callable[[Any, Tenant], Awaitable[Message]]
Stream = Callable[[Context, Tenant], Awaitable[None]]
Refused = Callable[[Exception], None]


def ignore(error: Exception) -> None:
    """Not counted."""


class Frame:
    """Of one service's calls on a port. `call_s_max` is for unary calls without a deadline,
    `write_s_max` for long replies of unary calls; a reply has a row of `row_bytes` or more.
    """

    def __init__(
        self,
        door: Authenticator,
        metrics: Metrics,
        pending: PendingBytes,
        *,
        call_s_max: float,
        write_s_max: float,
        row_bytes: int = 0,
        service: str = SERVICE,
    ) -> None:
        self.door = door
        self.pending = pending
        self.overtime = Overtime(call_s_max)
        self._sending = Overtime(write_s_max)
        self._metrics = metrics
        self._row_bytes = row_bytes
        self._service = service
        self._probe = Tenant("", Limits())
        self._probes = PendingBytes(PROBES_BYTES_MAX)

    def call(
        self, name: str, method: Call, on_refused: Refused = ignore, *, is_probe: bool = False
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """A handler of one request and one response, both of which `method` has as bytes.

        `on_refused(error)` is called for one that does not come to `method`; a probe's comes there
        whoever sends it and however many bytes wait. gRPC takes it for a call with a stream of
        requests: so the message is read here, and nothing of gRPC's keeps it during the call.
        """
        counts = self._metrics.rpc(name, "unary", self._service)
        arrive = self._arrived_probe if is_probe else self._arrived

        async def handle(_: object, context: Context) -> bytes:
            start_ns = time.monotonic_ns()
            counts.started += 1
            ended = grpc.StatusCode.CANCELLED  # what it is if the client goes away
            incoming: Incoming | None = None
            try:
                incoming = await arrive(context)
                start_ns = time.monotonic_ns()
                response = await method(incoming)
                if len(response) > SENT_AT_ONCE_BYTES:
                    self._watch_sending(incoming, response)
                    incoming = None  # it ends when its reply was sent
                ended = grpc.StatusCode.OK
                return response
            except BaseException as error:
                if incoming is not None:
                    incoming.take()  # gRPC and tracebacks keep this frame longer than the call
                elif isinstance(error, Exception):
                    on_refused(error)
                if _is_gone(error):
                    raise  # from here: a frame that names the error is a cycle with it
                abort = _abort(error, name, context)
                ended = abort.code
                error.__traceback__ = None
            finally:  # before the client hears of it
                if incoming is not None:
                    incoming.lease.release()
                counts.ended(ended, (time.monotonic_ns() - start_ns) / 1e9)
            await context.abort(*abort)
            raise AssertionError("abort() raises")

        return grpc.stream_unary_rpc_method_handler(handle)

    async def _arrived(self, context: Context) -> Incoming:
        """A message of who may come in. Where the budget is used up it is not even read.

        Raises BadToken, AdminOnly, Malformed, PendingBytes, Quota.
        """
        tenant = self.door.tenant(context)
        self.pending.check(tenant.account, 1)
        return await self._read(context, tenant, self.pending)

    async def _arrived_probe(self, context: Context) -> Incoming:
        return await self._read(context, self._probe, self._probes)

    async def _read(self, context: Context, tenant: Tenant, pending: PendingBytes) -> Incoming:
        content = await context.read()
        if content is grpc.aio.EOF:
            raise Malformed("the call has no message")
        lease = pending.enter(tenant.account, len(content) + self._row_bytes)
        return Incoming(content, context, tenant, lease)

    def _watch_sending(self, incoming: Incoming, response: bytes) -> None:
        """Holds the bytes until the reply was sent; a reply that is not read ends its call."""
        incoming.lease.resize(len(response))
        unsent = WatchedTask()
        for end in (incoming.end, unsent.end):
            incoming.context.add_done_callback(end)  # type: ignore[arg-type]  # stubs
        self._sending.watch(unsent)

    def unary(
        self, name: str, kind: type[Request], method: Unary
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """The same with messages, of a caller who may come in."""

        async def call(incoming: Incoming) -> bytes:
            work = method(parse(kind, incoming.take()), incoming.tenant)
            return (await self.limited(incoming.context, work)).SerializeToString()

        return self.call(name, call)

    async def limited(self, context: Context, work: Awaitable[T]) -> T:
        """What the work gives, if it is done in time. Raises TooSlow."""
        watched = WatchedTask()
        if context.time_remaining() is None:
            self.overtime.watch(watched)
        try:
            return await work
        except asyncio.CancelledError:
            if (error := watched.expired()) is None:
                raise
            raise error from None
        finally:
            watched.is_over = True

    def bidi(self, name: str, method: Stream) -> grpc.RpcMethodHandler[bytes, bytes]:
        """A handler of a stream in both directions, which reads and writes by the context."""
        counts = self._metrics.rpc(name, "bidi_stream", self._service)

        async def handle(_: object, context: Context) -> None:
            counts.started += 1
            abort: Abort | None = None
            ended = grpc.StatusCode.CANCELLED
            try:
                await method(context, self.door.tenant(context))
                ended = grpc.StatusCode.OK
            except BaseException as error:
                if _is_gone(error):
                    raise
                abort = _abort(error, name, context)
                ended = abort.code
                error.__traceback__ = None
            finally:
                # Before the abort: it waits for a client that does not read.
                counts.ended(ended)
            if abort is not None:
                await context.abort(*abort)

        return grpc.stream_stream_rpc_method_handler(handle)


def _is_gone(error: BaseException) -> bool:
    """Whether there is nobody to tell of it: the client went away, or the process ends.

    A CancelledError that is not the client's doing is a bug of ours, like any other; an
    InternalError is a write that failed.
    """
    task = asyncio.current_task()
    assert task is not None
    if task.cancelling() or isinstance(error, grpc.aio.InternalError):
        return True
    return not isinstance(error, Exception | asyncio.CancelledError)


def _abort(error: BaseException, name: str, context: Context) -> Abort:
    """What ends the call of a client that is there."""
    if isinstance(error, TooSlow):
        return Abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(error), ())
    return to_abort(error, **_facts(name, context))


def _facts(name: str, context: Context) -> dict[str, str]:
    """For the log: the call, and the session (a stream: the group) that its metadata names."""
    ids = [str(value) for key, value in context.invocation_metadata() or () if key == SESSION_KEY]
    return {"method": name, **({"session": session_hash(ids[0])} if ids else {})}
