"""The kinds of clients that a long-running server meets, with how often each comes.

Weights are those of Triton's L0_long_running_stress (qa/, stress.py): its ResNet is our Predict,
its perf analyzer our StepMany. Sequences are of normal(16, 8) steps, two ids are used again and
again and eight now and then, as there.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
from grpc import StatusCode

from lstmserve.wire.v1 import lstm_pb2 as wire
from serving import environment
from soak.calls import Calls, Refused
from soak.fleet import MODEL, Fleet

Floats = npt.NDArray[np.float32]

LENGTH_MEAN, LENGTH_DEVIATION = 16, 8
COMMON, RARE, RARE_PART = 2, 8, 0.1
BLOCK = 32  # sessions of a StepMany
LONG_ROWS = 5000
ANSWERS_BEFORE_CRASH = 20
ROWS_AHEAD_MAX = 100


class Tally(Protocol):
    """Where scenarios count."""

    wrong: int
    applied: int
    unknown: int


class Client:
    """One worker's connection for one scenario."""

    def __init__(
        self, fleet: Fleet, calls: Calls, rng: np.random.Generator, worker: int, tally: Tally
    ) -> None:
        self.fleet, self.calls, self.rng, self.tally = fleet, calls, rng, tally
        self.serving = fleet.pods[0].serving
        is_rare = rng.random() < RARE_PART
        number = rng.integers(RARE) + COMMON if is_rare else rng.integers(COMMON)
        self.name = f"w{worker}-{number}"

    def x(self, rows: int) -> Floats:
        """Random rows [rows, I]."""
        return self.rng.standard_normal((rows, self.fleet.spec.input_size)).astype(np.float32)

    def check(self, y: bytes, expected: Floats) -> None:
        """Counts wrong bits."""
        self.tally.wrong += y != expected.tobytes()

    async def open(self, name: str) -> int:
        """A new session under the id, whoever had it; its incarnation."""
        request = wire.OpenSessionRequest(
            model=MODEL, session_id=name, if_exists=wire.IF_EXISTS_RESTART
        )
        reply = await self.calls.call(
            self.serving, "OpenSession", request, wire.OpenSessionResponse
        )
        return int(reply.session.incarnation)

    async def close(self) -> None:
        """Ends the session."""
        request = wire.CloseSessionRequest(session_id=self.name)
        await self.calls.call(self.serving, "CloseSession", request, wire.CloseSessionResponse)

    async def sequence(self) -> None:
        """Opens a session and streams a whole sequence, which stays open."""
        incarnation = await self.open(self.name)
        length = max(1, int(self.rng.normal(LENGTH_MEAN, LENGTH_DEVIATION)))
        x = self.x(length)
        requests = [
            wire.StepRequest(
                session_id=self.name, step=i + 1, incarnation=incarnation, x=row.tobytes()
            )
            for i, row in enumerate(x)
        ]
        replies = await self.calls.stream(self.serving, "StepStream", requests, wire.StepResponse)
        assert not any(reply.HasField("error") for reply in replies), replies
        self.tally.applied += len(replies)
        self.check(b"".join(reply.y for reply in replies), self.fleet.oracle.run(x)[0])


async def valid(client: Client) -> None:
    """A sequence from start to end."""
    await client.sequence()
    await client.close()


async def valid_valid(client: Client) -> None:
    """Two sequences under one id, one after the other."""
    await valid(client)
    await valid(client)


async def valid_no_end(client: Client) -> None:
    """Two sequences under one id; the second is never closed."""
    await valid(client)
    await client.sequence()


async def no_end(client: Client) -> None:
    """A sequence that is never closed: it expires, or its id is taken again."""
    await client.sequence()


async def no_start(client: Client) -> None:
    """A step of a session that was never opened."""
    request = wire.StepRequest(session_id=f"{client.name}-never", x=client.x(1).tobytes())
    try:
        await client.calls.step(client.serving, request)
    except Refused as error:
        if error.reason != "SESSION_NOT_FOUND":
            raise
    else:
        raise AssertionError("a session out of nothing")


async def timeout(client: Client) -> None:
    """A deadline far too short for its step; the same number is then answered in peace."""
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


async def crash(client: Client) -> None:
    """A client process that is killed in the middle of its stream."""
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
    # The client sends several rows as one step: how many steps it were, it knows alone.
    client.tally.unknown += ANSWERS_BEFORE_CRASH + rest.count(b"answered\n") + ROWS_AHEAD_MAX


async def predict(client: Client) -> None:
    """A whole sequence, of no session."""
    x = client.x(max(1, int(client.rng.normal(LENGTH_MEAN, LENGTH_DEVIATION))))
    request = wire.PredictRequest(model=MODEL, lengths=[len(x)], x=x.tobytes())
    reply = await client.calls.call(client.serving, "Predict", request, wire.PredictResponse)
    client.check(reply.y, client.fleet.oracle.run(x)[0])


async def load(client: Client) -> None:
    """A gateway: many sessions in each message."""
    names = [f"{client.name}-{i}" for i in range(BLOCK)]
    incarnations = await asyncio.gather(*(client.open(name) for name in names))
    length = max(1, int(client.rng.normal(LENGTH_MEAN, LENGTH_DEVIATION)))
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


Scenario = Callable[[Client], Awaitable[None]]
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
