"""Finds free slots of a pool, and counts how many of its first ones were ever used.

It gives the lowest free slots out first, so that a pool uses no more memory than its sessions and
batches need: the slots from `top` on were never touched. It knows neither the memory nor what a
slot holds.
"""

from __future__ import annotations

import numpy as np

from lstmserve.engine.arrays import Index

REFILL = 512  # slots that are put on the stack at once
STACK_MAX = 4096  # beyond it the higher half leaves the stack
WINDOW = 1 << 13  # flags that are looked through at once


class SlotAllocator:
    """The slots in [start, stop), all free at first.

    A batch takes and gives slots at the price of a copy, because they lie on a stack. Only what the
    stack cannot hold is sorted, and marked in one byte a slot; from there the lowest come back.
    So "lowest first" holds up to the slots of the stack, and exactly after cut().

    `allowance` is how far `top` may go without need: the allocator then takes some slots ahead.
    """

    def __init__(self, start: int, stop: int) -> None:
        self._start = start
        self._stop = stop
        self.top = start  # slots from here on were never taken since the last cut()
        self.allowance = start
        self._stack = np.empty(STACK_MAX, np.int64)
        self._count = 0  # slots on the stack
        self._is_free = np.zeros(max(start, stop), np.bool_)  # of slots that left the stack
        self._marked = 0  # how many those are
        self._lowest = start  # no slot below is marked

    def __len__(self) -> int:
        return self._count + self._marked + self._stop - self.top

    @property
    def taken(self) -> int:
        """The slots that have an owner."""
        return self.top - self._start - self._count - self._marked

    def take_one(self) -> int:
        """Takes one slot. A shortage is a bug: the caller never asks for more than are free."""
        if not self._count:
            self._refill(1)
        self._count -= 1
        return self._stack.item(self._count)

    def take(self, count: int) -> Index:
        """Takes `count` slots, [count]."""
        if self._count < count:
            self._refill(count)
        self._count -= count
        return self._stack[self._count : self._count + count].copy()

    def give_one(self, slot: int) -> None:
        assert self._count + self._marked < self.top - self._start, "given back twice"
        if self._count == STACK_MAX:
            self._unload(STACK_MAX // 2)
        self._stack[self._count] = slot
        self._count += 1

    def give(self, slots: Index) -> None:
        """Frees slots [N]."""
        end = self._count + slots.size
        assert end + self._marked <= self.top - self._start, "given back twice"
        if end > STACK_MAX:
            self._unload(STACK_MAX // 2)
            if (end := self._count + slots.size) > STACK_MAX:
                self._mark(slots)
                return
        self._stack[self._count : end] = slots
        self._count = end

    def sort(self) -> None:
        """Sorts the free slots, so that the next ones given out are the very lowest."""
        self._unload(0)

    def taken_from(self, slot: int) -> Index:
        """The slots from `slot` on that have an owner, ascending. It sorts."""
        self.sort()
        return np.flatnonzero(~self._is_free[slot : self.top]) + slot

    def cut(self, top: int) -> None:
        """Sets `top` back to a slot from which on all slots are free and their memory is
        untouched."""
        self.sort()
        assert self._start <= top <= self.top
        assert self._is_free[top : self.top].all(), "a slot above the new top has an owner"
        self._is_free[top : self.top] = False
        self._marked -= self.top - top
        self.top = top

    def _refill(self, count: int) -> None:
        """Puts slots on the stack until it has `count` or some more, the lowest on top."""
        missing = count - self._count
        ahead = max(missing, REFILL)
        found = self._unmark(ahead)
        if (short := missing - found.size) > 0:
            allowed = min(self.allowance, self._stop) - self.top
            fresh = max(short, min(ahead - found.size, allowed))
            assert self.top + fresh <= self._stop, f"{count} wanted, {len(self)} free"
            found = np.concatenate([found, np.arange(self.top, self.top + fresh)])
            self.top += fresh
        end = self._count + found.size
        if end > self._stack.size:
            self._stack = np.concatenate([self._stack[: self._count], np.empty(end, np.int64)])
        self._stack[self._count : end] = found[::-1]
        self._count = end

    def _unload(self, kept: int) -> None:
        """Takes slots off the stack but for the `kept` lowest."""
        held = np.sort(self._stack[: self._count])
        self._count = min(kept, held.size)
        self._stack[: self._count] = held[: self._count][::-1]
        self._mark(held[self._count :])

    def _mark(self, slots: Index) -> None:
        if slots.size:
            assert not self._is_free[slots].any(), "given back twice"
            self._is_free[slots] = True
            self._marked += slots.size
            self._lowest = min(self._lowest, int(slots.min()))

    def _unmark(self, count: int) -> Index:
        """The `count` lowest marked slots, ascending, or fewer: they are marked no more."""
        count = min(count, self._marked)
        parts: list[Index] = [np.empty(0, np.int64)]
        left = count
        while left:
            low = self._lowest
            assert low < self.top, "marked slots are miscounted"
            found = np.flatnonzero(self._is_free[low : low + WINDOW])[:left] + low
            left -= found.size
            self._lowest = int(found[-1]) + 1 if not left else low + WINDOW
            parts.append(found)
        slots = np.concatenate(parts)
        self._is_free[slots] = False
        self._marked -= count
        return slots

    def check_integrity(self, used: Index) -> None:
        """Asserts that every slot below `top` is either free or in `used`, once."""
        marked = np.flatnonzero(self._is_free)
        assert marked.size == self._marked, "marked slots are miscounted"
        assert not marked.size or self._lowest <= marked[0], "a slot below the lowest is free"
        owned = np.concatenate([self._stack[: self._count], marked, used])
        assert owned.size == np.unique(owned).size, "a slot is owned twice"
        assert owned.size == self.top - self._start, "a slot is lost"
        assert not owned.size or self._start <= owned.min() <= owned.max() < self.top
