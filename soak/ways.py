"""The ways in which a client leaves its calls, at any moment.

Each returns how many calls it left, and the codes of those that ended before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from soak.calls import TIMEOUT_S, Calls
from soak.leaving import Leaver

PASSES_MAX = 100
CALLS_OF_A_CHANNEL = 8


async def at_once(leaver: Leaver) -> tuple[int, set[str]]:
    """Cancels before or while the call is sent: after a few passes of the loop."""
    task = leaver.call(leaver.calls)
    for _ in range(int(leaver.rng.integers(PASSES_MAX))):
        await asyncio.sleep(0)
    return 1, await _ended([task])


async def later(leaver: Leaver) -> tuple[int, set[str]]:
    """Cancels while the call waits, runs or is answered; some calls end before."""
    task = leaver.call(leaver.calls)
    await asyncio.wait({task}, timeout=leaver.moment_s())
    return 1, await _ended([task])


async def deadline(leaver: Leaver) -> tuple[int, set[str]]:
    """Gives the call a deadline that passes at any moment."""
    return 1, {await leaver.call(leaver.calls, leaver.moment_s())}


async def channel(leaver: Leaver) -> tuple[int, set[str]]:
    """Closes a connection with calls on it."""
    async with Calls() as calls:
        await leaver.predict(calls, TIMEOUT_S)  # it is connected from now on
        tasks = [leaver.call(calls) for _ in range(CALLS_OF_A_CHANNEL)]
        await asyncio.wait(tasks, timeout=leaver.moment_s())
    return len(tasks), await _ended(tasks)


async def _ended(tasks: list[asyncio.Task[str]]) -> set[str]:
    codes = set()
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            codes.add(await task)
    return codes


Way = Callable[[Leaver], Awaitable[tuple[int, set[str]]]]
WAYS: tuple[Way, ...] = (*[at_once] * 5, *[later] * 5, *[deadline] * 5, channel)
