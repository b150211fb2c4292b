"""The kinds of clients that a long-running server meets, and how often each comes.

The weights are those of Triton's L0_long_running_stress (qa/, stress.py), with Predict for its
ResNet and StepMany for its perf analyzer.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import numpy as np
from grpc import StatusCode

from lstmserve.wire.v1 import lstm_pb2 as wire
from serving import environment
from soak.calls import Refused
from soak.fleet import MODEL
from soak.visitor import Visitor

BLOCK = 32  # sessions of a StepMany
LONG_ROWS = 5000
ANSWERS_BEFORE_CRASH = 20
ROWS_AHEAD_MAX = 100


async def valid(client: Visitor) -> None:
    """Runs a sequence from start to end."""
    await client.sequence()
    await client.close()


async def valid_valid(client: Visitor) -> None:
    """Runs two sequences under one id, one after the other."""
    await valid(client)
    await valid(client)


async def valid_no_end(client: Visitor) -> None:
    """Runs two sequences under one id; the second is never closed."""
    await valid(client)
    await client.sequence()


async def no_end(client: Visitor) -> None:
    """Runs a sequence that is never closed: it expires, or another one takes its id."""
    await client.sequence()


async def no_start(client: Visitor) -> None:
    """Sends a step of a session that was never opened."""
    request = wire.StepRequest(session_id=f"{client.name}-never", x=client.x(1).tobytes())
    try:
        await client.calls.step(client.serving, request)
    except Refused as error:
        if error.reason != "SESSION_NOT_FOUND":
            raise
    else:
        raise AssertionError("a session out of nothing")


async def timeout(client: Visitor) -> None:
    """Sends a step with a deadline that is far too short, and then the same number without one."""
    incarnation = await client.open(client.name)
    x = client.x(LONG_ROWS)
    request = wire.StepRequest(
        session_id=client.name,
        step=1,
        incarnation=incarnation,
        length=len(x),
        x=x.tobytes(),
        last_only=True,
    )
    try:
        await client.calls.step(client.serving, request, timeout_s=0.005)
    except Refused as error:
        if error.code is not StatusCode.DEADLINE_EXCEEDED:
            raise
        client.tally.unknown += 1
    else:
        client.tally.applied += 1
    reply = await client.calls.step(client.serving, request)
    client.tally.applied += 1
    client.check(reply.y, client.fleet.oracle.run(x)[0][-1])
    await client.close()


async def crash(client: Visitor) -> None:
    """Runs a client process that is killed in the middle of its stream."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "soak.crasher", client.serving.target, client.name),
        env=environment(PYTHONPATH=":".join(sys.path)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    for _ in range(ANSWERS_BEFORE_CRASH):
        assert await process.stdout.readline() == b"answered\n"
    process.kill()
    rest = await process.stdout.read()
    await process.wait()
    # The client sends several rows as one step, so only it knows how many steps there were.
    client.tally.unknown += ANSWERS_BEFORE_CRASH + rest.count(b"answered\n") + ROWS_AHEAD_MAX


async def predict(client: Visitor) -> None:
    """Sends a whole sequence without a session."""
    x = client.x(client.length())
    request = wire.PredictRequest(model=MODEL, lengths=[len(x)], x=x.tobytes())
    reply = await client.calls.call(client.serving, "Predict", request, wire.PredictResponse)
    client.check(reply.y, client.fleet.oracle.run(x)[0])


async def load(client: Visitor) -> None:
    """Acts as a gateway: many sessions in each message."""
    names = [f"{client.name}-{i}" for i in range(BLOCK)]
    incarnations = await asyncio.gather(*(client.open(name) for name in names))
    length = client.length()
    x = client.x(length * BLOCK).reshape(length, BLOCK, -1)
    requests = [
        wire.StepManyRequest(
            session_ids=names,
            steps=[i + 1] * BLOCK,
            incarnations=incarnations,
            x=rows.tobytes(),
        )
        for i, rows in enumerate(x)
    ]
    replies = await client.calls.stream(client.serving, "StepMany", requests, wire.StepManyResponse)
    assert not any(reply.errors or reply.HasField("error") for reply in replies), replies
    client.tally.applied += BLOCK * len(replies)
    shape = (length, BLOCK, client.fleet.spec.output_size)
    y = np.frombuffer(b"".join(reply.y for reply in replies), np.float32).reshape(shape)
    for i in range(BLOCK):
        client.check(y[:, i].tobytes(), client.fleet.oracle.run(x[:, i].copy())[0])


Scenario = Callable[[Visitor], Awaitable[None]]
SCENARIOS: dict[Scenario, int] = {
    valid: 295,
    load: 300,
    predict: 80,
    valid_valid: 68,
    valid_no_end: 68,
    no_end: 62,
    timeout: 60,
    crash: 60,
    no_start: 7,
}
