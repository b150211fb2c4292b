"""What a message costs from its bytes to its reply's, without gRPC. Run by `make bench`.

Everything lstmserve does for a Step, N of them at once, for a StepMany and for a Predict, but for
the transport: a change of the path shows here first. Timings are never pass or fail.
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

from calling import Caller, CallerFrame, Sender, answered
from lstmserve.engine import Engine
from lstmserve.server.access.doors import OpenDoor
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.inbox import Inbox
from lstmserve.server.native.crowd import Crowd
from lstmserve.server.native.many_calls import ManyCalls
from lstmserve.server.native.predict_calls import PredictCalls
from lstmserve.server.native.step_calls import StepCalls
from lstmserve.server.native.steps import Steps
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.server import quiet_collector
from lstmserve.spec import Linear, ModelSpec
from lstmserve.tokens import Limits
from lstmserve.wire.v1 import lstm_pb2 as pb
from traffic import open_session, start_engine

SPEC = ModelSpec(16, 128, head=(Linear(8),))
TENANT = Tenant("", Limits())
PENDING = PendingBytes(1 << 30)
MANY = 256

T = TypeVar("T")
Do = Callable[[Awaitable[T]], T]


@contextmanager
def running(folder: Path) -> Iterator[tuple[Engine, Metrics, Do[Any]]]:
    """An engine with its model, metrics of its own, and what awaits something beside it."""
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


def _step_calls(engine: Engine, metrics: Metrics) -> StepCalls:
    steps = Steps(engine, metrics)
    door = OpenDoor(Limits())
    frame = CallerFrame(door, metrics, PENDING, call_s_max=60.0, write_s_max=60.0)
    return StepCalls(steps, Inbox(engine.driver, Crowd(engine, steps).read), frame)


def _sessions(engine: Engine, count: int) -> tuple[list[str], list[int]]:
    """Ids and incarnations."""
    ids = [f"{i:032x}" for i in range(count)]
    rows = [open_session(engine, each) for each in ids]
    return ids, engine.table.incarnation[rows].tolist()


def _input(rows: int) -> bytes:
    shape = (rows, SPEC.input_size)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32).tobytes()


def _rounds(engine: Engine, count: int) -> Iterator[list[bytes]]:
    """Numbered steps of so many sessions, round after round."""
    sessions, x = _sessions(engine, count), _input(1)
    for number in itertools.count(1):
        yield [
            pb.StepRequest(session_id=each, incarnation=k, step=number, x=x).SerializeToString()
            for each, k in zip(*sessions, strict=True)
        ]


@pytest.mark.parametrize("count", [1, 8, 32])
def test_steps(tmp_path: Path, benchmark: Any, count: int) -> None:
    """So many unary Steps that arrive together, bytes in, bytes out."""
    with running(tmp_path) as (engine, metrics, do):
        calls = do(_started(lambda: _step_calls(engine, metrics)))
        rounds = _rounds(engine, count)

        async def answer(messages: list[bytes]) -> list[bytes]:
            return await asyncio.gather(
                *(answered(calls.receive, Caller(each, TENANT, PENDING)) for each in messages)
            )

        replies = benchmark.pedantic(
            lambda messages: do(answer(messages)),
            setup=lambda: ((next(rounds),), {}),
            rounds=1000,
            warmup_rounds=20,
        )
    assert all(pb.StepResponse.FromString(each).step for each in replies)


def test_step_many(tmp_path: Path, benchmark: Any) -> None:
    """A StepMany message of 256 sessions, the first of which named them."""
    with running(tmp_path) as (engine, metrics, do):
        sender = do(_started(Sender))
        sender.conversation = ManyCalls(engine, metrics, PENDING).begin(sender, TENANT)
        ids, incarnations = _sessions(engine, MANY)
        request = pb.StepManyRequest(session_ids=ids, incarnations=incarnations, x=_input(MANY))

        async def answer(content: bytes) -> bytes:
            sender.conversation.receive(content)
            while not sender.replies:  # noqa: ASYNC110 -- the engine takes a pass or two
                await asyncio.sleep(0)
            return sender.replies.pop()

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
        calls = PredictCalls(engine, metrics)
        lease = PENDING.enter(TENANT.account, request.ByteSize())
        reply = benchmark.pedantic(
            lambda: do(calls.predict(request, TENANT, lease)), rounds=200, warmup_rounds=5
        )
    assert len(reply.y) == 4 * sum(lengths) * SPEC.output_size


async def _started(make: Callable[[], T]) -> T:
    """What must be made on the loop."""
    return make()
