"""What the server counts on the hot path: histograms, and the counters of models and methods.

The event loop's thread writes and reads them. They know neither Prometheus' names nor a session id.
"""

from __future__ import annotations

import functools
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

import numpy as np
from grpc import StatusCode
from prometheus_client.utils import floatToGoString

NANOSECOND = 1e-9
SOURCES = ("new", "import", "fork", "load", "resume")
CLOSINGS = ("client", "expired", "replaced", "evicted", "moved", "drained")
GO_NAMES = {"OK": "OK", "CANCELLED": "Canceled"}
SECONDS_BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5),
)
SIZE_BOUNDS = tuple(float(1 << power) for power in range(13))
UNSORTED_MAX = 256  # values that wait to be counted together


class Histogram:
    """Counts values by upper bound. Values are in units of `unit` (1e-9: ns), bounds in units of 1.

    observe() only appends; numpy sorts the values into their bounds now and then.
    """

    def __init__(self, bounds: Sequence[float], unit: float = 1.0) -> None:
        self._labels = [*map(floatToGoString, bounds), "+Inf"]
        # Rounded: 0.25 / 1e-9 is not 250,000,000, and a value on a bound counts below it.
        self._bounds = np.round(np.array(bounds) / unit, 6)
        self._sorted: list[float] = self._bounds.tolist()
        self._unit = unit
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        self._unsorted: list[float] = []

    def observe(self, value: float, count: int = 1) -> None:
        """Counts one value, `count` times."""
        if count != 1:
            # A tenth of what numpy's search takes for one value.
            self._counts[bisect_left(self._sorted, value)] += count
            self._sum += count * value
            return
        self._unsorted.append(value)
        if len(self._unsorted) >= UNSORTED_MAX:
            self._fold()

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """(upper bound, count of values up to it) with "+Inf" last, and the sum of all values."""
        self._fold()
        cumulative = self._counts.cumsum().tolist()
        return list(zip(self._labels, cumulative, strict=True)), self._sum * self._unit

    def _fold(self) -> None:
        if not self._unsorted:
            return
        values = np.array(self._unsorted)
        self._unsorted.clear()
        slots = np.searchsorted(self._bounds, values, side="left")
        self._counts += np.bincount(slots, minlength=len(self._counts))
        self._sum += float(values.sum())


@functools.cache
def go_code(code: StatusCode | str) -> str:
    """A code, or its name in capitals, in the spelling of go-grpc-prometheus."""
    name = code if isinstance(code, str) else code.name
    return GO_NAMES.get(name) or name.title().replace("_", "")


class ModelMetrics:
    """Counts of one model version."""

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, str]] = Counter()
        self.errors: Counter[str] = Counter()
        self.sources: Counter[str] = Counter(dict.fromkeys(SOURCES, 0))
        self.closings: Counter[str] = Counter(dict.fromkeys(CLOSINGS, 0))
        self.replays = 0
        self.rows = 0
        self.padding_rows = 0
        self.runs: dict[int, tuple[int, int]] = {}  # by batch size: how many, and their ns
        self.last_run_ms = 0  # since 1970
        self.batch_size = Histogram(SIZE_BOUNDS)
        self.compute = Histogram(SECONDS_BOUNDS, NANOSECOND)
        self.total = Histogram(SECONDS_BOUNDS, NANOSECOND)
        self.queue = Histogram(SECONDS_BOUNDS, NANOSECOND)

    def batch(self, sessions: int, rows: int, padding_rows: int, compute_ns: int) -> None:
        """Counts one run of the kernel; padding rows only fill the batch."""
        self.rows += rows
        self.padding_rows += padding_rows
        self.batch_size.observe(sessions)
        self.compute.observe(compute_ns)
        count, total_ns = self.runs.get(sessions, (0, 0))
        self.runs[sessions] = count + 1, total_ns + compute_ns
        self.last_run_ms = time.time_ns() // 1_000_000

    def steps(self, method: str, count: int, total_ns: int, queue_ns: int) -> None:
        """Counts steps that were applied together and took the same time."""
        self.answered[method, "OK"] += count
        self.total.observe(total_ns, count)
        self.queue.observe(queue_ns, count)

    def steps_of(self, method: str, arrivals_ns: Sequence[int], start_ns: int, end_ns: int) -> None:
        """Counts steps that were computed together, each with its own arrival."""
        self.answered[method, "OK"] += len(arrivals_ns)
        for arrival_ns in arrivals_ns:
            self.total.observe(end_ns - arrival_ns)
            self.queue.observe(start_ns - arrival_ns)

    def failed(self, method: str, code: StatusCode | str, reason: str, count: int = 1) -> None:
        """Counts steps that were answered with an error."""
        self.answered[method, go_code(code)] += count
        self.errors[reason] += count

    def replayed(self, count: int = 1) -> None:
        """Counts steps answered from the saved reply, which steps() counts as well."""
        self.replays += count

    def opened(self, source: str) -> None:
        """Counts a session that began; `source` is one of SOURCES."""
        self.sources[source] += 1

    def closed(self, reason: str, count: int = 1) -> None:
        """Counts sessions that ended; `reason` is one of CLOSINGS."""
        self.closings[reason] += count


class RpcMetrics:
    """Counts of one method's calls."""

    def __init__(self) -> None:
        self.started = 0
        self.handled: Counter[str] = Counter()  # by code, as Go spells it
        self.seconds = Histogram(SECONDS_BOUNDS)  # of unary calls

    def ended(self, code: StatusCode | str, seconds: float | None = None) -> None:
        """Counts a call that ended; only unary calls have `seconds`."""
        self.handled[go_code(code)] += 1
        if seconds is not None:
            self.seconds.observe(seconds)
