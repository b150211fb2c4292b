"""Owns the frame around every call: parse, count, and an end with a status, whatever happens.

grpc.aio sends no status for a handler that leaves with a CancelledError, and the text of any other
exception to the client: neither gets past here.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from lstmserve.server.codec import Request, parse
from lstmserve.server.logs import session_hash
from lstmserve.server.metrics import Metrics
from lstmserve.server.status import code, to_abort

SESSION_KEY = "x-session-id"

Context = grpc.aio.ServicerContext[Any, bytes]
Unary = Callable[[Any, Context], Awaitable[Message]]
Stream = Callable[[Context], Awaitable[None]]


def unary(
    name: str, kind: type[Request], method: Unary, metrics: Metrics
) -> grpc.RpcMethodHandler[bytes, bytes]:
    """A handler of one request and one response."""

    async def handle(content: bytes, context: Context) -> bytes:
        metrics.rpc_started(name, "unary")
        start_ns = time.monotonic_ns()
        ended = grpc.StatusCode.CANCELLED  # what it is if the client goes away
        try:
            response = await method(parse(kind, content), context)
            ended = grpc.StatusCode.OK
            return response.SerializeToString()
        except Exception as error:
            ended = code(error)
            abort = to_abort(error, **_facts(name, context))
            await context.abort(abort.code, abort.details, abort.trailers)
            raise AssertionError("abort() raises") from error
        finally:
            metrics.rpc_handled(name, "unary", ended, (time.monotonic_ns() - start_ns) / 1e9)

    return grpc.unary_unary_rpc_method_handler(handle)


def _facts(name: str, context: Context) -> dict[str, str]:
    """For the log: the call, and the session (a stream: the group) that its metadata names."""
    ids = [str(value) for key, value in context.invocation_metadata() or () if key == SESSION_KEY]
    return {"method": name, **({"session": session_hash(ids[0])} if ids else {})}


def bidi(name: str, method: Stream, metrics: Metrics) -> grpc.RpcMethodHandler[bytes, bytes]:
    """A handler of a stream in both directions, which reads and writes by the context."""

    async def handle(_: object, context: Context) -> None:
        metrics.rpc_started(name, "bidi_stream")
        ended = grpc.StatusCode.CANCELLED
        try:
            await method(context)
            ended = grpc.StatusCode.OK
        except Exception as error:
            ended = code(error)
            abort = to_abort(error, **_facts(name, context))
            await context.abort(abort.code, abort.details, abort.trailers)
        finally:
            metrics.rpc_handled(name, "bidi_stream", ended)

    return grpc.stream_stream_rpc_method_handler(handle)
