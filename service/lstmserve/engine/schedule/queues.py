"""Owns the ready queues: what can run now, by length, so that a batch pads little. No clock.

A step is in one queue at most once, and never while it is in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from lstmserve.config import Config
from lstmserve.engine.compute.pool import Pool
from lstmserve.engine.schedule.long_steps import LongSteps
from lstmserve.engine.schedule.part import Part
from lstmserve.engine.schedule.step import Step

Entry = Step | Part


def length_class(length: int) -> int:
    """0 for 1, 1 for 2, 2 for 3-4, 3 for 5-8, ...: lengths of a class differ by less than 2x."""
    return (length - 1).bit_length()


class ReadyQueues:
    """One queue per length class, served in turn, so that no class waits for another."""

    def __init__(self, config: Config, pool: Pool) -> None:
        self._slice_rows_max = config.slice_rows_max
        count = length_class(config.slice_rows_max) + 1
        self._queues: list[deque[Entry]] = [deque() for _ in range(count)]
        self._limits = [
            max(1, min(config.batch_sessions_max, config.batch_cells_max >> index))
            for index in range(count)
        ]
        self._turn = 0
        self._long = LongSteps(pool, config.slice_rows_max, config.long_steps_max)

    def __len__(self) -> int:
        """Entries, a part counting as one."""
        return sum(map(len, self._queues))

    def steps(self) -> Iterator[Step]:
        """The single steps, in no order."""
        return (entry for queue in self._queues for entry in queue if isinstance(entry, Step))

    def push_step(self, step: Step) -> None:
        """A step's first slice; a long step may have to wait for others of its kind to end."""
        if step.length == 1 and step.initial is None:
            self._queues[0].append(step)
        elif self._long.admit(step):
            self._push(step)

    def push_next_slice(self, step: Step, slot: int) -> None:
        """The step goes on from the state in `slot`."""
        self._long.keep(step, slot)
        self._push(step)

    def push_part(self, part: Part) -> None:
        """All its rows are of the class of its longest."""
        length = 1 if part.block.is_single else int(part.lengths.max())
        self._queues[length_class(length)].append(part)

    def end(self, step: Step) -> None:
        """The step is over: what it held is spare, and a long one that waited may begin."""
        if step.is_long and (successor := self._long.end(step)) is not None:
            self._push(successor)

    def drain(self) -> Iterator[Entry]:
        """Takes everything out, also the long steps that become ready meanwhile."""
        for queue in self._queues:
            while queue:
                yield queue.popleft()
        if len(self):
            yield from self.drain()

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
        else:
            room -= 1
        taken.append(entry)
    return taken
