"""The store dies, or hangs, for a while under load: no step is acknowledged, then all go on."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from soak.fleet import Fleet, fleet_of
from soak.kill9 import PODS
from soak.patron import Patron, Patronage, patrons_at_work, until_served
from soak.storefront import StoreFront
from soak.timing import pause
from storing import Valkey

QUIET_S = 1.0


@dataclass(kw_only=True)
class Found(Patronage):
    """What one run found. A call that fails after its repeats ends the run."""

    outages_s: list[float] = field(default_factory=list)

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        super().check()
        assert self.outages_s
        assert set(self.refusals) == {"UNAVAILABLE"}
        assert self.told == {}

    def figures(self) -> str:
        """The figures in one line, for people."""
        outages = ", ".join(f"{each:g} s" for each in self.outages_s)
        return f"store killed or frozen for {outages}; {super().figures()}"


def run(folder: Path, *, away_s: Sequence[float], sessions: int) -> Found:
    """Takes the store away for these times, in turn by kill -9 and by freezing it."""
    found = Found(mode="through", kind="library", clients=sessions)
    # With everysec, Valkey acks before it writes while an fsync is slow: a kill would lose steps.
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with Valkey(folder, *options) as valkey:
        front = StoreFront(valkey.port)
        with fleet_of(folder, PODS, "--store", front.url) as fleet:
            asyncio.run(_run(fleet, found, front, valkey, away_s))
    return found


async def _run(
    fleet: Fleet, found: Found, front: StoreFront, valkey: Valkey, away_s: Sequence[float]
) -> None:
    async with patrons_at_work(Patron, fleet, found, front, logs=False) as patrons:
        for i, seconds in enumerate(away_s):
            await pause(QUIET_S)
            await (_dead if i % 2 == 0 else _frozen)(valkey, front, seconds)
            found.outages_s.append(seconds)
            await until_served(patrons, front)


async def _dead(valkey: Valkey, front: StoreFront, seconds: float) -> None:
    await asyncio.to_thread(valkey.kill)
    await front.refuse()
    await pause(seconds)
    await asyncio.to_thread(valkey.start)
    await front.lead_to(valkey.port)


async def _frozen(valkey: Valkey, front: StoreFront, seconds: float) -> None:
    valkey.signal(signal.SIGSTOP)
    await pause(seconds)
    valkey.signal(signal.SIGCONT)
    front.up_s = time.monotonic()
