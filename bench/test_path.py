"""What a message costs from its bytes to its reply's, without gRPC. Run by `make bench`.

Everything lstmserve does for a Step, N of them at once, but for the transport: a change of the
path shows here first. Timings are never pass or fail.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from lstmserve.engine import Engine
from lstmserve.server.access.doors import OpenDoor
from lstmserve.server.inbox import Inbox
from lstmserve.server.native.crowd import Crowd
from lstmserve.server.native.step_calls import StepCalls
from lstmserve.server.native.steps import Steps
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.rpc import Frame
from lstmserve.server.server import quiet_collector
from lstmserve.spec import Linear, ModelSpec
from lstmserve.tokens import Limits
from lstmserve.wire.v1 import lstm_pb2 as pb
from traffic import open_session, start_engine

SPEC = ModelSpec(16, 128, head=(Linear(8),))
CONTEXT: Any = SimpleNamespace(time_remaining=lambda: 60.0)  # a call with a deadline of its own


def _calls(engine: Engine) -> StepCalls:
    metrics = Metrics(CollectorRegistry(), lambda read: read())
    steps = Steps(engine, metrics)
    frame = Frame(OpenDoor(Limits(None, None, None)), metrics, 60.0)
    return StepCalls(steps, Inbox(engine.driver, Crowd(engine, steps).read), frame)


def _rounds(engine: Engine, count: int) -> Iterator[list[bytes]]:
    """Numbered steps of so many sessions, round after round."""
    ids = [f"{i:032x}" for i in range(count)]
    rows = [open_session(engine, each) for each in ids]
    incarnations = engine.table.incarnation[rows].tolist()
    x = np.random.default_rng(0).standard_normal(SPEC.input_size).astype(np.float32).tobytes()
    for number in itertools.count(1):
        yield [
            pb.StepRequest(session_id=each, incarnation=k, step=number, x=x).SerializeToString()
            for each, k in zip(ids, incarnations, strict=True)
        ]


@pytest.mark.parametrize("count", [1, 8, 32])
def test_steps(tmp_path: Path, benchmark: Any, count: int) -> None:
    """So many unary Steps that arrive together, bytes in, bytes out."""
    loop = asyncio.new_event_loop()

    async def start() -> tuple[StepCalls, asyncio.Task[None]]:
        return _calls(engine), asyncio.create_task(engine.run())

    async def answer(messages: list[bytes]) -> list[bytes]:
        return await asyncio.gather(*(calls.step(each, CONTEXT) for each in messages))

    engine = start_engine(tmp_path, SPEC)
    calls, running = loop.run_until_complete(start())
    rounds = _rounds(engine, count)
    quiet_collector()
    replies = benchmark.pedantic(
        lambda messages: loop.run_until_complete(answer(messages)),
        setup=lambda: ((next(rounds),), {}),
        rounds=1000,
        warmup_rounds=20,
    )
    assert all(pb.StepResponse.FromString(each).step for each in replies)
    loop.run_until_complete(engine.close(5))
    loop.run_until_complete(running)
    loop.close()
