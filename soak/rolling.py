"""SIGTERM of one server after another under load: no step is lost, and no call fails in the end."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from soak.crowd import Kind, Mode, Outcome, at_work
from soak.fleet import Fleet, fleet_of
from soak.kill9 import PODS
from soak.timing import pause
from storing import Valkey

QUIET_S = 1.0


@dataclass(kw_only=True)
class Found(Outcome):
    """What one run found. A call that fails after its repeats ends the run."""

    exit_codes: list[int] = field(default_factory=list)
    drains_s: list[float] = field(default_factory=list)

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        super().check()
        assert len(self.exit_codes) >= PODS
        assert set(self.exit_codes) == {0}
        assert set(self.refusals) == {"UNAVAILABLE"}
        assert self.experience.rollbacks == []

    def figures(self) -> str:
        """The figures in one line, for people."""
        return (
            f"{len(self.exit_codes)} restarts, failed calls 0, {super().figures()}; exit codes "
            f"{set(self.exit_codes)}, drains at most {max(self.drains_s):.2f} s"
        )


def run(folder: Path, mode: Mode, kind: Kind, *, clients: int, restarts: int) -> Found:
    """Restarts three servers with one store, in turn.

    In `behind` mode only a drain writes, and sessions stay where they are until then; otherwise the
    run would not show that drains write.
    """
    found = Found(mode=mode, kind=kind, clients=clients)
    flags = ("--store-mode", mode, "--behind-s-max", "3600")
    with Valkey(folder) as valkey, fleet_of(folder, PODS, "--store", valkey.url, *flags) as fleet:
        fleet.is_sticky = mode == "behind"
        asyncio.run(_run(fleet, found, restarts))
    return found


async def _run(fleet: Fleet, found: Found, restarts: int) -> None:
    async with at_work(fleet, found):
        for i in range(restarts):
            await pause(QUIET_S)
            pod = fleet.pods[i % PODS]
            start_s = time.monotonic()
            found.exit_codes.append(await pod.end(signal.SIGTERM))
            found.drains_s.append(time.monotonic() - start_s)
            await pod.start()
        await pause(QUIET_S)
