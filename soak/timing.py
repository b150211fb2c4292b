"""Waiting by the clock, which only a soak may do, and percentiles of what was measured."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import numpy as np


async def pause(seconds: float) -> None:
    """Lets others run for `seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.get_running_loop().create_future()


def percentile(values: Sequence[float], percent: float) -> float:
    """A percentile of the values; 0 without values."""
    return round(float(np.percentile(values, percent)), 3) if values else 0.0
