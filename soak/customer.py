"""A session through the client library, which numbers, repeats and replays by itself.

Every call of it must succeed; its history is checked like that of a Conversation.
"""

from __future__ import annotations

import numpy as np

from lstmserve import AsyncClient
from soak.conversation import ROWS_MAX, Floats
from soak.findings import Experience, Violations
from soak.fleet import MODEL, Fleet


class Customer:
    """A client with the methods of a Conversation."""

    def __init__(self, fleet: Fleet, client: AsyncClient, name: str, replay_steps_max: int) -> None:
        self.name = name
        self.violations, self.experience = Violations(), Experience()
        self._fleet, self._client = fleet, client
        self._replay_steps_max = replay_steps_max
        self.inputs: list[Floats] = []
        self.outputs: list[Floats] = []
        self._durable_step = 0
        self._life = 0

    async def open(self) -> None:
        """Opens the session, with an id of the client's."""
        self.session = await self._client.session(
            MODEL, id=self.name, keep=True, replay_steps_max=self._replay_steps_max
        )

    async def step(self, rng: np.random.Generator) -> None:
        """Makes one more step. Raises LstmServeError for a failed call."""
        shape = (int(rng.integers(1, ROWS_MAX + 1)), self._fleet.spec.input_size)
        x = rng.standard_normal(shape).astype(np.float32)
        (given,) = self.session.model_info.inputs
        y = await self.session.step(x.reshape(len(x), *given.shape))
        self.inputs.append(x)
        self.outputs.append(y.reshape(-1, self._fleet.spec.output_size))
        self.experience.steps += 1
        is_same_life = self.session.incarnation == self._life
        self.violations.regressions += (
            is_same_life and self.session.durable_step < self._durable_step
        )
        self._life = self.session.incarnation
        self._durable_step = self.session.durable_step

    async def verify(self) -> None:
        """Compares the whole history, the last step and the state with the oracle."""
        await self.step(np.random.default_rng(0))  # brings back steps that a move may have lost
        info = await self.session.info()
        self.violations.lost += max(0, len(self.inputs) - info.step)
        self.violations.doubled += max(0, info.step - len(self.inputs))
        y, *state = self._fleet.oracle.run(np.concatenate(self.inputs))
        is_right = np.array_equal(np.concatenate(self.outputs), y)
        found = (await self.session.state()).tensors.values()
        for part, expected in zip(found, state, strict=True):
            is_right &= np.array_equal(part, expected)
        self.violations.wrong += not is_right
