"""A store fails over to a replica that lacks the last writes: acknowledged steps are lost.

Half of the clients keep their inputs and send them again. The others must get an error exactly when
steps were lost. No client may go on from another state than the one it was answered from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lstmserve.engine.keys import session_key
from lstmserve.store.record import version_of
from lstmserve.store.redis import redis_key
from soak.fleet import Fleet, fleet_of
from soak.kill9 import PODS
from soak.patron import UNKNOWN, P, Patron, Patronage, patrons_at_work, until_served
from soak.replicated import Replicated
from soak.storefront import StoreFront
from soak.timing import pause

LAG_S, ELECTION_S = 0.5, 1.0


@dataclass(kw_only=True)
class Taken(Patronage):
    """What the failovers took back."""

    failovers: int = 0
    steps_back: int = 0  # steps that were acknowledged and that the replica lacks
    healed: set[str] = field(default_factory=set)  # names of sessions with a log
    taken_back: dict[str, int] = field(default_factory=dict)  # without a log: the step each is at

    def take_back(self, patron: Patron, step: int) -> None:
        """Notes that the patron's session is at that step again."""
        self.steps_back += len(patron.outputs) - max(0, step)
        if patron.has_log:
            self.healed.add(patron.name)
        else:
            self.taken_back[patron.name] = step

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        super().check()
        assert self.failovers > 0
        assert self.steps_back > 0, "nothing was taken back: nothing is shown"
        assert self.healed
        assert self.taken_back
        assert self.told == self.taken_back

    def figures(self) -> str:
        """The figures in one line, for people."""
        unknown = list(self.taken_back.values()).count(UNKNOWN)
        return (
            f"{self.failovers} failovers took {self.steps_back} acked steps back; "
            f"{len(self.healed)} sessions healed by replay, {len(self.taken_back)} without a log "
            f"({unknown} unknown to the replica), of which reported {len(self.told)}; "
            f"{super().figures()}"
        )


def run(folder: Path, *, failovers: int, every_s: float, sessions: int) -> Taken:
    """Runs three servers that reach their store by one address; the store fails over behind it."""
    found = Taken(mode="through", kind="library", clients=sessions)
    with Replicated(folder) as stores:
        front = StoreFront(stores.primary.port)
        with fleet_of(folder, PODS, "--store", front.url) as fleet:
            asyncio.run(_run(fleet, found, front, stores, failovers, every_s))
    return found


async def _run(
    fleet: Fleet,
    found: Taken,
    front: StoreFront,
    stores: Replicated,
    failovers: int,
    every_s: float,
) -> None:
    async with patrons_at_work(Patron, fleet, found, front, logs=True) as patrons:
        for _ in range(failovers):
            await pause(every_s)
            await stores.in_step()
            await stores.cut()
            await pause(LAG_S)
            await stores.fail_over()
            await front.refuse()
            await pause(ELECTION_S)  # calls that are under way end
            await _compare(found, stores, patrons)
            await front.lead_to(stores.primary.port)
            found.failovers += 1
            await stores.replicate()
            await until_served(patrons, front)


async def _compare(found: Taken, stores: Replicated, patrons: Sequence[Patron]) -> None:
    """Compares the steps on the new primary with those that were acknowledged."""
    for each, step in await steps_left(stores, patrons):
        if step < len(each.outputs):
            found.take_back(each, step)


async def steps_left(stores: Replicated, patrons: Iterable[P]) -> list[tuple[P, int]]:
    """The step that the primary has of each patron's session."""
    opened = [each for each in patrons if each.session.id == each.name]
    keys = [redis_key(session_key("", each.name)) for each in opened]
    found = await stores.read(keys)
    steps = [UNKNOWN if content is None else version_of(content).step for content in found]
    return list(zip(opened, steps, strict=True))
