"""More load than a server can carry: it serves at its capacity, and tells the rest when to retry.

The model is large, so that the load that floods the server does not need more than this machine.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lstmserve.head_layers import Linear
from lstmserve.spec import LstmSpec
from soak.calls import Calls, Refused
from soak.conversation import Conversation
from soak.fleet import Fleet, fleet_of
from soak.timing import pause, percentile

LARGE = LstmSpec(input_size=8, hidden_size=1024, num_layers=2, head=(Linear(4),))
ROWS = 64
PENDING_MAX = 64
CHECKED = 8  # sessions that are compared with the oracle, which is as slow as the server
TICK_S = 0.01
RATIO_GOAL = 0.9


@dataclass
class Level:
    """One offered load, in multiples of the capacity; goodput in steps per second."""

    factor: float
    offered: int = 0
    applied: int = 0
    shed: int = 0
    hints_missing: int = 0  # steps that were shed without RetryInfo or without pushback
    others: list[str] = field(default_factory=list)  # refusals for other reasons
    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Applied steps per second."""
        return self.applied / self.seconds


@dataclass
class Found:
    """What one run found."""

    levels: list[Level]
    capacity: float = 0.0
    wrong: int = 0
    sessions: int = 0
    differences: dict[str, tuple[float, float]] = field(default_factory=dict)

    def check(self) -> None:
        """Raises AssertionError if a gate is not met; goodput is a figure, not a gate."""
        assert self.wrong == 0
        assert self.differences == {}
        for level in self.levels:
            assert level.others == []
            assert level.hints_missing == 0
            assert level.applied > 0
        assert self.levels[-1].shed > 0

    @property
    def ratio(self) -> float:
        """Goodput at the last level, divided by that at the first."""
        return self.levels[-1].goodput / self.levels[0].goodput

    def figures(self) -> str:
        """The figures in one line, for people."""
        levels = "; ".join(
            f"{level.factor:g}x: {level.offered / level.seconds:.0f}/s offered, "
            f"{level.goodput:.0f}/s applied, {level.shed} shed, "
            f"p99 {percentile(level.latencies_s, 99)} s"
            for level in self.levels
        )
        return (
            f"capacity {self.capacity:.0f} steps/s of {ROWS} rows; {levels}; goodput at "
            f"{self.levels[-1].factor:g}x / 1x = {self.ratio:.2f} (goal {RATIO_GOAL}), shed "
            f"without a hint {sum(level.hints_missing for level in self.levels)}, wrong outputs "
            f"{self.wrong} of {CHECKED} sessions"
        )


def run(folder: Path, *, factors: tuple[float, ...], seconds: float, sessions: int) -> Found:
    """Offers each level for `seconds`, to one server."""
    found = Found([Level(factor) for factor in factors], sessions=sessions)
    flags = ("--pending-steps-max", str(PENDING_MAX))
    with fleet_of(folder, 1, *flags, spec=LARGE) as fleet:
        asyncio.run(_run(fleet, found, seconds))
    return found


async def _run(fleet: Fleet, found: Found, seconds: float) -> None:
    async with Calls() as calls:
        talks = [Conversation(fleet, calls, f"s{i}") for i in range(found.sessions)]
        await asyncio.gather(*(talk.open() for talk in talks))
        flood = Flood(fleet, talks)
        found.capacity = await flood.capacity(seconds)
        for level in found.levels:
            await flood.run(level, found.capacity * level.factor, seconds)
        for talk in talks[:CHECKED]:
            await talk.verify()
            found.wrong += talk.violations.wrong + talk.violations.lost + talk.violations.doubled
        (pod,) = fleet.pods
        ledger = calls.ledgers[pod.serving]
        found.differences = await asyncio.to_thread(ledger.differences, pod.serving)


class Flood:
    """Calls from idle sessions; a step that was shed is sent again at the session's next turn.

    `reason` is that of the refusals which are expected.
    """

    def __init__(
        self,
        fleet: Fleet,
        talks: list[Conversation],
        reason: str = "OVERLOADED",
        rows: int = ROWS,
    ) -> None:
        self._serving = fleet.pods[0].serving
        self._reason, self._rows = reason, rows
        self._idle = talks.copy()
        self._rng = np.random.default_rng(0)
        self._tasks: set[asyncio.Task[None]] = set()

    async def capacity(self, seconds: float) -> float:
        """Steps per second while the server always has just enough to do."""
        level = Level(0)
        start_s = time.monotonic()
        while time.monotonic() - start_s < seconds:
            while len(self._tasks) < PENDING_MAX // 2:
                self._offer(level)
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        await self._settle()
        level.seconds = time.monotonic() - start_s
        return level.goodput

    async def run(self, level: Level, rate: float, seconds: float) -> None:
        """Offers `rate` steps per second, however they end."""
        start_s = time.monotonic()
        while (elapsed_s := time.monotonic() - start_s) < seconds:
            while level.offered < rate * elapsed_s and self._idle:
                self._offer(level)
            await pause(TICK_S)
        await self._settle()
        level.seconds = time.monotonic() - start_s

    async def _settle(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _offer(self, level: Level) -> None:
        talk = self._idle.pop(0)
        level.offered += 1
        task = asyncio.create_task(self._step(level, talk))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _step(self, level: Level, talk: Conversation) -> None:
        start_s = time.monotonic()
        try:
            await talk.try_once(self._serving, self._rng, self._rows)
        except Refused as error:
            if error.reason == self._reason:
                level.shed += 1
                level.hints_missing += error.retry_s is None or error.pushback_ms is None
            else:
                level.others.append(str(error))
        else:
            level.applied += 1
            level.latencies_s.append(time.monotonic() - start_s)
        finally:
            self._idle.append(talk)
