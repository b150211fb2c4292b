"""The ready queues: what can run now, by length, so that a batch pads little. No clock.

Work is in one queue at most once, and never while it is in flight. Long work holds scratch slots
between its batches: only so many at once, so that the pool's spare ones always suffice for the next
batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from lstmserve.config import Config
from lstmserve.engine.arrays import Index
from lstmserve.engine.compute.pool import ZERO, Pool, Slots
from lstmserve.engine.scheduling.work import Chunk, Request, Work


def length_class(length: int) -> int:
    """0 for 1, 1 for 2, 2 for 3-4, 3 for 5-8, ...: lengths of a class differ by less than 2x."""
    return (length - 1).bit_length()


def batch_max(config: Config, index: int) -> int:
    """Most rows of this length class in one batch."""
    return max(1, min(config.batch_sessions_max, config.batch_cells_max >> index))


def group_max(config: Config, longest: int) -> int:
    """Most sequences, the longest of this length, that may wait as one: they fit one batch, and
    their states may be kept between two."""
    index = length_class(min(longest, config.slice_rows_max))
    return min(batch_max(config, index), config.long_steps_max)


class ReadyQueues:
    """One queue per length class, served in turn, so that no class waits for another."""

    def __init__(self, config: Config, work: Work, pool: Pool) -> None:
        self._work = work
        self._pool = pool
        self.slice_rows_max = config.slice_rows_max
        count = length_class(config.slice_rows_max) + 1
        self._queues: list[deque[Chunk]] = [deque() for _ in range(count)]
        self._limits = [batch_max(config, index) for index in range(count)]
        self._turn = 0
        self._held_max = config.long_steps_max
        self._held = 0  # scratch slots that long work may hold
        self._waiting: deque[Chunk] = deque()  # long work that has not begun

    def __len__(self) -> int:
        """Chunks, whatever they have of rows."""
        return sum(map(len, self._queues))

    def push_one(self, request: Request, work: int) -> None:
        """A step's first slice; a long step may have to wait for others of its kind to end."""
        chunk = Chunk(request, self._work.one(work))
        length = self._work.length.item(work)
        if length == 1:
            self._queues[0].append(chunk)
        elif length <= self.slice_rows_max or self._admit(chunk):
            self.push(chunk)

    def push_rows(self, request: Request, ids: Index) -> None:
        """First slices of steps of one request, which have begun nothing; by class of length."""
        if request.lengths is None:
            self._queues[0].append(Chunk(request, ids))
            return
        lengths = self._work.length[ids]
        is_long = lengths > self.slice_rows_max
        for work in ids[is_long].tolist():
            self.push_one(request, work)
        ids, lengths = ids[~is_long], lengths[~is_long]
        classes = np.ceil(np.log2(lengths)).astype(np.int64)
        for index in np.unique(classes).tolist():
            self._queues[index].append(Chunk(request, ids[classes == index]))

    def push_group(self, chunk: Chunk, *, is_kept: bool) -> bool:
        """A group of a Predict's sequences; whether it may run now.

        With `is_kept` its states are kept between batches, so it may have to wait as a long step.
        """
        if is_kept and not self._admit(chunk):
            return False
        self.push(chunk)
        return True

    def push(self, chunk: Chunk) -> None:
        """The next slice of a chunk whose rows are of one class, or that has begun before."""
        work, ids = self._work, chunk.ids
        left = int((work.length[ids] - work.done[ids]).max())
        self._queues[length_class(min(left, self.slice_rows_max))].append(chunk)

    def keep(self, chunk: Chunk, ids: Index, slots: Slots) -> None:
        """The chunk goes on with these ids: their states are in `slots`, the ones before spare."""
        scratch = self._work.scratch
        self._pool.give(scratch[chunk.ids])
        scratch[chunk.ids] = ZERO
        chunk.ids = ids
        scratch[ids] = slots

    def end(self, chunk: Chunk) -> None:
        """The chunk is over: what it held is spare, and long work that waited may begin."""
        if not chunk.held:
            return
        scratch = self._work.scratch
        self._pool.give(scratch[chunk.ids])
        scratch[chunk.ids] = ZERO
        self._held -= chunk.held
        chunk.held = 0
        while self._waiting and self._fits(self._waiting[0]):
            waiting = self._waiting.popleft()
            self._begin(waiting)
            self.push(waiting)

    def drain(self) -> Iterator[Chunk]:
        """Takes everything out, also the long work that becomes ready meanwhile."""
        for queue in self._queues:
            while queue:
                yield queue.popleft()
        if len(self):
            yield from self.drain()

    def pop(self, size_max: int) -> list[Chunk]:
        """The next batch's work, of one class, at most `size_max` rows; [] when all is empty."""
        for _ in self._queues:
            index = self._turn
            self._turn = (self._turn + 1) % len(self._queues)
            if queue := self._queues[index]:
                return _take(queue, min(size_max, self._limits[index]))
        return []

    def queued(self) -> Index:
        """Ids of all that wait here."""
        chunks = [chunk.ids for queue in (*self._queues, self._waiting) for chunk in queue]
        found: Index = np.concatenate([np.zeros(0, np.int64), *chunks])
        return found

    def held(self) -> Slots:
        """The scratch slots of those that wait, nothing being in flight."""
        scratch: Slots = self._work.scratch[self.queued()]
        return scratch[scratch != ZERO]

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
            slots = self._work.scratch[chunk.ids] = self._pool.take(chunk.size)
            places = self._work.place[chunk.ids]
            self._pool.write(slots, {name: rows[places] for name, rows in plan.initial.items()})


def _take(queue: deque[Chunk], room: int) -> list[Chunk]:
    taken: list[Chunk] = []
    while queue and room > 0:
        chunk = queue.popleft()
        if chunk.size > room:
            if chunk.request.plan is not None:
                queue.appendleft(chunk)  # a group stays whole, for its queue's next turn
                assert taken, "a group is larger than a batch"
                break
            queue.append(Chunk(chunk.request, chunk.ids[room:]))  # the next in line has its turn
            chunk = Chunk(chunk.request, chunk.ids[:room])
        room -= chunk.size
        taken.append(chunk)
    return taken
