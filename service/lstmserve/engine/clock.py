"""Owns the reading of the machine's clocks; everything else gets the time as an argument."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Now(NamedTuple):
    """One reading of both clocks: monotonic for waits, wall for what people read."""

    monotonic_ns: int
    wall_ns: int


Clock = Callable[[], Now]


def monotonic_of(clock: Clock) -> Callable[[], int]:
    """The clock's monotonic half, for where the other one is not asked for at every step."""
    return time.monotonic_ns if clock is read_clocks else lambda: clock().monotonic_ns


def read_clocks() -> Now:
    """The machine's clocks, now."""
    return Now(time.monotonic_ns(), time.time_ns())
