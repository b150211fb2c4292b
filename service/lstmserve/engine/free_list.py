"""A free list over a range of numbers: the rows of the session table."""

from __future__ import annotations

import numpy as np

from lstmserve.engine.arrays import Index, sparse_zeros


class FreeList:
    """The numbers in [start, stop), all free at first. It hands out returned numbers first.

    It touches memory only for numbers that were ever taken, so a large range costs nothing.
    """

    def __init__(self, start: int, stop: int) -> None:
        self._start = start
        self._stop = stop
        self._fresh = start  # the lowest that was never taken
        self._given = np.empty(max(0, stop - start), np.int64)
        self._given_count = 0

    def __len__(self) -> int:
        return self._given_count + self._stop - self._fresh

    def take_one(self) -> int:
        """Takes one number. A shortage is a bug: the caller never asks for more than are free."""
        if self._given_count:
            self._given_count -= 1
            return self._given.item(self._given_count)
        assert self._fresh < self._stop, "none is free"
        self._fresh += 1
        return self._fresh - 1

    def take(self, count: int) -> Index:
        """Takes `count` numbers, [count]."""
        assert count <= len(self), f"{count} wanted, {len(self)} free"
        used = min(count, self._given_count)
        self._given_count -= used
        taken = self._given[self._given_count : self._given_count + used].copy()
        if used == count:
            return taken
        fresh = np.arange(self._fresh, self._fresh + count - used)
        self._fresh += fresh.size
        return np.concatenate([taken, fresh])

    def give_one(self, number: int) -> None:
        assert self._given_count < self._fresh - self._start, "given back twice"
        self._given[self._given_count] = number
        self._given_count += 1

    def give(self, numbers: Index) -> None:
        """Frees numbers [N]."""
        end = self._given_count + numbers.size
        assert end <= self._fresh - self._start, "given back twice"
        self._given[self._given_count : end] = numbers
        self._given_count = end

    def extend(self, stop: int) -> None:
        """The numbers in [start, stop) are the range from now on."""
        given = sparse_zeros((stop - self._start,), np.int64)
        given[: self._given_count] = self._given[: self._given_count]
        self._given, self._stop = given, stop

    def check_integrity(self, used: Index) -> None:
        """Asserts that every number is either free or in `used`, once."""
        given = self._given[: self._given_count]
        owned = np.concatenate([given, used])
        assert owned.size == np.unique(owned).size, "a number is owned twice"
        assert owned.size == self._fresh - self._start, "a number is lost"
        assert not owned.size or self._start <= owned.min() <= owned.max() < self._fresh
