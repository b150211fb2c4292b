"""Reads the machine's clocks. Every other module of the engine gets the time as an argument."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

SECOND_NS: Final = 1_000_000_000


class Now(NamedTuple):
    """One reading of both clocks: monotonic for waits, wall for what people read."""

    monotonic_ns: int
    wall_ns: int


Clock = Callable[[], Now]


def monotonic_of(clock: Clock) -> Callable[[], int]:
    """The clock's monotonic half alone: a step does not pay for the other one."""
    return time.monotonic_ns if clock is read_clocks else lambda: clock().monotonic_ns


def read_clocks() -> Now:
    """Both clocks of the machine, now."""
    return Now(time.monotonic_ns(), time.time_ns())
