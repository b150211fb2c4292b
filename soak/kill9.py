"""kill -9 of servers that share a store: no acked step is lost, doubled or wrong.

The client keeps no log in `through` mode: it is the store that brings a session back. In `behind`
mode the client sends again what was rolled back.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from soak.calls import Calls, Ledger
from soak.conversation import Conversation, Experience, Violations
from soak.fleet import Fleet, fleet_of
from soak.timing import pause, percentile
from storing import Valkey

PODS = 3
STRAY = 0.01
BEHIND_S = 1


@dataclass
class Found:
    """Of one run."""

    mode: str
    seed: int
    kills: int = 0
    sessions: int = 0
    loads: float = 0  # by the servers that still ran at the end
    servers_compared: int = 0
    differences: dict[str, tuple[float, float]] = field(default_factory=dict)
    violations: Violations = field(default_factory=Violations)
    experience: Experience = field(default_factory=Experience)

    def check(self) -> None:
        """Raises AssertionError when a gate is not met."""
        self.violations.check()
        assert self.kills > 0
        assert self.loads > 0, "the store never brought a session back"
        assert self.experience.repeats > 0, "no client noticed"
        assert bool(self.experience.rollbacks) <= (self.mode == "behind")
        assert self.servers_compared == PODS
        assert self.differences == {}

    def figures(self) -> str:
        """One line for people."""
        seen = self.experience
        recovery = [percentile(seen.recoveries_s, p) for p in (50, 99)]
        text = (
            f"{self.kills} kills, {seen.steps} acked steps of {self.sessions} sessions: lost "
            f"{self.violations.lost}, wrong {self.violations.wrong}, doubled "
            f"{self.violations.doubled}; {seen.repeats} repeats, {self.loads:.0f} loads, recovery "
            f"p50 {recovery[0]} s, p99 {recovery[1]} s"
        )
        if self.mode == "behind":
            text += (
                f"; {len(seen.rollbacks)} rollbacks, the longest {max(seen.rollbacks, default=0)} "
                f"steps, {max(seen.rollbacks_s, default=0):.2f} s; durable_step went back "
                f"{self.violations.regressions} times; changed bits {self.violations.changed}"
            )
        return text


def run(
    folder: Path, mode: str, *, kills: int, every_s: float, sessions: int, seed: int = 0
) -> Found:
    """Kills one server every `every_s` and starts it again, while `sessions` clients step."""
    print(f"kill9 {mode}: seed {seed}")
    found = Found(mode, seed, sessions=sessions)
    flags = ("--store-mode", mode, "--behind-s-max", str(BEHIND_S))
    with Valkey(folder) as valkey, fleet_of(folder, PODS, "--store", valkey.url, *flags) as fleet:
        asyncio.run(_run(fleet, found, kills, every_s))
    return found


async def _run(fleet: Fleet, found: Found, kills: int, every_s: float) -> None:
    over = asyncio.Event()
    async with Calls() as calls, asyncio.TaskGroup() as tasks:
        talks = [
            Conversation(fleet, calls, f"s{i}", may_replay=found.mode == "behind", stray=STRAY)
            for i in range(found.sessions)
        ]
        clients = [
            tasks.create_task(converse(talk, np.random.default_rng([found.seed, i]), over))
            for i, talk in enumerate(talks)
        ]
        for pod in itertools.islice(itertools.cycle(fleet.pods), kills):
            await pause(every_s)
            await pod.end(signal.SIGKILL)
            await pod.start()
            found.kills += 1
        await pause(every_s)
        over.set()
        await asyncio.wait(clients)
        await pause(2 * BEHIND_S)
        await compare(fleet, calls, talks, found)


async def converse(talk: Conversation, rng: np.random.Generator, over: asyncio.Event) -> None:
    """A client's life."""
    await talk.open()
    while not over.is_set():
        await talk.step(rng)


async def compare(fleet: Fleet, calls: Calls, talks: list[Conversation], found: Found) -> None:
    for talk in talks:
        await talk.verify()
        add(found.violations, talk.violations)
        add(found.experience, talk.experience)
    found.loads = await asyncio.to_thread(fleet.metric, "lstm_sessions_opened_total", source="load")
    for pod in fleet.pods:
        ledger = calls.ledgers.get(pod.serving, Ledger())
        if not ledger.cut:
            found.servers_compared += 1
            different = await asyncio.to_thread(ledger.differences, pod.serving)
            found.differences.update(
                {f"{pod.name} {name}": pair for name, pair in different.items()}
            )


def add(total: Violations | Experience, part: Violations | Experience) -> None:
    """Field by field."""
    for name, value in vars(part).items():
        setattr(total, name, getattr(total, name) + value)
