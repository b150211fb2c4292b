"""gRPC's own services, health and reflection, get broken bytes: an error of ours, never UNKNOWN."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2

from lstmserve.config import Config
from lstmserve.server.transport import QueueServer
from lstmserve.server.transport.arguments import options
from lstmserve.server.transport.health import Health
from lstmserve.server.transport.reflection import Reflection
from refusals import refusal

CHECK, WATCH = (f"/{health.SERVICE_NAME}/{name}" for name in ("Check", "Watch"))
INFO = f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"
BROKEN = (b"\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe", b"\x0b")


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server that has only these two services."""
    well = Health(("", "a", "b"))
    well.set_all(is_serving=True)
    streams = {WATCH: well.watch, INFO: Reflection(("a", "b"))}
    server = QueueServer(options(Config(message_bytes_max=4096)), {CHECK: well.check}, streams)
    port = server.bind("127.0.0.1:0")
    server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


async def last(call: Any) -> None:
    """Reads the call to its end."""
    if isinstance(call, grpc.aio.UnaryUnaryCall):
        await call
        return
    while await call.read() is not grpc.aio.EOF:
        pass


@pytest.mark.parametrize("content", BROKEN)
async def test_broken_bytes(channel: grpc.aio.Channel, content: bytes) -> None:
    """They are MALFORMED in every call, and the next good call is answered."""
    info = channel.stream_stream(INFO)
    calls = [
        channel.unary_unary(CHECK)(content, timeout=30),
        channel.unary_stream(WATCH)(content, timeout=30),
        info(iter([content]), timeout=30),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await last(call)
        said = refusal(ended.value)
        assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED")
    assert await channel.unary_unary(CHECK)(b"", timeout=30) == b"\x08\x01"
    request = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    reply = await info(iter([request]), timeout=30).read()
    found = reflection_pb2.ServerReflectionResponse.FromString(reply).list_services_response
    assert reflection.SERVICE_NAME in [each.name for each in found.service]
