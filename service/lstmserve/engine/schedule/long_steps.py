"""Owns the steps that hold a scratch slot between batches: the long ones, and Predict's initial
states. Only so many at once, so that the pool's spare slots always suffice for the next batch.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from lstmserve.engine.compute.pool import ZERO, Pool
from lstmserve.engine.schedule.step import Step


class LongSteps:
    """Admits up to `count_max` at a time, the others in order of arrival."""

    def __init__(self, pool: Pool, slice_rows_max: int, count_max: int) -> None:
        self._pool = pool
        self._slice_rows_max = slice_rows_max
        self._count_max = count_max
        self._waiting: deque[Step] = deque()
        self.count = 0

    def __repr__(self) -> str:
        return f"LongSteps({self.count} of {self._count_max}, {len(self._waiting)} wait)"

    def admit(self, step: Step) -> bool:
        """Whether the step may be made ready now; a long one may have to wait for its turn."""
        if step.length <= self._slice_rows_max and step.initial is None:
            return True
        if self.count == self._count_max:
            self._waiting.append(step)
            return False
        self._begin(step)
        return True

    def keep(self, step: Step, slot: int) -> None:
        """`slot` holds the state so far; the one before it is spare."""
        self._pool.give_one(step.scratch)
        step.scratch = slot

    def end(self, step: Step) -> Step | None:
        """A long step is over: its scratch slot is spare; the returned one may be made ready."""
        self._pool.give_one(step.scratch)
        step.scratch = ZERO
        step.is_long = False
        self.count -= 1
        if not self._waiting:
            return None
        successor = self._waiting.popleft()
        self._begin(successor)
        return successor

    def _begin(self, step: Step) -> None:
        self.count += 1
        step.is_long = True
        if step.initial is not None:
            step.scratch = self._pool.take_one()
            self._pool.write(np.array([step.scratch]), step.initial)
