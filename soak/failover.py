"""A store fails over to a replica that lacks the last writes: acked steps are taken back.

Half of the clients keep their inputs and send them again; the others must be told, and told of
every case and of no other. Nobody may go on from a state that is not what he was answered.
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
    """What failovers took back."""

    failovers: int = 0
    steps_back: int = 0  # acked, and not on the replica
    healed: set[str] = field(default_factory=set)  # names of sessions with a log
    taken_back: dict[str, int] = field(default_factory=dict)  # without: the step each is at

    def take_back(self, patron: Patron, step: int) -> None:
        """The patron's session is at that step again."""
        self.steps_back += len(patron.outputs) - max(0, step)
        if patron.has_log:
            self.healed.add(patron.name)
        else:
            self.taken_back[patron.name] = step

    def check(self) -> None:
        """Raises AssertionError when a gate is not met."""
        super().check()
        assert self.failovers > 0
        assert self.steps_back > 0, "nothing was taken back: nothing is shown"
        assert self.healed
        assert self.taken_back
        assert self.told == self.taken_back

    def figures(self) -> str:
        """One line for people."""
        unknown = list(self.taken_back.values()).count(UNKNOWN)
        return (
            f"{self.failovers} failovers took {self.steps_back} acked steps back; "
            f"{len(self.healed)} sessions healed by replay, {len(self.taken_back)} without a log "
            f"({unknown} unknown to the replica), of which told {len(self.told)}; "
            f"{super().figures()}"
        )


def run(folder: Path, *, failovers: int, every_s: float, sessions: int) -> Taken:
    """Three servers that reach their store by one address, behind which it fails over."""
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
            await pause(ELECTION_S)  # what is under way ends
            await _compare(found, stores, patrons)
            await front.lead_to(stores.primary.port)
            found.failovers += 1
            await stores.replicate()
            await until_served(patrons, front)


async def _compare(found: Taken, stores: Replicated, patrons: Sequence[Patron]) -> None:
    """What the new primary has to what was acked."""
    for each, step in await steps_left(stores, patrons):
        if step < len(each.outputs):
            found.take_back(each, step)


async def steps_left(stores: Replicated, patrons: Iterable[P]) -> list[tuple[P, int]]:
    """Of each patron's session, what the primary has."""
    opened = [each for each in patrons if each.session.id == each.name]
    keys = [redis_key(session_key("", each.name)) for each in opened]
    found = await stores.read(keys)
    steps = [UNKNOWN if content is None else version_of(content).step for content in found]
    return list(zip(opened, steps, strict=True))
