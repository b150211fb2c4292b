"""The memory of a pool: what is resident, by the kernel's account, after use and giving back."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from lstmserve.engine.compute.memory import HUGE, PAGE, SMALL_BYTES, PoolMemory

SHAPES = {
    "h": ((2, 100), np.float32),
    "c": ((2, 100), np.float32),
    "count": ((), np.int64),
    "seen": ((3,), np.bool_),
}
ROW_BYTES = {"h": 800, "c": 800, "count": 8, "seen": 3}


def resident(array: np.ndarray) -> int:
    """Bytes of the array's own mapping that are in memory, from /proc/self/smaps."""
    found, inside = 0, False
    first, last = array.ctypes.data, array.ctypes.data + array.nbytes
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            start, stop = (int(each, 16) for each in bounds.groups())
            inside = start < last and first < stop
        elif inside and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


def touch(memory: PoolMemory, slots: slice) -> None:
    """Writes every byte of the slots."""
    for array in memory.arrays.values():
        array[slots] = 1


@pytest.fixture
def memory() -> PoolMemory:
    """A pool of far more slots than are used."""
    return PoolMemory(SHAPES, 2_000_000)


def whole(memory: PoolMemory) -> int:
    """Resident bytes of all tensors: their mappings lie side by side."""
    return max(resident(array) for array in memory.arrays.values())


def test_arrays_are_what_was_asked_for(memory: PoolMemory) -> None:
    """Their shapes and dtypes, whole zeros, none over another."""
    for name, (shape, dtype) in SHAPES.items():
        assert memory.arrays[name].shape == (2_000_000, *shape)
        assert memory.arrays[name].dtype == dtype
        assert memory.arrays[name].ctypes.data % PAGE == 0
    for value, array in enumerate(memory.arrays.values(), 1):
        array[:1000] = value
        array[-1:] = value
    for value, array in enumerate(memory.arrays.values(), 1):
        assert (array[:1000] == array.dtype.type(value)).all()
        assert (array[-1:] == array.dtype.type(value)).all()
        assert not array[1000:2000].any()


def test_only_what_was_touched_is_in_memory(memory: PoolMemory) -> None:
    """As bytes_below() says, in whole pages; given back it is zeros, and in memory no more."""
    touch(memory, slice(0, 10_000))
    bound = memory.bytes_below(10_000)
    assert bound <= 10_000 * sum(ROW_BYTES.values()) + len(SHAPES) * PAGE
    before = whole(memory)
    assert before <= bound
    memory.give_back(4_000, 10_000)
    after = whole(memory)
    assert after <= memory.bytes_below(4_000)
    assert after < before
    for array in memory.arrays.values():
        assert array[:4_000].all(), "a slot that stays was wiped"
    last = -(-4_000 * 800 // PAGE) * PAGE // 800 + 1
    assert not memory.arrays["h"][last:10_000].any()


def test_huge_pages_begin_late_and_are_counted(memory: PoolMemory) -> None:
    """A slot beyond the first 16 MiB of a tensor may take a huge page; that is given back whole."""
    slot = SMALL_BYTES // 800 + 10
    assert memory.bytes_below(slot) >= 2 * (SMALL_BYTES + HUGE)
    touch(memory, slice(slot - 1, slot))
    assert whole(memory) <= memory.bytes_below(slot)
    memory.give_back(0, slot)
    assert whole(memory) == 0


def test_a_shared_page_stays(memory: PoolMemory) -> None:
    """Slots are no multiples of pages: those before the first one given back keep their content."""
    touch(memory, slice(0, 64))
    for first in range(63, 0, -1):
        memory.give_back(first, 64)
        assert all(array[:first].all() for array in memory.arrays.values())


def test_more_than_the_machine_has_is_refused() -> None:
    """As a MemoryError, whatever the tensors are."""
    with pytest.raises(MemoryError):
        PoolMemory({"h": ((1 << 20,), np.float32)}, 1 << 40)
    with pytest.raises(MemoryError):
        PoolMemory({"h": ((1024,), np.float32)}, 1 << 35)
