"""Clients of servers whose store comes and goes; they know which writes it took."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from lstmserve import AsyncClient
from lstmserve.client import SessionLost, StepsLost
from soak.crowd import REPLAY_STEPS_MAX, Outcome, at_work
from soak.customer import Customer
from soak.fleet import Fleet
from soak.storefront import StoreFront
from soak.timing import pause, percentile

NEW_LIFE = 0.01  # the probability that a step is the first of another session
UNKNOWN = -1  # in place of a step: the server does not know the session


class Patron(Customer):
    """A Customer that knows which writes the store took, and begins another session now and then.

    Without a log it accepts that acknowledged steps are lost, if the server says so: `told` has the
    step that the server named for each session.
    """

    def __init__(
        self, fleet: Fleet, client: AsyncClient, name: str, log: int, front: StoreFront
    ) -> None:
        super().__init__(fleet, client, name, log)
        self.has_log = log > 0
        self.told: dict[str, int] = {}
        self.without_write = 0
        self.waits_s: list[float] = []  # from the time the store came up until the next ack
        self.served_s = 0.0
        self.new_life = NEW_LIFE
        self.stays = False  # whether it must not change its session
        self._front, self._names = front, (f"{name}.{i}" for i in range(2, 1 << 31))

    async def step(self, rng: np.random.Generator) -> None:
        """Makes one more step, or notes the error about lost steps."""
        if rng.random() < self.new_life and not self.stays:
            await self._begin_again()
        began_s = time.monotonic()
        try:
            await super().step(rng)
        except (StepsLost, SessionLost) as error:
            if self.has_log:
                raise
            step = int(error.metadata.get("expected_step", UNKNOWN + 1)) - 1
            self.told[self.name] = step
            await self._go_on(step)
            return
        self._acked()
        self.served_s, up_s = time.monotonic(), self._front.up_s
        if began_s < up_s < self.served_s:
            self.waits_s.append(self.served_s - up_s)

    def _acked(self) -> None:
        """Notes that the newest output has come."""
        number = len(self.outputs)
        self.without_write += not self._front.has(self.name, self.session.incarnation, number)

    async def _go_on(self, step: int) -> None:
        """Goes on after the server has said that the session is at that step."""
        await self._begin_again()

    def _hold(self) -> None:
        """Compares its history so far with the oracle."""
        if self.inputs:
            y, *_ = self._fleet.oracle.run(np.concatenate(self.inputs))
            self.violations.wrong += not np.array_equal(np.concatenate(self.outputs), y)

    async def _begin_again(self) -> None:
        self._hold()
        self.name, self.inputs, self.outputs = next(self._names), [], []
        self._durable_step = 0
        await self.open()


@dataclass(kw_only=True)
class Patronage(Outcome):
    """What all patrons found."""

    told: dict[str, int] = field(default_factory=dict)
    without_write: int = 0
    waits_s: list[float] = field(default_factory=list)

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        super().check()
        assert self.without_write == 0
        assert self.waits_s
        assert self.refusals["UNAVAILABLE"] > 0, "no client noticed"

    def figures(self) -> str:
        """The figures in one line, for people."""
        return (
            f"acked without a write {self.without_write}, failed calls 0, {super().figures()}; "
            f"a step again once the store was reached p50 {percentile(self.waits_s, 50)} s, "
            f"max {max(self.waits_s):.2f} s"
        )


P = TypeVar("P", bound=Patron)


@asynccontextmanager
async def patrons_at_work(
    kind: type[P], fleet: Fleet, found: Patronage, front: StoreFront, *, logs: bool
) -> AsyncIterator[Sequence[P]]:
    """Lets the patrons step while the block runs; with `logs` every second one keeps its inputs."""
    patrons: list[P] = []

    def patron(fleet: Fleet, client: AsyncClient, name: str, _: int) -> P:
        log = REPLAY_STEPS_MAX if logs and len(patrons) % 2 else 0
        patrons.append(kind(fleet, client, name, log, front))
        return patrons[-1]

    async with front.serving(), at_work(fleet, found, customer=patron):
        yield patrons
    for each in patrons:
        found.told |= each.told
        found.without_write += each.without_write
        found.waits_s += each.waits_s


async def until_served(patrons: Sequence[Patron], front: StoreFront) -> None:
    """Waits until each patron has been answered after the store came up."""
    while any(each.served_s < front.up_s for each in patrons):
        await pause(0.1)
