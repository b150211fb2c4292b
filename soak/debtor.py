"""Clients that are answered before the store has their steps, and know how long it has lacked them.

Each second time that a server reports lost steps, they go on from what is left, with other inputs.
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
    """One acknowledged step: when it was sent and answered, and the session's incarnation then."""

    sent_s: float
    acked_s: float
    incarnation: int


class Debtor(Patron):
    """A Patron of servers that write behind.

    `waits_stored_s` are the times from the first ack after the store came up until the store had
    that step.
    """

    def __init__(
        self, fleet: Fleet, client: AsyncClient, name: str, log: int, front: StoreFront
    ) -> None:
        super().__init__(fleet, client, name, log, front)
        self.new_life = NEW_LIFE
        self.resumed = 0
        self.waits_stored_s: list[float] = []
        self._acks: list[Ack] = []
        self._left: list[tuple[str, int, list[Ack]]] = []  # former sessions, still open
        self._sent_s = 0.0
        self._resumes_next = True

    async def step(self, rng: np.random.Generator) -> None:
        """Makes one more step, and notes when it was sent."""
        self._sent_s = time.monotonic()
        await super().step(rng)

    def leave(self) -> None:
        """Makes the next step the first of another session."""
        self.new_life = 1.0

    def is_stored(self) -> bool:
        """Whether the store has the first step that was answered after the store came up."""
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
        """The oldest step that this incarnation of the session answered and that the store lacks.

        A step that is being sent again does not count: the server has had it for less time than the
        client.
        """
        life = self.session.incarnation
        since = self._acks[self._front.last(self.name, life) :]
        return next((ack for ack in since if ack.incarnation == life), None)

    def lacking_with_left(self, serving: Serving) -> list[Ack]:
        """The oldest step that the store lacks of each session on that server, also former ones."""
        lives = [*self._left, (self.name, self.session.incarnation, self._acks)]
        here = [each for each in lives if self._fleet.home(each[0]) is serving]
        found = [acks[self._front.last(name, life) :] for name, life, acks in here]
        return [acks[0] for acks in found if acks]

    def forget_left(self) -> None:
        """Forgets the former sessions: the store has all their steps."""
        self._left.clear()

    def _acked(self) -> None:
        self._acks.append(Ack(self._sent_s, time.monotonic(), self.session.incarnation))

    async def _go_on(self, step: int) -> None:
        if step < 1 or not self._resumes_next:
            self._resumes_next = True
            await self._begin_again()
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

    async def _begin_again(self) -> None:
        self._left.append((self.name, self.session.incarnation, self._acks))
        self._acks = []
        self.new_life = NEW_LIFE
        await super()._begin_again()
        self._sent_s = time.monotonic()
