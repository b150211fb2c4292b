"""The slots of a pool, against a set: each has one owner, and the lowest free ones come first."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lstmserve.engine.compute import slots as module
from lstmserve.engine.compute.slots import SlotAllocator

STOP = 3000
BUGS = {
    "a slot is left on the stack": ("self._count -= count\n", "self._count -= count - 1\n"),
    "the stack is given out twice": ("held[self._count :])", "held[self._count - 1 :])"),
    "a refill forgets its marks": ("self._is_free[slots] = False\n", "pass\n"),
    "a cut keeps the marks": ("self._is_free[top : self.top] = False\n", "pass\n"),
    "a cut forgets the count": ("self._marked -= self.top - top\n", "pass\n"),
    "top stays": ("self.top += fresh\n", "pass\n"),
    "the lowest is forgotten": ("self._lowest = min(self._lowest, int(slots.min()))\n", "pass\n"),
    "not the lowest": ("found = self._unmark(ahead)\n", "found = self._unmark(ahead)[::-1]\n"),
    "more than is allowed": ("min(ahead - found.size, allowed)", "ahead - found.size"),
}


def run(allocator: Any, seed: int) -> None:
    """Some events, after each of which everything is as in a plain model of it."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    free, owned = set(range(1, STOP)), list[int]()
    top = 1  # as the plain model has it: everything from here on is free and untouched
    for _ in range(150):
        event = rng.choice(["take", "take_one", "give", "give_one", "cut", "allow"])
        if event in ("take", "take_one"):
            most = min(len(free), int(rng.choice([1, 40, 900])))
            count = 1 if event == "take_one" and most else int(rng.integers(0, most + 1))
            if event == "take_one" and not most:
                continue
            before, below = allocator.top, allocator.top - 1 - len(owned)
            one = event == "take_one"
            taken = [allocator.take_one()] if one else allocator.take(count).tolist()
            needed = before + max(0, count - below)
            assert needed <= allocator.top <= max(needed, min(allocator.allowance, STOP))
            assert len(taken) == len(set(taken)) == count
            assert set(taken) <= free
            free -= set(taken)
            owned += taken
        elif event in ("give", "give_one"):
            count = min(len(owned), 1 if event == "give_one" else int(rng.integers(0, 900)))
            rng.shuffle(owned)
            given, owned = owned[:count], owned[count:]
            if event == "give":
                allocator.give(np.array(given, np.int64))
            elif given:
                allocator.give_one(given[0])
            free |= set(given)
        elif event == "cut":
            top = int(rng.integers(max(owned, default=0) + 1, allocator.top + 1))
            allocator.cut(top)
            count = int(rng.integers(0, min(50, len(free)) + 1))
            taken = allocator.take(count).tolist()
            assert sorted(taken) == sorted(free)[:count], "after a cut the lowest come first"
            free -= set(taken)
            owned += taken
        else:
            allocator.allowance = int(rng.integers(0, STOP + 100))
        top = max(top, allocator.top)
        assert len(allocator) == len(free)
        assert allocator.taken == len(owned)
        assert max(owned, default=0) < allocator.top <= STOP
        allocator.check_integrity(np.array(owned, np.int64))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack that overflows and runs empty often."""
    for name, size in (("REFILL", 16), ("STACK_MAX", 64), ("WINDOW", 100)):
        monkeypatch.setattr(module, name, size)


@pytest.mark.parametrize("seed", range(40))
def test_every_slot_has_one_owner(seed: int) -> None:
    """Whatever is taken and given, one or many at once, and however often the end is cut off."""
    run(SlotAllocator(1, STOP), seed)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    """In one of 20 runs of the same test."""
    old, new = BUGS[bug]
    source = inspect.getsource(module)
    assert old in source
    names: dict[str, Any] = {"__name__": "mutant"}
    exec(source.replace(old, new), names)
    names.update(REFILL=16, STACK_MAX=64, WINDOW=100)
    found = 0
    for seed in range(20):
        try:
            run(names["SlotAllocator"](1, STOP), seed)
        except (AssertionError, IndexError, ValueError):
            found += 1
    assert found, f"{bug} went unseen"


def test_the_top_grows_only_as_far_as_it_must() -> None:
    """Slots that were given back are used before any that nothing has touched."""
    allocator = SlotAllocator(1, STOP)
    held = allocator.take(700)
    assert allocator.top == 701
    allocator.give(held[:500].copy())
    for _ in range(100):
        more = allocator.take(500)
        assert allocator.top == 701
        allocator.give(more)
    allocator.take(501)
    assert allocator.top == 702


def test_slots_are_taken_ahead_only_where_they_are_allowed() -> None:
    """Up to the allowance in one go; beyond it one by one; never beyond the last."""
    allocator = SlotAllocator(1, 40)
    allocator.allowance = 10
    allocator.take_one()
    assert allocator.top == 10
    allocator.take(9)
    assert allocator.top == 11
    allocator.allowance = 1000
    allocator.take_one()
    assert allocator.top == 27
    allocator.take(len(allocator))
    assert allocator.top == 40
    with pytest.raises(AssertionError):
        allocator.take_one()


@pytest.mark.parametrize(
    "give",
    [lambda a, slots: a.give(slots), lambda a, slots: [a.give_one(s) for s in slots.tolist()]],
)
def test_a_slot_that_is_given_back_twice_is_seen(
    give: Callable[[SlotAllocator, Any], object],
) -> None:
    """At once where that can be, and by check_integrity at the latest."""
    allocator = SlotAllocator(1, STOP)
    held = allocator.take(10)
    give(allocator, held)
    with pytest.raises(AssertionError, match="twice"):
        give(allocator, held)
