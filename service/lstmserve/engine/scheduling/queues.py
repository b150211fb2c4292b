"""The ready queues: what can run now, by length, so that a batch pads little. No clock.

A chunk is in one queue at most once, and never while it is in flight. Long chunks hold scratch
slots between their batches. The number of those slots is limited, so that the pool's spare ones
always suffice for the next batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from lstmserve.config import Config
from lstmserve.engine.compute.pool import Pool, Slots
from lstmserve.engine.scheduling.work import NO_SLOTS, Chunk


def length_class(length: int) -> int:
    """0 for 1, 1 for 2, 2 for 3-4, 3 for 5-8, ...: lengths of a class differ by less than 2x."""
    return (length - 1).bit_length()


def batch_max(config: Config, index: int) -> int:
    """The most rows of this length class in one batch."""
    return max(1, min(config.batch_sessions_max, config.batch_cells_max >> index))


def group_max(config: Config, longest: int) -> int:
    """Most sequences, the longest of this length, that may wait as one: they fit one batch, and
    their states may be kept between two."""
    index = length_class(min(longest, config.slice_rows_max))
    return min(batch_max(config, index), config.long_steps_max)


class ReadyQueues:
    """One queue per length class, served in turn, so that no class waits for another."""

    def __init__(self, config: Config, pool: Pool) -> None:
        self._pool = pool
        self._slice_rows_max = config.slice_rows_max
        count = length_class(config.slice_rows_max) + 1
        self._queues: list[deque[Chunk]] = [deque() for _ in range(count)]
        self._limits = [batch_max(config, index) for index in range(count)]
        self._turn = 0
        self._held_max = config.long_steps_max
        self._held = 0  # scratch slots that long chunks may hold
        self._waiting: deque[Chunk] = deque()  # long chunks that have not begun

    def __len__(self) -> int:
        """The number of chunks, however many rows they have."""
        return sum(map(len, self._queues))

    def push(self, chunk: Chunk) -> None:
        """Adds a chunk that begins; a long one may have to wait for others of its kind to end.

        Its rows are of one length class.
        """
        if chunk.length == 1 and not self._is_kept(chunk):
            self._queues[0].append(chunk)
        elif not self._is_kept(chunk) or self._admit(chunk):
            self.push_again(chunk)

    def push_again(self, chunk: Chunk) -> None:
        """Adds a chunk that goes on, or that was taken out and has begun no slice since."""
        left = min(chunk.length - chunk.done, self._slice_rows_max)
        self._queues[length_class(left)].append(chunk)

    def keep(self, chunk: Chunk, slots: Slots) -> None:
        """Notes that the chunk's states are in `slots` [n] now, and frees its former slots."""
        self._pool.give(chunk.scratch)
        chunk.scratch = slots

    def end(self, chunk: Chunk) -> None:
        """Frees what an ended chunk held, so that long chunks which waited may begin."""
        if not chunk.held:
            return
        self.keep(chunk, NO_SLOTS)
        self._held -= chunk.held
        chunk.held = 0
        while self._waiting and self._fits(self._waiting[0]):
            waiting = self._waiting.popleft()
            self._begin(waiting)
            self.push_again(waiting)

    def drain(self) -> Iterator[Chunk]:
        """Takes everything out, also the long chunks that become ready meanwhile."""
        for queue in self._queues:
            while queue:
                yield queue.popleft()
        if len(self):
            yield from self.drain()

    def pop(self, size_max: int) -> list[Chunk]:
        """The next batch's chunks, of one class, at most `size_max` rows; [] when all is empty."""
        for _ in self._queues:
            index = self._turn
            self._turn = (self._turn + 1) % len(self._queues)
            if queue := self._queues[index]:
                return _take(queue, min(size_max, self._limits[index]))
        return []

    def held(self) -> Slots:
        """The scratch slots of the chunks that wait."""
        return np.concatenate([NO_SLOTS, *(c.scratch for queue in self._queues for c in queue)])

    def _is_kept(self, chunk: Chunk) -> bool:
        """Whether its states are kept between batches: it goes on, or begins with some."""
        plan = chunk.request.plan
        has_states = plan is not None and plan.initial is not None
        return has_states or chunk.length > self._slice_rows_max

    def _admit(self, chunk: Chunk) -> bool:
        if self._waiting or not self._fits(chunk):
            self._waiting.append(chunk)
            return False
        self._begin(chunk)
        return True

    def _fits(self, chunk: Chunk) -> bool:
        return self._held + chunk.size <= self._held_max

    def _begin(self, chunk: Chunk) -> None:
        chunk.held = chunk.size
        self._held += chunk.held
        plan = chunk.request.plan
        if plan is not None and plan.initial is not None:
            chunk.scratch = self._pool.take(chunk.size)
            rows = {name: each[chunk.places] for name, each in plan.initial.items()}
            self._pool.write(chunk.scratch, rows)


def _take(queue: deque[Chunk], room: int) -> list[Chunk]:
    taken: list[Chunk] = []
    while queue and room > 0:
        chunk = queue.popleft()
        if chunk.size > room:
            if chunk.request.plan is not None:
                queue.appendleft(chunk)  # a group stays whole, for its queue's next turn
                assert taken, "a group is larger than a batch"
                break
            queue.append(chunk.split(room))  # to the end: the next in line has its turn
        room -= chunk.size
        taken.append(chunk)
    return taken
