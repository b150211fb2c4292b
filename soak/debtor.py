"""Customers who are answered before the store has their steps, and know since when it lacks them.

Told that steps were taken back, every second time they go on from what is left, with other inputs.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from lstmserve import AsyncClient
from serving import Serving
from soak.fleet import MODEL, Fleet
from soak.patron import Patron
from soak.storefront import StoreFront

NEW_LIFE = 0.001  # there are many more steps a second


class Ack(NamedTuple):
    """Of one step: when it was sent and answered, and in which life of the session."""

    sent_s: float
    acked_s: float
    incarnation: int


class Debtor(Patron):
    """`waits_stored_s`: from the first ack since the store was up until it had that step."""

    def __init__(
        self, fleet: Fleet, client: AsyncClient, name: str, log: int, front: StoreFront
    ) -> None:
        super().__init__(fleet, client, name, log, front)
        self.new_life = NEW_LIFE
        self.resumed = 0
        self.waits_stored_s: list[float] = []
        self._acks: list[Ack] = []
        self._left: list[tuple[str, int, list[Ack]]] = []  # sessions it had, and left open
        self._sent_s = 0.0
        self._resumes_next = True

    async def step(self, rng: np.random.Generator) -> None:
        """As any patron's."""
        self._sent_s = time.monotonic()
        await super().step(rng)

    def leave(self) -> None:
        """Its next step is the first of another session."""
        self.new_life = 1.0

    def is_stored(self) -> bool:
        """Whether the store has the first step that was answered since it was up."""
        number = len(self._acks) + 1
        while number > 1 and self._acks[number - 2].acked_s > self._front.up_s:
            number -= 1
        last = self._front.last(self.name, self.session.incarnation)
        if number > len(self._acks) or last < number:
            return False
        ack = self._acks[number - 1]
        if ack.incarnation == self.session.incarnation:
            self.waits_stored_s.append(time.monotonic() - ack.acked_s)
        return True

    def lacking(self) -> Ack | None:
        """The oldest step that was answered in this life of the session and that the store lacks.

        Not what is being sent again: the server has had it for less long than its client.
        """
        life = self.session.incarnation
        since = self._acks[self._front.last(self.name, life) :]
        return next((ack for ack in since if ack.incarnation == life), None)

    def lacking_with_left(self, serving: Serving) -> list[Ack]:
        """The oldest of each session it had and has, of any life, where it is that server's."""
        lives = [*self._left, (self.name, self.session.incarnation, self._acks)]
        here = [each for each in lives if self._fleet.home(each[0]) is serving]
        found = [acks[self._front.last(name, life) :] for name, life, acks in here]
        return [acks[0] for acks in found if acks]

    def forget_left(self) -> None:
        """The store has all of them."""
        self._left.clear()

    def _acked(self) -> None:
        self._acks.append(Ack(self._sent_s, time.monotonic(), self.session.incarnation))

    async def _go_on(self, step: int) -> None:
        if step < 1 or not self._resumes_next:
            self._resumes_next = True
            await self._begin_anew()
            return
        self._resumes_next = False
        self._hold()
        self.session = await self._client.session(
            MODEL, id=self.name, keep=True, if_exists="resume"
        )
        assert self.session.step_count == step
        del self.inputs[step:], self.outputs[step:], self._acks[step:]
        self._durable_step = 0
        self.resumed += 1

    async def _begin_anew(self) -> None:
        self._left.append((self.name, self.session.incarnation, self._acks))
        self._acks = []
        self.new_life = NEW_LIFE
        await super()._begin_anew()
        self._sent_s = time.monotonic()
