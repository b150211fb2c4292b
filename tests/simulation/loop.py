"""Virtual time: an event loop without I/O whose clock jumps to the next timer.

It does not depend on the machine, so a seed always gives the same run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from lstmserve.engine.clock import Now

START_S = 1000.0
WALL_NS = 1_700_000_000 * 10**9


class Deadlock(Exception):
    """All tasks wait for each other."""


class _Jump:
    """Replaces a selector: it waits by moving the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout_s: float | None) -> list[Any]:
        """No I/O is ever ready."""
        if timeout_s is None:
            raise Deadlock("no timer is set, and nothing can run")
        self._loop.now_s += max(0.0, timeout_s)
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """`now_s` is its time, and moves only when nothing is left to do at that time."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = START_S
        self._selector = _Jump(self)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Seconds."""
        return self.now_s

    def run_in_executor(self, *_: object) -> NoReturn:
        """Refuses: threads have no virtual time."""
        raise AssertionError("the simulation has one thread")

    def _process_events(self, events: list[Any]) -> None:
        assert not events

    def _write_to_self(self) -> None:
        """Does nothing: the loop never blocks in a selector."""


def run(main: Coroutine[Any, Any, Any], on_error: Callable[[str], None]) -> None:
    """Runs it on a new loop; calls `on_error` with errors that nothing else handled."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.get_loop().set_exception_handler(
            lambda _, context: on_error(f"{context['message']}: {context.get('exception')!r}")
        )
        runner.run(main)


def now_s() -> float:
    """Virtual seconds."""
    return asyncio.get_running_loop().time()


def clock(skew_ns: int) -> Callable[[], Now]:
    """A machine's clocks; its wall clock is wrong by `skew_ns`."""
    loop = asyncio.get_running_loop()

    def read() -> Now:
        now_ns = int(loop.time() * 1e9)
        return Now(now_ns, WALL_NS + skew_ns + now_ns)

    return read


async def pass_time(seconds: float) -> None:
    """Waits until `seconds` of virtual time are over."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    timer = loop.call_later(seconds, over.set)
    try:
        await over.wait()
    finally:
        timer.cancel()
