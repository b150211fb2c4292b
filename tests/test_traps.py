"""What grpc.aio does to those who rely on it, each prevented: handlers, clocks, readers, limits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from lstmserve.config import Config
from lstmserve.engine.errors import Malformed
from lstmserve.server.access.auth import AnonymousAuthenticator
from lstmserve.server.conversation import Window
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.rpc import Frame
from lstmserve.server.transport import QueueServer, StreamCall
from lstmserve.server.transport.arguments import options
from lstmserve.tokens import Limits
from lstmserve.v1 import lstm_pb2 as pb
from lstmserve.wire.v1 import lstm_pb2 as wire
from tenancy import DEADLINE_S, Tenancy, X, path, refusal, step_bytes, tenancy

SERVICE = "test.Traps"
SECRET = "a path of ours"


async def raise_it(error: BaseException) -> Any:
    """Raises the error, as a handler would."""
    await asyncio.sleep(0)
    raise error


async def cancelled_future() -> Any:
    """Awaits a future that the server itself cancels."""
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.cancel)
    await future


async def cancelled_task() -> Any:
    """Awaits a task of the server that is cancelled."""
    task = asyncio.create_task(asyncio.Event().wait())
    asyncio.get_running_loop().call_soon(task.cancel)
    await task


ENDS: dict[str, tuple[Callable[[], Awaitable[Any]], grpc.StatusCode]] = {
    "a cancelled future": (cancelled_future, grpc.StatusCode.INTERNAL),
    "a cancelled task": (cancelled_task, grpc.StatusCode.INTERNAL),
    "CancelledError": (
        lambda: raise_it(asyncio.CancelledError(SECRET)),
        grpc.StatusCode.INTERNAL,
    ),
    "ValueError": (lambda: raise_it(ValueError(SECRET)), grpc.StatusCode.INTERNAL),
    "TimeoutError": (lambda: raise_it(TimeoutError(SECRET)), grpc.StatusCode.INTERNAL),
    "a refusal": (lambda: raise_it(Malformed("no")), grpc.StatusCode.INVALID_ARGUMENT),
}


@contextlib.asynccontextmanager
async def framed(end: Callable[[], Awaitable[Any]]) -> AsyncIterator[grpc.aio.Channel]:
    """A server whose two calls end so, in the frame of every call."""

    async def unary(request: Any, tenant: Any) -> Message:
        await end()
        raise AssertionError("it ends")

    class Message:
        lease: Any

        def size(self) -> int:
            return 1

        def cancel(self) -> None:
            self.lease.release()

    class Stream(Window[Message]):
        def open(self, content: bytes) -> Message:
            return Message()

        def accept(self, message: Message) -> Any:
            return end

    metrics, pending = Metrics(CollectorRegistry(), lambda read: read()), PendingBytes(1 << 30)
    frame = Frame(AnonymousAuthenticator(Limits()), metrics, pending, call_s_max=30, write_s_max=30)

    def begin(stream: StreamCall, tenant: Any) -> Stream:
        return Stream(stream, pending, tenant)

    server = QueueServer(
        options(Config(message_bytes_max=4096)),
        {f"/{SERVICE}/Unary": frame.unary("Unary", wire.ListModelsRequest, unary)},
        {f"/{SERVICE}/Stream": frame.bidi("Stream", begin, 1)},
    )
    port = server.bind("127.0.0.1:0")
    server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


@pytest.mark.parametrize("name", ENDS)
async def test_every_call_ends_with_a_status(name: str) -> None:
    """However a handler ends, its client gets a code at once, never UNKNOWN and never our text."""
    end, code = ENDS[name]
    async with framed(end) as channel:
        calls: list[Any] = [
            channel.unary_unary(f"/{SERVICE}/Unary")(b"", timeout=DEADLINE_S),
            channel.stream_stream(f"/{SERVICE}/Stream")(iter([b""]), timeout=DEADLINE_S),
        ]
        for call in calls:
            with structlog.testing.capture_logs():
                error, _ = await refusal(call)
            assert error.code is code
            assert error.reason in ("INTERNAL", "MALFORMED")
            assert SECRET not in str(error)


async def test_a_call_without_a_deadline_gets_one(models: Path) -> None:
    """A unary call without a deadline ends after call_s_max, and its step is not applied."""
    async with tenancy(models, None, call_s_max=0.2) as running, running.channel() as channel:
        session = await running.client("").session("tiny", id="s")
        with stalled(running):
            error, _ = await refusal(channel.unary_unary(path("Step"))(step_bytes("s")))
            assert (error.code, error.applied) == (grpc.StatusCode.DEADLINE_EXCEEDED, None)
            assert "0.2 s" in error.message
            call = channel.unary_unary(path("Step"))(step_bytes("s"), timeout=0.5)
            error, _ = await refusal(call)
            assert "0.2 s" not in error.message, (
                "the client's own deadline counts, also a later one"
            )
        await session.step(X)
        assert (await session.info()).step == 1


@contextlib.contextmanager
def stalled(running: Tenancy) -> Any:
    """The engine, which computes nothing meanwhile, because no batch finds a spare slot."""
    pool = running.engine.models[0].pool
    assert pool is not None
    top = pool.top
    slots = pool.take(pool.free_count)  # more than the model is charged for
    yield
    pool.give(slots)
    pool.cut(top)
    running.engine.batch_loop.notice()


async def test_a_slow_reader_loses_its_stream_only(models: Path) -> None:
    """A client that reads nothing for write_s_max loses its stream, and the session keeps what was
    applied."""
    async with tenancy(models, None, write_s_max=0.2, length_max=20_000) as running:
        session = await running.client("").session("tiny", id="s")
        small = {"grpc_http2_bdp_probe": 0, "grpc_http2_lookahead_bytes": 1 << 14}
        async with running.channel(**small) as channel:
            stream = channel.stream_stream(path("StepStream"))()
            request = pb.StepRequest(session_id="s", x=X * 10_000, length=10_000)
            for _ in range(8):
                await stream.write(request.SerializeToString())
            while 'grpc_code="DeadlineExceeded",grpc_method="StepStream"' not in running.scrape():
                await session.info()
            applied = (await session.info()).step
            assert applied > 0
            with pytest.raises(grpc.aio.AioRpcError, match="no reply was read") as ended:
                await read_on(stream)
            assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await (await running.client("").attach("s")).step(X)


async def read_on(stream: Any) -> None:
    """What the server wrote, to the end."""
    while await stream.read() is not grpc.aio.EOF:
        pass


async def test_metadata_has_a_limit(models: Path) -> None:
    """8 KiB of metadata pass, 17 kB are refused by gRPC itself, and the connection goes on."""
    async with tenancy(models, None) as running, running.channel() as channel:
        call = channel.unary_unary(path("ListModels"))
        await call(b"", metadata=(("x", "y" * 7_600),))
        error, _ = await refusal(call(b"", metadata=(("x", "y" * 17_000),)))
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        await call(b"")


async def test_a_message_too_long_ends_its_stream_only(models: Path) -> None:
    """One byte above the limit ends a stream as RESOURCE_EXHAUSTED, and its session goes on."""
    async with tenancy(models, None, message_bytes_max=4096) as running:
        session = await running.client("").session("tiny", id="s")
        async with running.channel() as channel:
            stream = channel.stream_stream(path("StepStream"))()
            request = pb.StepRequest(session_id="s", x=X * 340, length=340)
            request.tag = 1
            assert request.ByteSize() <= 4096
            await stream.write(request.SerializeToString())
            assert not pb.StepResponse.FromString(await stream.read()).HasField("error")
            with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                await stream.write(bytes(4097))
            error, _ = await refusal(stream)
            assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        await (await running.client("").attach("s")).step(X)
        assert (await session.info()).step == 2


def test_connections_grow_old_only_when_asked() -> None:
    """max_connection_age is off, and a setting turns it on."""
    config = Config(message_bytes_max=4096)
    assert "grpc.max_connection_age_ms" not in dict(options(config))
    aged = Config(message_bytes_max=4096, connection_age_s_max=1.5)
    assert dict(options(aged))["grpc.max_connection_age_ms"] == 1500
