"""What a message costs from its bytes to its reply's, without gRPC. Run by `make bench`.

It measures everything that lstmserve does for a Step, for N Steps at once, for a StepMany and for a
Predict, except the transport. A change of the path shows here first. Timings are never pass or
fail.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from calling import Caller, CallerFrame, Sender
from lstmserve.engine import Engine
from lstmserve.head_layers import Linear
from lstmserve.server.access.auth import AnonymousAuthenticator
from lstmserve.server.native.predict import PredictCalls
from lstmserve.server.native.step_many import StepManyCalls
from lstmserve.server.native.steps import StepCalls
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.server import quiet_collector
from lstmserve.server.steps import Steps
from lstmserve.spec import LstmSpec
from lstmserve.tokens import Limits
from lstmserve.wire.v1 import lstm_pb2 as pb
from traffic import open_session, start_engine

SPEC = LstmSpec(16, 128, head=(Linear(8),))
TENANT = AnonymousAuthenticator(Limits()).tenant(None)  # type: ignore[arg-type]  # anyone
PENDING = PendingBytes(1 << 30)
MANY = 256

T = TypeVar("T")
Do = Callable[[Awaitable[T]], T]


@contextmanager
def running(folder: Path) -> Iterator[tuple[Engine, Metrics, Do[Any]]]:
    """An engine with its model, its metrics, and a function that runs a coroutine beside it."""
    loop = asyncio.new_event_loop()

    async def start() -> asyncio.Task[None]:
        return asyncio.create_task(engine.run())

    engine = start_engine(folder, SPEC)
    task = loop.run_until_complete(start())
    quiet_collector()
    yield engine, Metrics(CollectorRegistry(), lambda read: read()), loop.run_until_complete
    loop.run_until_complete(engine.close(5))
    loop.run_until_complete(task)
    loop.close()


class Replies(Sender):
    """A stream whose replies are read one by one."""

    def __init__(self) -> None:
        super().__init__()
        self._has_one = asyncio.Event()

    def write(self, content: bytes) -> None:
        """Takes a reply, in place of StreamCall.write."""
        super().write(content)
        self._has_one.set()

    async def next(self) -> bytes:
        """The next reply."""
        await self._has_one.wait()
        self._has_one.clear()
        return self.replies.pop()


def _sessions(engine: Engine, count: int) -> tuple[list[str], list[int]]:
    """Opens sessions. Returns their ids and incarnations."""
    ids = [f"{i:032x}" for i in range(count)]
    rows = [open_session(engine, each) for each in ids]
    return ids, engine.table.incarnation[rows].tolist()


def _input(rows: int) -> bytes:
    shape = (rows, SPEC.input_size)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32).tobytes()


def _rounds(engine: Engine, count: int) -> Iterator[list[bytes]]:
    """Endless rounds of numbered steps, one step of each session in a round."""
    sessions, x = _sessions(engine, count), _input(1)
    for number in itertools.count(1):
        yield [
            pb.StepRequest(session_id=each, incarnation=k, step=number, x=x).SerializeToString()
            for each, k in zip(*sessions, strict=True)
        ]


@pytest.mark.parametrize("count", [1, 8, 32])
def test_steps(tmp_path: Path, benchmark: Any, count: int) -> None:
    """Unary Steps that arrive together, from bytes to bytes."""
    with running(tmp_path) as (engine, metrics, do):
        frame = CallerFrame(
            AnonymousAuthenticator(Limits()), metrics, PENDING, call_s_max=60.0, write_s_max=60.0
        )
        calls = do(_started(lambda: StepCalls(engine, Steps(engine, metrics), PENDING)))
        rounds = _rounds(engine, count)

        async def answer(messages: list[bytes]) -> list[bytes]:
            callers = [Caller(each, TENANT, PENDING) for each in messages]
            calls.receive(frame, callers)  # type: ignore[arg-type]  # Callers are what it sees
            return [await caller.done for caller in callers]

        replies = benchmark.pedantic(
            lambda messages: do(answer(messages)),
            setup=lambda: ((next(rounds),), {}),
            rounds=1000,
            warmup_rounds=20,
        )
    assert all(pb.StepResponse.FromString(each).step for each in replies)


def test_step_many(tmp_path: Path, benchmark: Any) -> None:
    """A StepMany message of 256 sessions; the first message named them."""
    with running(tmp_path) as (engine, metrics, do):
        calls, replies = StepManyCalls(engine, metrics, PENDING), do(_started(Replies))
        stream = do(_started(lambda: calls.begin(replies, TENANT)))  # type: ignore[arg-type]
        replies.conversation = stream
        ids, incarnations = _sessions(engine, MANY)
        request = pb.StepManyRequest(session_ids=ids, incarnations=incarnations, x=_input(MANY))

        async def answer(content: bytes) -> bytes:
            stream.receive(content)
            return await replies.next()

        def message() -> Any:
            number = request.steps[0] + 1 if request.steps else 1
            if number > 1:
                del request.session_ids[:]
            del request.steps[:]
            request.steps.extend([number] * MANY)
            return ((request.SerializeToString(),), {})

        reply = benchmark.pedantic(
            lambda content: do(answer(content)), setup=message, rounds=1000, warmup_rounds=20
        )
    assert not pb.StepManyResponse.FromString(reply).errors


def test_predict(tmp_path: Path, benchmark: Any) -> None:
    """A Predict of 64 ragged sequences."""
    lengths = np.random.default_rng(0).integers(1, 65, 64).tolist()
    request = pb.PredictRequest(model="m", lengths=lengths, x=_input(sum(lengths)))
    with running(tmp_path) as (engine, metrics, do):
        calls, lease = PredictCalls(engine, metrics), PENDING.enter(TENANT.account, 1)
        reply = benchmark.pedantic(
            lambda: do(calls.predict(request, TENANT, lease)), rounds=200, warmup_rounds=5
        )
    assert len(reply.y) == 4 * sum(lengths) * SPEC.output_size


async def _started(make: Callable[[], T]) -> T:
    """Calls `make` on the loop."""
    return make()
