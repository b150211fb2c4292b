"""The locks of keys: one holder at a time and in order per key, and no lock is left behind."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict

import pytest

from lstmserve.engine.persist.ownership import KeyLocks


@pytest.mark.parametrize("seed", range(20))
async def test_one_at_a_time_whoever_goes_away(seed: int) -> None:
    """If waiters and holders are cancelled at any moment, or fail, the others still get their
    turn."""
    dice = random.Random(seed)
    locks, inside = KeyLocks(), defaultdict[str, int](int)
    asked, served = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)

    async def use(number: int, key: str) -> None:
        asked[key].append(number)
        async with locks.lock(key):
            served[key].append(number)
            inside[key] += 1
            assert inside[key] == 1
            try:
                for _ in range(dice.randrange(4)):
                    await asyncio.sleep(0)
                if dice.random() < 0.1:
                    raise ValueError("as wanted")
            finally:
                inside[key] -= 1

    tasks = []
    for number in range(200):
        tasks.append(asyncio.create_task(use(number, dice.choice("abc"))))
        if dice.random() < 0.3:
            dice.choice(tasks).cancel()
        if dice.random() < 0.2:
            await asyncio.sleep(0)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(end) for end in ends} <= {type(None), ValueError, asyncio.CancelledError}
    assert ends.count(None) > 50
    for key, numbers in served.items():
        assert numbers == [number for number in asked[key] if number in set(numbers)]
    assert len(locks) == 0


async def test_keys_do_not_wait_for_each_other() -> None:
    """While one key is locked another one is free."""
    locks = KeyLocks()
    async with locks.lock("a"), locks.lock("b"):
        assert len(locks) == 2
    assert len(locks) == 0
