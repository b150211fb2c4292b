"""Calls whose time is watched: one timer ends each when its time is over."""

from __future__ import annotations

import asyncio

from lstmserve.server.overtime import Overtime

SECONDS = 0.05


class Call:
    """A call that can be ended."""

    def __init__(self) -> None:
        self.is_over = False
        self.expired: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def expire(self) -> None:
        """Notes that its time is over."""
        self.is_over = True
        self.expired.set_result(asyncio.get_running_loop().time())


def watching() -> Overtime[Call]:
    """An Overtime of such calls."""
    return Overtime(SECONDS, lambda call: call.is_over, Call.expire)


async def test_each_has_its_own_time() -> None:
    """No call ends before its time, every late one does, and those that are over are not
    touched."""
    loop = asyncio.get_running_loop()
    overtime = watching()
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
    """After its timer has fired, it starts again for the next call."""
    overtime = watching()
    for _ in range(2):
        call = Call()
        overtime.watch(call)
        await call.expired
