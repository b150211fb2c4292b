"""Owns waiting by the clock, which only a soak may do, and percentiles of what it measured."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import numpy as np


async def pause(seconds: float) -> None:
    """Lets others go on for so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.get_running_loop().create_future()


def percentile(values: Sequence[float], percent: float) -> float:
    """Of the values; 0 when there are none."""
    return round(float(np.percentile(values, percent)), 3) if values else 0.0
