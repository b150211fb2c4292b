"""Owns the ready queues: what can run now, by length, so that a batch pads little. No clock.

A step is in one queue at most once, and never while it is in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from lstmserve.config import Config
from lstmserve.engine.compute.pool import Pool, Slots
from lstmserve.engine.schedule.long_steps import Holder, LongSteps
from lstmserve.engine.schedule.part import Part
from lstmserve.engine.schedule.sequences import Sequences
from lstmserve.engine.schedule.sizes import batch_max, length_class
from lstmserve.engine.schedule.step import Step

Entry = Step | Part | Sequences


class ReadyQueues:
    """One queue per length class, served in turn, so that no class waits for another."""

    def __init__(self, config: Config, pool: Pool) -> None:
        self._slice_rows_max = config.slice_rows_max
        count = length_class(config.slice_rows_max) + 1
        self._queues: list[deque[Entry]] = [deque() for _ in range(count)]
        self._limits = [batch_max(config, index) for index in range(count)]
        self._turn = 0
        self._long = LongSteps(pool, config.slice_rows_max, config.long_steps_max)

    def __len__(self) -> int:
        """Entries, whatever they have of rows."""
        return sum(map(len, self._queues))

    def held(self) -> Slots:
        """The scratch slots of those that wait."""
        entries = [entry for queue in self._queues for entry in queue]
        slots = [entry.scratch for entry in entries if isinstance(entry, Step) and entry.scratch]
        groups = [entry.scratch for entry in entries if isinstance(entry, Sequences)]
        return np.concatenate([np.array(slots, np.int64), *groups])

    def push_step(self, step: Step) -> None:
        """A step's first slice; a long step may have to wait for others of its kind to end."""
        if step.length == 1:
            self._queues[0].append(step)
        elif self._long.admit(step):
            self._push(step)

    def push_again(self, entry: Step | Part) -> None:
        """One that was taken out and has not begun a slice since."""
        if isinstance(entry, Part):
            self.push_part(entry)
        else:
            self._push(entry)

    def push_next_slice(self, step: Step, slot: int) -> None:
        """The step goes on from the state in `slot`."""
        self._long.keep(step, slot)
        self._push(step)

    def push_part(self, part: Part) -> None:
        """All its rows are of the class of its longest."""
        self._queues[length_class(part.length_max)].append(part)

    def end(self, step: Step) -> None:
        """The step is over: what it held is spare, and long ones that waited may begin."""
        if step.is_long:
            self._push_all(self._long.end(step))

    def push_group(self, sequences: Sequences) -> None:
        """The first slice of a group, which may have to wait as a long step does."""
        if self._long.admit_group(sequences):
            self._push_slice(sequences)

    def push_next_slice_of_group(self, sequences: Sequences, slots: Slots) -> None:
        """The group goes on: its members' states are in `slots`."""
        self._long.keep_group(sequences, slots)
        self._push_slice(sequences)

    def end_group(self, sequences: Sequences) -> None:
        """As end()."""
        self._push_all(self._long.end_group(sequences))

    def drain(self) -> Iterator[Entry]:
        """Takes everything out, also the long steps that become ready meanwhile."""
        for queue in self._queues:
            while queue:
                yield queue.popleft()
        if len(self):
            yield from self.drain()

    def _push_all(self, holders: list[Holder]) -> None:
        for holder in holders:
            if isinstance(holder, Step):
                self._push(holder)
            else:
                self._push_slice(holder)

    def _push_slice(self, sequences: Sequences) -> None:
        self._queues[length_class(sequences.slice.length)].append(sequences)

    def _push(self, step: Step) -> None:
        length = min(step.length - step.done, self._slice_rows_max)
        self._queues[length_class(length)].append(step)

    def pop(self, size_max: int) -> list[Entry]:
        """The next batch's entries, of one class, at most `size_max` rows; [] when all is empty."""
        for _ in self._queues:
            index = self._turn
            self._turn = (self._turn + 1) % len(self._queues)
            if queue := self._queues[index]:
                return _take(queue, min(size_max, self._limits[index]))
        return []


def _take(queue: deque[Entry], room: int) -> list[Entry]:
    taken: list[Entry] = []
    while queue and room > 0:
        entry = queue.popleft()
        if isinstance(entry, Part):
            if entry.size > room:
                entry, others = entry.split(room)
                queue.append(others)  # to the end: the next in line has its turn
            room -= entry.size
        elif isinstance(entry, Sequences):
            if entry.size > room:
                queue.appendleft(entry)  # whole, at its queue's next turn
                assert taken, "a group is larger than a batch"
                break
            room -= entry.size
        else:
            room -= 1
        taken.append(entry)
    return taken
