"""Every kind of client takes the one path: steps that arrive together are one request.

While the kernel is held, steps gather unread. So how many requests the engine accepts for them
depends on the path that they take, and not on the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gated import gated
from lstmserve import AsyncClient, Client
from lstmserve.engine import Engine, Model
from lstmserve.engine.scheduling.work import Request
from lstmserve.server.inbox import Inbox
from lstmserve.v1 import lstm_pb2 as pb
from scenarios import rows
from tenancy import limited
from tritonserving import Triton, request
from wire import Wire, serving

COUNT = 8  # sessions that step together
WAIT_S_MAX = 30
TOGETHER = [1, COUNT]  # rows of the requests: the step that holds the kernel, then all others

Step = Callable[[], Awaitable[Any]]


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """The rows of each request that an engine accepts while the block runs."""
    sizes: list[int] = []
    accept = Engine.accept

    def accept_counted(self: Engine, model: Model, request: Request) -> None:
        sizes.append(len(request))
        accept(self, model, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "accept", accept_counted)
        yield sizes


@contextlib.contextmanager
def arrivals(count: int) -> Iterator[asyncio.Event]:
    """An event that is set when `count` messages have arrived; they need not have been read."""
    are_all, arrived, put_all = asyncio.Event(), 0, Inbox.put_all

    def put_counted(self: Inbox[Any], messages: Sequence[Any]) -> None:
        nonlocal arrived
        arrived += len(messages)
        put_all(self, messages)
        if arrived >= count:
            are_all.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Inbox, "put_all", put_counted)
        yield are_all


async def sizes_of(engine: Engine, first: Step, others: Sequence[Step], count: int) -> list[int]:
    """The rows of each request that the engine accepts for a step and `count` others after it."""
    computing = engine.batch_loop.executor
    in_thread, is_held, is_released = computing.in_thread, asyncio.Event(), threading.Event()

    async def in_held_thread(work: Callable[[], Any]) -> Any:
        is_held.set()
        return await in_thread(work)

    with counted() as sizes, pytest.MonkeyPatch.context() as patch:
        patch.setattr(computing, "is_short", lambda model, batch: False)
        patch.setattr(computing, "in_thread", in_held_thread)
        held = asyncio.create_task(in_thread(is_released.wait))
        try:
            tasks = [asyncio.ensure_future(first())]
            async with asyncio.timeout(WAIT_S_MAX):
                await is_held.wait()
            with arrivals(count) as are_all:
                tasks += [asyncio.ensure_future(step()) for step in others]
                async with asyncio.timeout(WAIT_S_MAX):
                    await are_all.wait()
        finally:
            is_released.set()
        await asyncio.gather(held, *tasks)
    return sizes


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    """A server without a store."""
    async with serving(tmp_path) as wire:
        yield wire


@contextlib.asynccontextmanager
async def stored(folder: Path) -> AsyncIterator[Wire]:
    """A server that stores every step before it is answered."""
    async with gated(folder) as (wire, _):
        yield wire


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "timeout": {"timeout_s": 20.0},
    "last_only": {"return_sequences": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
async def test_the_async_client(wire: Wire, options: dict[str, Any]) -> None:
    """AsyncClient.step of many sessions is one request, whatever its options."""
    good = await wire.good()
    async with AsyncClient(wire.target) as client:
        sessions = [await client.session("m") for _ in range(COUNT)]
        x = rows(3 if "return_sequences" in options else 1, 0)
        steps = [lambda each=each: each.step(x, **options) for each in sessions]
        assert await sizes_of(wire.engine, good.step, steps, COUNT) == TOGETHER


async def test_the_client_of_threads(wire: Wire) -> None:
    """Client.step with a timeout, of as many threads, is one request."""
    good, loop = await wire.good(), asyncio.get_running_loop()
    with ThreadPoolExecutor(COUNT) as threads, Client(wire.target) as client:
        opened = [loop.run_in_executor(threads, client.session, "m") for _ in range(COUNT)]
        x = rows(1, 0)

        def stepping(session: Any) -> Step:
            return lambda: loop.run_in_executor(threads, lambda: session.step(x, timeout_s=20.0))

        steps = [stepping(each) for each in await asyncio.gather(*opened)]
        assert await sizes_of(wire.engine, good.step, steps, COUNT) == TOGETHER


async def test_streams_of_the_async_client(wire: Wire) -> None:
    """AsyncSession.stream of many sessions, a StepStream each or shared, is one request."""
    good = await wire.good()
    async with AsyncClient(wire.target) as client:
        sessions = [await client.session("m") for _ in range(COUNT)]

        async def stream(session: Any) -> None:
            assert len([y async for y in session.stream([rows(1, 0)[0]])]) == 1

        steps = [lambda each=each: stream(each) for each in sessions]
        assert await sizes_of(wire.engine, good.step, steps, COUNT) == TOGETHER


async def test_a_token_model(wire: Wire) -> None:
    """Steps of a model that takes tokens are one request, also with different lengths."""
    good = await wire.good("letters")
    async with AsyncClient(wire.target) as client:
        sessions = [await client.session("letters") for _ in range(COUNT)]
        steps = [
            lambda each=each, i=i: each.step(rows(1 + i % 3, i, "letters"))
            for i, each in enumerate(sessions)
        ]
        assert await sizes_of(wire.engine, good.step, steps, COUNT) == TOGETHER


async def test_behind_a_store(tmp_path: Path) -> None:
    """Steps of sessions that are here do not ask the store, and are one request."""
    async with stored(tmp_path) as wire, AsyncClient(wire.target) as client:
        good = await wire.good()
        sessions = [await client.session("m") for _ in range(COUNT)]
        steps = [lambda each=each: each.step(rows(1, 0)) for each in sessions]
        for _ in range(2):  # a first step, and then one of a known session
            assert await sizes_of(wire.engine, good.step, steps, COUNT) == TOGETHER


async def test_a_tenant_with_limits(models: Path, tmp_path: Path) -> None:
    """Steps of a tenant with every limit are one request."""
    limits = "sessions_max=100 pending_steps_max=100 rows_per_s=1000 pending_bytes_max=1000000"
    async with limited(models, tmp_path, limits) as running:
        client = running.client("acme")
        sessions = [await client.session("tiny") for _ in range(1 + COUNT)]
        first, *others = [lambda each=each: each.step(rows(1, 0)) for each in sessions]
        assert await sizes_of(running.engine, first, others, COUNT) == TOGETHER


@pytest.mark.parametrize("mode", ["callbacks", "asyncio", "stream", "asyncio_stream"])
async def test_the_client_of_triton(wire: Wire, triton: Triton, mode: str) -> None:
    """tritonclient's calls at once, and its stream, are one request."""
    await takes_the_path_by_triton(wire, triton, mode)


@pytest.mark.parametrize("mode", ["callbacks", "stream"])
async def test_the_client_of_triton_behind_a_store(
    tmp_path: Path, triton: Triton, mode: str
) -> None:
    """tritonclient's calls are one request, also if every step is stored."""
    async with stored(tmp_path) as wire:
        await takes_the_path_by_triton(wire, triton, mode)


async def takes_the_path_by_triton(wire: Wire, triton: Triton, mode: str) -> None:
    """Asserts that sequences that have begun step together."""
    good = await wire.good()

    def requests(*, is_start: bool) -> list[dict[str, Any]]:
        return [request(rows(1, i), 1 + i, start=is_start) for i in range(COUNT)]

    async def run(*, is_start: bool) -> None:
        answers = await triton.run(mode, wire.target, requests(is_start=is_start))
        assert [each.error for each in answers] == [None] * COUNT

    await run(is_start=True)
    steps = [lambda: run(is_start=False)]
    assert await sizes_of(wire.engine, good.step, steps, COUNT) == TOGETHER


async def test_raw_streams(wire: Wire) -> None:
    """Steps of several sessions on one StepStream, and on several, are one request."""
    good, others = await wire.good(), [await wire.good() for _ in range(COUNT)]
    streams = [wire.stream("StepStream") for _ in range(COUNT // 2)]

    async def step(i: int) -> None:
        for good in others[i :: len(streams)]:  # gRPC takes a call's writes one after the other
            await streams[i].write(good.request().SerializeToString())
        for _ in others[i :: len(streams)]:
            reply = pb.StepResponse.FromString(await streams[i].read())
            assert not reply.HasField("error")

    steps = [lambda i=i: step(i) for i in range(len(streams))]
    assert await sizes_of(wire.engine, good.step, steps, COUNT) == TOGETHER


async def test_a_message_of_many(wire: Wire) -> None:
    """AsyncClient.step_many is one request."""
    async with AsyncClient(wire.target) as client:
        inputs = {await client.session("m"): rows(1, 0) for _ in range(COUNT)}
        with counted() as sizes:
            await client.step_many(inputs, timeout_s=20.0)
    assert sizes == [COUNT]
