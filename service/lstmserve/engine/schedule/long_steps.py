"""Owns who holds scratch slots between batches: long steps, and groups of a Predict's sequences.
Only so many slots at once, so that the pool's spare ones always suffice for the next batch.
"""

from __future__ import annotations

from collections import deque

from lstmserve.engine.compute.pool import ZERO, Pool, Slots
from lstmserve.engine.schedule.sequences import NO_SLOTS, Sequences
from lstmserve.engine.schedule.step import Step

Holder = Step | Sequences


class LongSteps:
    """Admits as many as hold up to `count_max` slots, the others in order of arrival."""

    def __init__(self, pool: Pool, slice_rows_max: int, count_max: int) -> None:
        self._pool = pool
        self._slice_rows_max = slice_rows_max
        self._count_max = count_max
        self._waiting: deque[Holder] = deque()
        self.count = 0

    def __repr__(self) -> str:
        return f"LongSteps({self.count} of {self._count_max}, {len(self._waiting)} wait)"

    def admit(self, step: Step) -> bool:
        """Whether the step may be made ready now; a long one may have to wait for its turn."""
        return step.length <= self._slice_rows_max or self._admit(step)

    def admit_group(self, sequences: Sequences) -> bool:
        """The same for the group that is next."""
        return not sequences.is_kept or self._admit(sequences)

    def keep(self, step: Step, slot: int) -> None:
        """`slot` holds the state so far; the one before it is spare."""
        self._pool.give_one(step.scratch)
        step.scratch = slot

    def keep_group(self, sequences: Sequences, slots: Slots) -> None:
        """The same for the members that go on, [n]."""
        self._pool.give(sequences.scratch)
        sequences.scratch = slots

    def end(self, step: Step) -> list[Holder]:
        """A long step is over: its scratch slot is spare; what is returned may be made ready."""
        self._pool.give_one(step.scratch)
        step.scratch = ZERO
        step.is_long = False
        return self._give(1)

    def end_group(self, sequences: Sequences) -> list[Holder]:
        """The same for a group."""
        self.keep_group(sequences, NO_SLOTS)
        held, sequences.held = sequences.held, 0
        return self._give(held)

    def _admit(self, holder: Holder) -> bool:
        if self._waiting or not self._fits(holder):
            self._waiting.append(holder)
            return False
        self._begin(holder)
        return True

    def _give(self, count: int) -> list[Holder]:
        self.count -= count
        begun: list[Holder] = []
        while self._waiting and self._fits(self._waiting[0]):
            holder = self._waiting.popleft()
            self._begin(holder)
            begun.append(holder)
        return begun

    def _fits(self, holder: Holder) -> bool:
        size = holder.size if isinstance(holder, Sequences) else 1
        return self.count + size <= self._count_max

    def _begin(self, holder: Holder) -> None:
        if isinstance(holder, Step):
            self.count += 1
            holder.is_long = True
            return
        holder.held = holder.size
        self.count += holder.held
        if holder.initial is not None:
            holder.scratch = self._pool.take(holder.size)
            members = holder.slice.members
            rows = {name: each[members] for name, each in holder.initial.items()}
            self._pool.write(holder.scratch, rows)
