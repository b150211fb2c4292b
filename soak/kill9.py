"""kill -9 of servers that share a store: no acknowledged step is lost, doubled or wrong.

In `through` mode the client keeps no log: the store alone brings a session back. In `behind` mode
the client sends the steps again that were rolled back.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soak.crowd import BEHIND_S, Kind, Mode, Outcome, at_work
from soak.fleet import Fleet, fleet_of
from soak.timing import pause, percentile
from storing import Valkey

PODS = 3
STRAY = 0.01


@dataclass(kw_only=True)
class Found(Outcome):
    """What one run found."""

    kills: int = 0

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        super().check()
        assert self.kills > 0
        assert self.loads > 0, "the store never brought a session back"
        assert self.refusals["UNAVAILABLE"] > 0, "no client noticed"
        assert self.experience.rollbacks == [] or self.mode == "behind"

    def figures(self) -> str:
        """The figures in one line, for people."""
        text = f"{self.kills} kills, {super().figures()}; {self.loads:.0f} loads"
        if seen := self.experience.recoveries_s:
            text += f"; recovery p50 {percentile(seen, 50)} s, p99 {percentile(seen, 99)} s"
        if rollbacks := self.experience.rollbacks:
            text += (
                f"; {len(rollbacks)} rollbacks, the longest {max(rollbacks)} steps, "
                f"{max(self.experience.rollbacks_s):.2f} s"
            )
        return f"{text}; durable_step went back {self.violations.regressions} times"


def run(
    folder: Path,
    mode: Mode,
    kind: Kind,
    *,
    kills: int,
    every_s: float,
    sessions: int,
    **model: Any,
) -> Found:
    """Kills one server every `every_s` and starts it again, while `sessions` clients step.

    `model` are options of Fleet: with a `window` the states are rows, a `file` is of others.
    """
    found = Found(mode=mode, kind=kind, clients=sessions)
    flags = ("--store-mode", mode, "--behind-s-max", str(BEHIND_S))
    with (
        Valkey(folder) as valkey,
        fleet_of(folder, PODS, "--store", valkey.url, *flags, **model) as fleet,
    ):
        asyncio.run(_run(fleet, found, kills, every_s))
    return found


async def _run(fleet: Fleet, found: Found, kills: int, every_s: float) -> None:
    async with at_work(fleet, found, stray=STRAY):
        for pod in itertools.islice(itertools.cycle(fleet.pods), kills):
            await pause(every_s)
            await pod.end(signal.SIGKILL)
            await pod.start()
            found.kills += 1
        await pause(every_s)
