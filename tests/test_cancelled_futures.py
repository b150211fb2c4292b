"""Each future that a call of ours waits for is cancelled in turn, and its client gets a status.

Such a cancellation is a bug of ours and not the client's doing: without a status the client would
wait until its deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc import StatusCode

from gated import gated
from lstmserve.kserve.v2 import inference_pb2 as kserve
from lstmserve.v1 import lstm_pb2 as pb
from wire import Good, Wire, serving

X = [0.5, -1.0, 2.0]
PASSES = 100
DEADLINE_S = 15.0  # a client that hangs waits this long; a busy machine took more than 5 s
UNDISTURBED = -1
NATIVE, KSERVE = "/lstmserve.v1.LstmService/", "/inference.GRPCInferenceService/"
STREAMS = ("StepStream", "StepMany", "ModelStreamInfer")
IDLE = ("Predict", "CloseSession")  # these wait for the engine in a task
STORED = ("Step", "OpenSession", "CloseSession", "GetSession", "ModelInfer", *STREAMS)


def request(method: str, session_id: str) -> bytes:
    """A request of the method that waits for something."""
    messages: dict[str, Any] = {
        "Step": lambda: pb.StepRequest(session_id=session_id, x=X),
        "StepStream": lambda: pb.StepRequest(session_id=session_id, x=X),
        "StepMany": lambda: pb.StepManyRequest(session_ids=[session_id], x=X),
        "Predict": lambda: pb.PredictRequest(model="m", x=X),
        "OpenSession": lambda: pb.OpenSessionRequest(model="m", session_id="new"),
        "CloseSession": lambda: pb.CloseSessionRequest(session_id=session_id),
        "GetSession": lambda: pb.GetSessionRequest(session_id=session_id),
    }
    message = messages[method]() if method in messages else inference()
    return bytes(message.SerializeToString())


def inference() -> kserve.ModelInferRequest:
    """The first request of a sequence."""
    message = kserve.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, 1, 3])
    tensor.contents.fp32_contents.extend(X)
    message.parameters["sequence_id"].int64_param = 7
    message.parameters["sequence_start"].bool_param = True
    return message


@contextlib.asynccontextmanager
async def waiting(folder: Path, place: str) -> AsyncIterator[tuple[Wire, Good]]:
    """A server whose engine does not run, or whose store does not answer, and a session of it.

    A step of the session waits, and the store has not been asked for it yet.
    """
    if place == "engine":
        async with serving(folder, is_running=False) as wire:
            good = await wire.good()
            step = asyncio.create_task(good.step())
            await wire.until(lambda: wire.engine.batch_loop.pending_steps == 1)
            yield wire, good
            if not hasattr(wire, "running"):
                wire.run()
            await step
        return
    async with gated(folder) as (wire, gate):
        good = await wire.good()
        held = gate.held(are_loads=place == "load")
        held.__enter__()
        wire.run = lambda: held.__exit__(None, None, None)  # type: ignore[method-assign] # goes on
        yield wire, good


def waits_of(others: set[asyncio.Task[Any]]) -> list[asyncio.Future[Any]]:
    """The futures that the server's newer tasks wait for, in their order."""
    found = []
    for task in sorted(asyncio.all_tasks() - others, key=lambda each: each.get_name()):
        code = getattr(task.get_coro(), "cr_code", None)
        is_ours = code is not None and "/lstmserve/" in code.co_filename
        waiter = task._fut_waiter  # type: ignore[attr-defined] # asyncio has no other way to it
        if waiter is not None and is_ours:
            found.append(waiter)
    return found


async def heard(wire: Wire, method: str, session_id: str) -> StatusCode:
    """How the call ends for its client; OK also if the answer holds an error."""
    path = (KSERVE if method.startswith("Model") else NATIVE) + method
    content = request(method, session_id)
    try:
        if method not in STREAMS:
            await wire.channel.unary_unary(path)(content, timeout=DEADLINE_S)
            return StatusCode.OK
        stream = wire.channel.stream_stream(path)(timeout=DEADLINE_S)
        await stream.write(content)
        reply = await stream.read()
        assert reply is not grpc.aio.EOF
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
    except grpc.aio.AioRpcError as error:
        return error.code()
    return StatusCode.OK


@pytest.mark.parametrize(
    ("place", "method"),
    [("engine", method) for method in IDLE]
    + [(place, method) for place in ("load", "put") for method in STORED],
)
async def test_every_future_in_turn(tmp_path: Path, place: str, method: str) -> None:
    """Whichever future is cancelled, the client gets a status at once, and the server steps on."""
    turn, count = 0, 1
    while turn < count:
        folder = tmp_path / str(turn)
        folder.mkdir()
        async with waiting(folder, place) as (wire, good):
            before, started = asyncio.all_tasks(), wire.metrics.rpcs_started
            call = asyncio.create_task(heard(wire, method, good.id))
            await wire.until(lambda: wire.metrics.rpcs_started > started)  # noqa: B023 -- awaited
            await wire.until(lambda: len(waits_of(before)) >= 1)  # noqa: B023 -- awaited
            for _ in range(PASSES):
                await asyncio.sleep(0)
            waits = waits_of(before)
            count = len(waits)
            if turn < count:
                waits[turn].cancel()
                print(turn, count, waits[turn])
            wire.run()
            code = await call
            print(code)
            assert code in (StatusCode.OK, StatusCode.INTERNAL, StatusCode.UNAVAILABLE)
            other = await wire.good()
            await other.step()
        turn += 1


@pytest.mark.parametrize("method", STREAMS)
async def test_a_wait_for_bytes_that_is_cancelled(tmp_path: Path, method: str) -> None:
    """A client gets a status if the wait for room in the budget fails, while its stream is not
    read."""
    async with serving(tmp_path) as wire:
        good, other = await wire.good(), await wire.good()
        account = wire.door.tenant(None).account  # type: ignore[arg-type]  # anyone
        lease = wire.pending.enter(account, 1)
        lease.resize(wire.pending.bytes_max)
        before = asyncio.all_tasks()
        call = asyncio.create_task(heard(wire, method, good.id))
        await wire.until(lambda: len(waits_of(before)) == 1)
        waits_of(before)[0].cancel()
        assert await call is StatusCode.INTERNAL
        lease.release()
        await other.step()
