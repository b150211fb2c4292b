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

from lstmserve.server.access.doors import Door
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import Request, parse
from lstmserve.server.observe.logs import session_hash
from lstmserve.server.observe.metrics import SERVICE, Metrics
from lstmserve.server.overtime import Overtime, TooSlow, WatchedTask
from lstmserve.server.status import Abort, to_abort

SESSION_KEY = "x-session-id"

T = TypeVar("T")

Context = grpc.aio.ServicerContext[Any, bytes]
Call = Callable[[bytes, Context], Awaitable[bytes]]
Unary = Callable[[Any, Tenant], Awaitable[Message]]
Stream = Callable[[Context, Tenant], Awaitable[None]]


class Frame:
    """Of one service's calls on a port. `call_s_max` is for unary calls without a deadline."""

    def __init__(
        self, door: Door, metrics: Metrics, call_s_max: float, service: str = SERVICE
    ) -> None:
        self.door = door
        self.overtime = Overtime(call_s_max)
        self._metrics = metrics
        self._service = service

    def call(self, name: str, method: Call) -> grpc.RpcMethodHandler[bytes, bytes]:
        """A handler of one request and one response, both of which `method` has as bytes."""
        counts = self._metrics.rpc(name, "unary", self._service)

        async def handle(content: bytes, context: Context) -> bytes:
            start_ns = time.monotonic_ns()
            counts.started += 1
            ended = grpc.StatusCode.CANCELLED  # what it is if the client goes away
            try:
                response = await method(content, context)
                ended = grpc.StatusCode.OK
                return response
            except BaseException as error:
                content = b""  # gRPC and tracebacks keep this frame for longer than the call
                if _is_gone(error):
                    raise  # from here: a frame that names the error is a cycle with it
                abort = _abort(error, name, context)
                ended = abort.code
                error.__traceback__ = None
            finally:  # before the client hears of it
                counts.ended(ended, (time.monotonic_ns() - start_ns) / 1e9)
            await context.abort(*abort)
            raise AssertionError("abort() raises")

        return grpc.unary_unary_rpc_method_handler(handle)

    def unary(
        self, name: str, kind: type[Request], method: Unary
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """The same with messages, of a caller who may come in."""

        async def call(content: bytes, context: Context) -> bytes:
            tenant = self.door.tenant(context)
            response = await self.limited(context, method(parse(kind, content), tenant))
            return response.SerializeToString()

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
