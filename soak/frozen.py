"""A frozen server whose sessions moved on wakes up: what it still writes and answers is harmless.

It is frozen with calls on their way to it and, in `behind` mode, with steps that no store has.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from serving import Serving
from soak.calls import Calls, Refused
from soak.conversation import Conversation
from soak.crowd import BEHIND_S
from soak.findings import Violations, add
from soak.fleet import Fleet, fleet_of
from soak.timing import pause
from storing import Valkey

STEPS = 5
ON_ITS_WAY_S = 0.2


@dataclass
class Found:
    """What one run found. Late calls reach the stale owner after their session has moved."""

    mode: str
    moved: int = 0
    late_refused: int = 0
    late_answered: int = 0  # behind: calls that the stale copy answered; later the steps were lost
    late_wrong: int = 0
    fenced_writes: float = 0
    violations: Violations = field(default_factory=Violations)

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        self.violations.check()
        assert self.moved > 0
        assert self.late_refused + self.late_answered == self.moved
        assert self.late_wrong == 0
        assert self.fenced_writes > 0
        assert self.mode == "behind" or self.late_answered == 0

    def figures(self) -> str:
        """The figures in one line, for people."""
        return (
            f"{self.moved} sessions moved while their owner was frozen: {self.fenced_writes:.0f} "
            f"stale writes fenced, landed {self.violations.wrong + self.violations.doubled}; "
            f"{self.late_refused} late calls refused, {self.late_answered} answered with the "
            f"right bits, {self.late_wrong} with others"
        )


def run(folder: Path, mode: str, *, sessions: int) -> Found:
    """Runs two servers with one store, and freezes one of them for a while."""
    found = Found(mode)
    flags = ("--store-mode", mode, "--behind-s-max", str(BEHIND_S))
    with Valkey(folder) as valkey, fleet_of(folder, 2, "--store", valkey.url, *flags) as fleet:
        asyncio.run(_run(fleet, found, sessions))
    return found


async def _run(fleet: Fleet, found: Found, sessions: int) -> None:
    frozen = fleet.pods[0].serving
    rng = np.random.default_rng(0)
    async with Calls() as calls:
        talks = [
            Conversation(fleet, calls, f"s{i}", may_replay=found.mode == "behind")
            for i in range(sessions)
        ]
        for talk in talks:
            await talk.open()
            await _step(talk, rng)
        moving = [talk for talk in talks if fleet.home(talk.name) is frozen]
        frozen.signal(signal.SIGSTOP)
        late = [
            asyncio.create_task(_late(calls, frozen, talk, talk.prepare(rng))) for talk in moving
        ]
        fleet.suspect(frozen)
        await pause(ON_ITS_WAY_S)
        for talk in moving:
            await talk.resume()
            await _step(talk, rng)
        frozen.signal(signal.SIGCONT)
        for talk, task in zip(moving, late, strict=True):
            _judge(found, talk, await task)
        await pause(2 * BEHIND_S)
        fleet.trust(frozen)
        await _finish(fleet, talks, rng, found, frozen)


async def _step(talk: Conversation, rng: np.random.Generator) -> None:
    for _ in range(STEPS):
        await talk.step(rng)


async def _late(calls: Calls, frozen: Serving, talk: Conversation, number: int) -> bytes | None:
    """Sends a step to the frozen server. Returns its y, or None if the step is refused."""
    try:
        reply = await calls.step(frozen, talk.request(number), timeout_s=None)
    except Refused:
        return None
    assert reply.step == number
    return reply.y


def _judge(found: Found, talk: Conversation, y: bytes | None) -> None:
    found.moved += 1
    found.late_refused += y is None
    found.late_answered += y is not None
    found.late_wrong += y is not None and y != talk.outputs[STEPS].tobytes()


async def _finish(
    fleet: Fleet, talks: list[Conversation], rng: np.random.Generator, found: Found, frozen: Serving
) -> None:
    """Lets every session go on at its first server, the one that was frozen."""
    for talk in talks:
        await _step(talk, rng)
        await talk.verify()
        add(found.violations, talk.violations)
    for reason in ("FENCED", "CONFLICT"):
        found.fenced_writes += await asyncio.to_thread(
            frozen.metric, "lstm_store_errors_total", op="put", reason=reason
        )
