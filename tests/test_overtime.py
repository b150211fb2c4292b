"""Calls without a deadline of their own: one timer ends each when its time is over."""

from __future__ import annotations

import asyncio

from lstmserve.server.overtime import Overtime, TooSlow, WatchedTask

SECONDS = 0.05


class Call:
    """A call that somebody may end."""

    def __init__(self) -> None:
        self.is_over = False
        self.expired: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def expire(self, error: TooSlow) -> None:
        """As Watched.expire."""
        self.is_over = True
        self.expired.set_result(asyncio.get_running_loop().time())


async def test_each_has_its_own_time() -> None:
    """None is ended before its time, all are, and those that are over are left in peace."""
    loop = asyncio.get_running_loop()
    overtime = Overtime(SECONDS)
    begun = []
    for number in range(100):
        call = Call()
        begun.append((loop.time(), call))
        overtime.watch(call)
        call.is_over = number % 3 == 0
        await asyncio.sleep(0)
    for begin_s, call in begun[1::3] + begun[2::3]:
        assert await call.expired - begin_s >= SECONDS
    assert not any(call.expired.done() for _, call in begun[::3])


async def test_a_later_call_is_watched_too() -> None:
    """The timer that ran out starts again with the next call."""
    overtime = Overtime(SECONDS)
    for _ in range(2):
        call = Call()
        overtime.watch(call)
        await call.expired


async def test_a_task_tells_its_end_from_its_callers_going() -> None:
    """A task that ran out of time has the error; one that was cancelled from outside has none."""
    ends: list[TooSlow | None] = []

    async def work(overtime: Overtime) -> None:
        watched = WatchedTask()
        overtime.watch(watched)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ends.append(watched.expired())
        watched.is_over = True

    await asyncio.create_task(work(Overtime(SECONDS)))
    cancelled = asyncio.create_task(work(Overtime(60)))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert isinstance(ends[0], TooSlow)
    assert ends[1] is None
