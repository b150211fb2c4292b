"""The client library steps through a router that loses, repeats and delays: each step counts once.

Every session mixes all ways to step: Step, StepStream and StepMany.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lossy import Fate, LossyRouter
from lstmserve import AsyncClient
from lstmserve.client import AsyncSession
from lstmserve.wire.v1 import lstm_pb2 as wire
from soak.conversation import Floats
from soak.findings import Violations
from soak.fleet import MODEL, Fleet, fleet_of

TRY_S = 0.25  # soon enough to notice a lost message, late enough for a busy machine
ROUTERS, TOGETHER_MAX = 4, 12
THREADS = 96  # each stream takes one


class Witness(LossyRouter):
    """Sees every reply to a Step or on a StepStream, also the replies that the router loses."""

    def __init__(self, target: str, seed: int, threads: int) -> None:
        self._outputs: dict[tuple[str, int], bytes] = {}
        self.heard_again = self.changed = 0
        super().__init__(target, seed, threads)

    def heard(self, name: str, request: bytes | None, reply: bytes) -> None:
        """Compares the reply with earlier ones to the same step."""
        if name not in ("Step", "StepStream"):
            return
        answer = wire.StepResponse.FromString(reply)
        if answer.HasField("error"):
            return
        asked = wire.StepRequest.FromString(request) if request else answer
        key = asked.session_id, answer.step
        self.heard_again += key in self._outputs
        self.changed += self._outputs.setdefault(key, answer.y) != answer.y


@dataclass(kw_only=True)
class Found:
    """What one run found. `applied` and `replayed` are the server's counters."""

    sessions: int
    steps: int = 0  # numbered steps that were answered
    applied: float = 0
    replayed: float = 0
    heard_again: int = 0  # replies that were compared with an earlier one to their step
    fates: Counter[tuple[str, Fate]] = field(default_factory=Counter)
    violations: Violations = field(default_factory=Violations)

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        self.violations.check()
        assert self.applied == self.steps > 0
        assert self.replayed > 0, "nothing was ever repeated"
        assert self.heard_again > 0
        assert set(self.fates) == set(itertools.product(("request", "reply"), Fate))

    def figures(self) -> str:
        """The figures in one line, for people."""
        found = self.violations
        fates = {
            f"{kind} {fate.name.lower()}": count
            for (kind, fate), count in sorted(self.fates.items(), key=lambda each: each[0][0])
            if fate is not Fate.FINE
        }
        return (
            f"{self.steps} steps of {self.sessions} sessions by Step, StepStream and StepMany, of "
            f"{self.fates.total()} messages {fates}: the server applied {self.applied:.0f} and "
            f"answered {self.replayed:.0f} from its record; doubled {found.doubled}, lost "
            f"{found.lost}, other bits in {found.changed} of {self.heard_again} replies that came "
            f"again, and in the outputs or final states of {found.wrong} sessions"
        )


def run(folder: Path, *, steps: int, sessions: int, seed: int = 0) -> Found:
    """Makes about `steps` steps, with `sessions` sessions at once."""
    found = Found(sessions=sessions)
    print(f"seed {seed}")
    with fleet_of(folder, 1) as fleet:
        serving = fleet.pods[0].serving
        routers = [Witness(serving.target, seed + i, THREADS) for i in range(ROUTERS)]
        try:
            asyncio.run(_run(fleet, found, routers, steps, seed))
        finally:
            for router in routers:
                router.stop()
        found.replayed = serving.metric("lstm_steps_replayed_total")
        found.applied = serving.metric("lstm_steps_total", code="OK") - found.replayed
    for router in routers:
        found.fates += router.fates
        found.violations.changed += router.changed
        found.heard_again += router.heard_again
    return found


async def _run(fleet: Fleet, found: Found, routers: list[Witness], steps: int, seed: int) -> None:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncClient(router.target, timeout_s=TRY_S, groups=8))
            for router in routers
        ]
        for client in clients:
            await client.models()  # the client gives up early on a server that it has never reached
        walks = [
            _walk(fleet, found, clients[i % ROUTERS], steps // found.sessions, [seed, i])
            for i in range(found.sessions)
        ]
        await asyncio.gather(*walks)


async def _walk(
    fleet: Fleet, found: Found, client: AsyncClient, steps: int, seed: list[int]
) -> None:
    """Runs one session from its first step to its last, and compares it with the oracle."""
    rng = np.random.default_rng(seed)
    session = await client.session(MODEL)
    xs: list[Floats] = []
    ys: list[Floats] = []
    while session.step_count < steps:
        some = [
            rng.standard_normal((int(n), fleet.spec.input_size)).astype(np.float32)
            for n in rng.choice([1, 2, 7], rng.integers(1, TOGETHER_MAX))
        ]
        ys += await step_all(client, session, some, int(rng.integers(3)))
        xs += some
    info = await session.info()
    found.violations.lost += max(0, session.step_count - info.step)
    found.violations.doubled += max(0, info.step - session.step_count)
    y, *state = fleet.oracle.run(np.concatenate(xs))
    is_right = np.array_equal(np.concatenate(ys), y)
    for part, expected in zip(await session.state(), state, strict=True):
        is_right &= np.array_equal(part, expected)
    found.violations.wrong += not is_right
    found.steps += session.step_count


async def step_all(
    client: AsyncClient, session: AsyncSession, xs: list[Floats], way: int
) -> list[Floats]:
    """Steps each input in one of three ways. Returns the y of each."""
    match way:
        case 0:
            return [await session.step(x) for x in xs]
        case 1:
            return [(await client.step_many({session: x}))[session] for x in xs]
        case _:
            return [y async for y in session.stream(xs, window=1)]
