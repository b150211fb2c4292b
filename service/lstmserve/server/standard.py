"""Owns gRPC's own services beside ours: health and reflection. Bad bytes get an error of ours.

A deserializer that raises is UNKNOWN to the client, with the exception's text: so parsing is here.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from lstmserve.engine.errors import Malformed
from lstmserve.server.codec import Request, parse
from lstmserve.server.status import to_abort

Context = Any  # the stubs tie a context to the messages, of which gRPC knows nothing here


async def _read(kind: type[Request], content: bytes, context: Context) -> Request:
    """The message, or the end of the call."""
    try:
        return parse(kind, content)
    except Malformed as error:
        await context.abort(*to_abort(error))
        raise AssertionError("abort() raises") from None


def health_handlers(servicer: health.aio.HealthServicer) -> grpc.GenericRpcHandler:
    """Check and Watch."""
    kind, encode = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse.SerializeToString

    async def check(content: bytes, context: Context) -> object:
        return await servicer.Check(await _read(kind, content, context), context)

    async def watch(content: bytes, context: Context) -> None:
        await servicer.Watch(await _read(kind, content, context), context)

    return grpc.method_handlers_generic_handler(
        health.SERVICE_NAME,
        {
            "Check": grpc.unary_unary_rpc_method_handler(check, response_serializer=encode),
            "Watch": grpc.unary_stream_rpc_method_handler(watch, response_serializer=encode),
        },
    )


def reflection_handlers(services: Sequence[str]) -> grpc.GenericRpcHandler:
    """ServerReflectionInfo, of these services and itself."""
    servicer: Any = reflection.aio.ReflectionServicer((*services, reflection.SERVICE_NAME))

    async def info(contents: AsyncIterable[bytes], context: Context) -> AsyncIterator[object]:
        async def requests() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            async for content in contents:
                yield await _read(reflection_pb2.ServerReflectionRequest, content, context)

        async for response in servicer.ServerReflectionInfo(requests(), context):
            yield response

    encode = reflection_pb2.ServerReflectionResponse.SerializeToString
    handler: Any = grpc.stream_stream_rpc_method_handler(info, response_serializer=encode)
    return grpc.method_handlers_generic_handler(
        reflection.SERVICE_NAME, {"ServerReflectionInfo": handler}
    )
