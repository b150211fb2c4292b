"""Calls that end early: deadlines, cancellation at any moment, faults of our own, over the wire.

Every call gets a status, no step is half applied, and neighbours are exact.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode

from lstmserve.server.native.steps import UnaryStep
from lstmserve.v1 import lstm_pb2 as pb
from wire import Wire, serving

X = [0.5, -1.0, 2.0]


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    """A server with small slices."""
    async with serving(tmp_path, slice_rows_max=4) as wire:
        yield wire


@pytest.fixture
async def idle(tmp_path: Path) -> AsyncIterator[Wire]:
    """A server whose engine does not run until the test starts it."""
    async with serving(tmp_path, is_running=False) as wire:
        yield wire


async def test_a_deadline_before_compute(idle: Wire) -> None:
    """A unary call whose deadline passes in the queue ends so, and its step is never applied."""
    a, b = await idle.good(), await idle.good()
    waiting = asyncio.create_task(b.step())
    content = pb.StepRequest(session_id=a.id, x=X).SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await idle.send("Step", content, timeout=0.2)
    assert failure.value.code() is StatusCode.DEADLINE_EXCEEDED
    await idle.until(lambda: idle.metrics.rpc("Step", "unary").handled["Canceled"] == 1)
    idle.run()
    await waiting
    await a.step()
    await a.check_state()


@pytest.mark.parametrize("length", [1, 30])
@pytest.mark.parametrize("moment", [0, 1, 2, 3, 5, 8, 13, 21, 34])
async def test_a_step_cancelled_at_any_moment(wire: Wire, length: int, moment: int) -> None:
    """It is applied wholly or not at all, and its session and a neighbour go on exactly."""
    a, neighbour = await wire.good(), await wire.good()
    await a.step()
    beside = [asyncio.create_task(neighbour.step(30))]
    content = a.request(length).SerializeToString()
    call = asyncio.create_task(wire.send("Step", content))
    for _ in range(moment):
        await asyncio.sleep(0)
    call.cancel()
    applied = await wire.settled(a.id)
    assert applied in (1, 2)
    print(f"applied {applied - 1}")
    a.xs = a.xs[:applied]
    await a.step(3)
    await a.check_state()
    await asyncio.gather(*beside)
    await neighbour.check_state()


async def test_callers_that_leave_the_queue(idle: Wire) -> None:
    """Of many waiting calls some are cancelled, and the others are applied, in order, exactly."""
    sessions = [await idle.good() for _ in range(12)]
    calls = [asyncio.create_task(s.step(1 + i % 3)) for i, s in enumerate(sessions)]
    await idle.until(lambda: idle.engine.batch_loop.pending_steps == 12)
    for call in calls[::3]:
        call.cancel()
    await idle.until(lambda: idle.metrics.rpc("Step", "unary").handled["Canceled"] == 4)
    idle.run()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(each, asyncio.CancelledError) for each in done] == [
        i % 3 == 0 for i in range(12)
    ]
    for i, session in enumerate(sessions):
        if i % 3 == 0:
            session.xs.clear()
        await session.step()
        await session.check_state()


async def test_a_message_of_many_whose_caller_leaves(idle: Wire) -> None:
    """No part of a cancelled StepMany that had not begun is applied."""
    sessions = [await idle.good() for _ in range(3)]
    ids = [s.id for s in sessions]
    stream = idle.stream("StepMany")
    request = pb.StepManyRequest(session_ids=ids, lengths=[1, 40, 1], x=X * 42)
    await stream.write(request.SerializeToString())
    await idle.until(lambda: idle.engine.batch_loop.pending_steps == 3)
    stream.cancel()
    await idle.until(lambda: idle.metrics.rpcs_handled == idle.metrics.rpcs_started)
    idle.run()
    for session in sessions:
        assert await idle.settled(session.id) == 0
        await session.step()


async def test_closing_waits_for_its_steps(idle: Wire) -> None:
    """Close answers after the pending steps, and one whose caller leaves still closes the
    session."""
    a, b = await idle.good(), await idle.good()
    steps = [asyncio.create_task(a.step()), asyncio.create_task(b.step())]
    await idle.until(lambda: idle.engine.batch_loop.pending_steps == 2)
    closing, leaving = [
        asyncio.create_task(idle.call("CloseSession", session_id=each.id)) for each in (a, b)
    ]
    await idle.until(lambda: idle.metrics.rpc("CloseSession", "unary").started == 2)
    leaving.cancel()
    content = pb.StepRequest(session_id=a.id, x=X).SerializeToString()
    assert (await idle.refused("Step", content)).reason == "SESSION_CLOSED"
    replaced = pb.CloseSessionRequest(session_id=a.id, incarnation=7).SerializeToString()
    assert (await idle.refused("CloseSession", replaced)).reason == "SESSION_REPLACED"
    idle.run()
    await asyncio.gather(*steps)
    assert (await closing).step == 1
    for each in (a, b):
        assert (await idle.call("CloseSession", session_id=each.id)).step == 1


async def test_restarting_ends_the_steps_that_wait(idle: Wire) -> None:
    """Steps of a replaced session get an error that says so, and the new one starts from zeros."""
    a = await idle.good()
    step = asyncio.create_task(
        idle.refused("Step", pb.StepRequest(session_id=a.id, x=X).SerializeToString())
    )
    await idle.until(lambda: idle.engine.batch_loop.pending_steps == 1)
    await idle.open(session_id=a.id, if_exists=pb.IF_EXISTS_RESTART)
    idle.run()
    assert (await step).reason == "SESSION_REPLACED"
    await a.step()
    await a.check_state()


async def test_a_future_of_ours_that_is_cancelled_is_a_status(idle: Wire) -> None:
    """When the server cancels what a call waits for, the call ends with a status."""
    request = pb.PredictRequest(model="m", x=X)
    call = asyncio.create_task(idle.refused("Predict", request.SerializeToString()))
    await idle.until(lambda: idle.engine.batch_loop.pending_steps == 1)
    (task,) = [t for t in asyncio.all_tasks() if t.get_name().endswith("/Predict")]
    task._fut_waiter.cancel()
    said = await call
    assert (said.code, said.reason) == (StatusCode.INTERNAL, "INTERNAL")
    idle.run()
    b = await idle.good()
    await b.step()


@pytest.mark.parametrize("steps", [0, 8])
@pytest.mark.parametrize("is_calling", [True, False])
async def test_no_test_waits_for_an_engine_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, is_calling: bool
) -> None:
    """A bug in a responder ends the test with that bug, whether it waits for a call or for the
    engine, and also if the bug is in the call of a lone step."""

    def planted(*_: object) -> None:
        raise RuntimeError("planted")

    async def stepping() -> None:
        async with serving(tmp_path) as wire:
            session = await wire.good()
            for _ in range(steps):
                await session.step()
            monkeypatch.setattr(UnaryStep, "applied", planted)
            step = asyncio.ensure_future(session.step())
            ends.append(step)
            await (step if is_calling else wire.until(lambda: False))

    ends: list[asyncio.Future[None]] = []
    with pytest.raises(RuntimeError, match="planted"):
        await stepping()
    assert await asyncio.gather(*ends, return_exceptions=True) != [None]


async def test_unknown_methods(wire: Wire) -> None:
    """gRPC answers a call of an unknown method, and the session beside it goes on."""
    a = await wire.good()
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await wire.send("Nothing", b"")
    assert failure.value.code() is StatusCode.UNIMPLEMENTED
    await a.step()
