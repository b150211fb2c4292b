"""Owns the counts of one histogram. Appends on the hot path, counts in numpy now and then."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from prometheus_client.utils import floatToGoString

SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5),
)
SIZES = tuple(float(1 << power) for power in range(13))
PENDING_MAX = 256


class Histogram:
    """Values are observed in units of `unit` (1e-9: nanoseconds), bounds are given in 1."""

    def __init__(self, bounds: Sequence[float], unit: float = 1.0) -> None:
        self._labels = [*map(floatToGoString, bounds), "+Inf"]
        # Rounded: 0.25 / 1e-9 is not 250,000,000, and a value on a bound counts below it.
        self._bounds = np.round(np.array(bounds) / unit, 6)
        self._sorted: list[float] = self._bounds.tolist()
        self._unit = unit
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        self._pending: list[float] = []

    def observe(self, value: float, count: int = 1) -> None:
        """One value, or the same one so many times."""
        if count != 1:
            # A tenth of what numpy's search takes for one value.
            self._counts[bisect_left(self._sorted, value)] += count
            self._sum += count * value
            return
        self._pending.append(value)
        if len(self._pending) >= PENDING_MAX:
            self._fold()

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """(upper bound, count of values up to it) with "+Inf" last, and the sum of all values."""
        self._fold()
        cumulative = self._counts.cumsum().tolist()
        return list(zip(self._labels, cumulative, strict=True)), self._sum * self._unit

    def _fold(self) -> None:
        if not self._pending:
            return
        values = np.array(self._pending)
        self._pending.clear()
        slots = np.searchsorted(self._bounds, values, side="left")
        self._counts += np.bincount(slots, minlength=len(self._counts))
        self._sum += float(values.sum())
