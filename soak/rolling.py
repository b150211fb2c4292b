"""SIGTERM of one server after another under load: nothing is lost, and no call fails for good."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from soak.calls import Calls
from soak.conversation import Conversation, Experience, Violations
from soak.fleet import Fleet, fleet_of
from soak.kill9 import PODS, compare, converse
from soak.timing import pause
from storing import Valkey

QUIET_S = 1.0


@dataclass
class Found:
    """Of one run. `refusals` are the gRPC codes of attempts that were repeated."""

    mode: str
    clients: int
    seed: int
    restarts: int = 0
    loads: float = 0
    exit_codes: list[int] = field(default_factory=list)
    drains_s: list[float] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    servers_compared: int = 0
    differences: dict[str, tuple[float, float]] = field(default_factory=dict)
    violations: Violations = field(default_factory=Violations)
    experience: Experience = field(default_factory=Experience)

    def check(self) -> None:
        """Raises AssertionError when a gate is not met."""
        self.violations.check()
        assert self.restarts >= PODS
        assert self.exit_codes == [0] * self.restarts
        assert set(self.refusals) == {"UNAVAILABLE"}
        assert self.experience.rollbacks == []
        assert self.servers_compared == PODS
        assert self.differences == {}

    def figures(self) -> str:
        """One line for people."""
        return (
            f"{self.restarts} restarts under {self.clients} clients, {self.experience.steps} "
            f"acked steps: failed calls 0, refused and repeated {dict(self.refusals)}, rolled back "
            f"{len(self.experience.rollbacks)}; exit codes {set(self.exit_codes)}, drains at most "
            f"{max(self.drains_s):.2f} s"
        )


def run(folder: Path, mode: str, *, clients: int, restarts: int, seed: int = 0) -> Found:
    """Three servers and one store.

    Behind the store nothing but a drain writes (and the sessions stay until there is one): or it
    would not be shown that drains do.
    """
    print(f"rolling {mode}: seed {seed}")
    found = Found(mode, clients, seed)
    flags = ("--store-mode", mode, "--behind-s-max", "3600")
    with Valkey(folder) as valkey, fleet_of(folder, PODS, "--store", valkey.url, *flags) as fleet:
        fleet.is_sticky = mode == "behind"
        asyncio.run(_run(fleet, found, restarts))
    return found


async def _run(fleet: Fleet, found: Found, restarts: int) -> None:
    over = asyncio.Event()
    async with Calls() as calls, asyncio.TaskGroup() as tasks:
        talks = [
            Conversation(fleet, calls, f"s{i}", may_replay=found.mode == "behind")
            for i in range(found.clients)
        ]
        rngs = [np.random.default_rng([found.seed, i]) for i in range(found.clients)]
        clients = [
            tasks.create_task(converse(talk, rng, over))
            for talk, rng in zip(talks, rngs, strict=True)
        ]
        for i in range(restarts):
            await pause(QUIET_S)
            pod = fleet.pods[i % PODS]
            start_s = time.monotonic()
            found.exit_codes.append(await pod.end(signal.SIGTERM))
            found.drains_s.append(time.monotonic() - start_s)
            await pod.start()
            found.restarts += 1
        await pause(QUIET_S)
        over.set()
        await asyncio.wait(clients)
        await compare(fleet, calls, talks, found)
        found.refusals = calls.refusals
