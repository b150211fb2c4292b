"""The loop's pulse, with a clock and a loop that the test drives."""

from __future__ import annotations

import asyncio

import pytest

from lstmserve.server.observe.heartbeat import AGE_S_MAX, INTERVAL_S, Heartbeat


class HandLoop(asyncio.SelectorEventLoop):
    """A loop with the real call_later, whose timers fire when the test moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0

    def time(self) -> float:
        """The test's clock."""
        return self.now_s

    def turn(self, at_s: float) -> None:
        """Fires the timers that are due at that time."""
        self.now_s = at_s
        self.call_soon(self.stop)
        self.run_forever()


def test_lag_and_age_are_measured() -> None:
    """Timely beats keep it alive and show no lag, and a loop that hung shows how long it did."""
    loop, lags = HandLoop(), []
    heartbeat = Heartbeat(loop, lags.append, loop.time)
    for beat in range(1, 4):
        loop.turn(1000.0 + beat * INTERVAL_S)
    assert lags == pytest.approx([0, 0, 0])
    last_s = loop.now_s
    loop.now_s = last_s + AGE_S_MAX - 0.001
    assert heartbeat.is_alive()
    loop.now_s = last_s + AGE_S_MAX
    assert not heartbeat.is_alive()
    loop.turn(loop.now_s)
    assert heartbeat.is_alive()
    assert lags[-1] == pytest.approx(AGE_S_MAX - INTERVAL_S)
    heartbeat.stop()
    loop.turn(loop.now_s + 1)
    assert len(lags) == 4
    loop.close()
