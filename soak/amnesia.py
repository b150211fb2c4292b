"""kill -9 of a server without a store: every session is reported as lost, none restarts at zero."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lstmserve.wire.v1 import lstm_pb2 as wire
from soak.calls import Calls, Refused
from soak.conversation import Conversation
from soak.fleet import Fleet, fleet_of


@dataclass
class Found:
    """What one run found."""

    sessions: int
    answers: int = 0  # replies to steps with the lost session's incarnation: silent zero states
    reasons: Counter[str] = field(default_factory=Counter)

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        assert self.answers == 0
        assert self.reasons == {"SESSION_LOST": 2 * self.sessions}

    def figures(self) -> str:
        """The figures in one line, for people."""
        lost = self.reasons["SESSION_LOST"] / (2 * self.sessions)
        return (
            f"{self.sessions} sessions, SESSION_LOST for {lost:.0%} of their numbered and "
            f"unnumbered steps, silent zero states {self.answers}"
        )


def run(folder: Path, *, sessions: int) -> Found:
    """Kills one server once."""
    found = Found(sessions)
    with fleet_of(folder, 1) as fleet:
        asyncio.run(_run(fleet, found))
    return found


async def _run(fleet: Fleet, found: Found) -> None:
    (pod,) = fleet.pods
    rng = np.random.default_rng(0)
    async with Calls() as calls:
        talks = [Conversation(fleet, calls, f"s{i}") for i in range(found.sessions)]
        for talk in talks:
            await talk.open()
            await talk.step(rng)
        await pod.end(signal.SIGKILL)
        await pod.start()
        for talk in talks:
            request = talk.request(talk.prepare(rng))
            await _try(calls, fleet, request, found)
            request.ClearField("step")
            await _try(calls, fleet, request, found)


async def _try(calls: Calls, fleet: Fleet, request: wire.StepRequest, found: Found) -> None:
    try:
        await calls.step(fleet.pods[0].serving, request)
    except Refused as error:
        found.reasons[error.reason] += 1
    else:
        found.answers += 1
