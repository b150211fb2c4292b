"""Owns the counts that Prometheus reads. Loop thread only; no label is ever a session id.

Counted per batch, shown by exposition.py at scrape.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from grpc import StatusCode
from prometheus_client import CollectorRegistry, Metric, ProcessCollector

from lstmserve.server.observe import exposition
from lstmserve.server.observe.histogram import SECONDS, SIZES, Histogram

NANOSECOND = 1e-9
SOURCES = ("new", "import", "fork", "load")
CLOSINGS = ("client", "expired", "replaced", "evicted", "moved", "drained")
STORE_OPS = ("load", "put", "quarantine")
GO_NAMES = {"OK": "OK", "CANCELLED": "Canceled"}

Read = Callable[[Callable[[], list[Metric]]], list[Metric]]


@dataclass(frozen=True, slots=True)
class Gauges:
    """What one model's scheduler and pool hold right now; each is a count."""

    pending_steps: int = 0
    slots_used: int = 0
    slots_spare: int = 0
    slots_free: int = 0
    sessions_clean: int = 0
    sessions_dirty: int = 0


@functools.cache
def go_code(code: StatusCode | str) -> str:
    """A code, or its name in capitals, as go-grpc-prometheus spells it."""
    name = code if isinstance(code, str) else code.name
    return GO_NAMES.get(name) or name.title().replace("_", "")


class ModelMetrics:
    """Counts of one model version. Loop thread only."""

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
        self.batch_size = Histogram(SIZES)
        self.compute = Histogram(SECONDS, NANOSECOND)
        self.total = Histogram(SECONDS, NANOSECOND)
        self.queue = Histogram(SECONDS, NANOSECOND)

    def batch(self, sessions: int, rows: int, padding_rows: int, compute_ns: int) -> None:
        """One run of the kernel; padding rows are those computed for nobody."""
        self.rows += rows
        self.padding_rows += padding_rows
        self.batch_size.observe(sessions)
        self.compute.observe(compute_ns)
        count, total_ns = self.runs.get(sessions, (0, 0))
        self.runs[sessions] = count + 1, total_ns + compute_ns
        self.last_run_ms = time.time_ns() // 1_000_000

    def steps(self, method: str, count: int, total_ns: int, queue_ns: int) -> None:
        """Steps that were applied together; the times are those of each."""
        self.answered[method, "OK"] += count
        self.total.observe(total_ns, count)
        self.queue.observe(queue_ns, count)

    def steps_of(self, method: str, arrivals_ns: Sequence[int], start_ns: int, end_ns: int) -> None:
        """Steps that were computed together, each with its own arrival."""
        self.answered[method, "OK"] += len(arrivals_ns)
        for arrival_ns in arrivals_ns:
            self.total.observe(end_ns - arrival_ns)
            self.queue.observe(start_ns - arrival_ns)

    def failed(self, method: str, code: StatusCode | str, reason: str, count: int = 1) -> None:
        """Steps that were answered with an error."""
        self.answered[method, go_code(code)] += count
        self.errors[reason] += count

    def replayed(self, count: int = 1) -> None:
        """Steps answered from the saved reply; steps() counts them too."""
        self.replays += count

    def opened(self, source: str) -> None:
        """A session began: new, import or fork."""
        self.sources[source] += 1

    def closed(self, reason: str, count: int = 1) -> None:
        """Sessions ended: client, expired, replaced or drained."""
        self.closings[reason] += count


class RpcMetrics:
    """Counts of one method's calls."""

    def __init__(self) -> None:
        self.started = 0
        self.handled: Counter[str] = Counter()  # by code, as Go spells it
        self.seconds = Histogram(SECONDS)  # of unary calls

    def ended(self, code: StatusCode | str, seconds: float | None = None) -> None:
        """A call ended; seconds for unary calls only."""
        self.handled[go_code(code)] += 1
        if seconds is not None:
            self.seconds.observe(seconds)


class Metrics:
    """Every metric of one server, registered with `registry`.

    `read` runs a function on the thread that owns the counts and returns its result; the default
    is for a scrape on that thread itself.
    """

    def __init__(
        self, registry: CollectorRegistry, read: Read = lambda function: function()
    ) -> None:
        self._read = read
        self.models: dict[tuple[str, str], ModelMetrics] = {}
        self.gauges: dict[tuple[str, str], Callable[[], Gauges]] = {}
        self.fingerprints: dict[tuple[str, str], str] = {}
        self.rpcs: dict[tuple[str, str, str], RpcMetrics] = {}
        self.loop_lag = Histogram(SECONDS)
        self.durable_lag_s: Callable[[], float] = lambda: 0.0
        self.store_seconds: dict[str, Histogram] = {}
        self.store_errors: Counter[tuple[str, str]] = Counter()
        ProcessCollector(registry=registry)
        registry.register(self)

    def model(self, name: str, version: int) -> ModelMetrics:
        """The counts of one model version; ("", 0) are steps whose session was not found."""
        key = _key(name, version)
        if key not in self.models:
            self.models[key] = ModelMetrics()
        return self.models[key]

    def model_info(self, name: str, version: int, fingerprint: str) -> None:
        """Shows which weights a version has."""
        self.fingerprints[_key(name, version)] = fingerprint

    def watch(self, name: str, version: int, gauges: Callable[[], Gauges]) -> None:
        """`gauges` is called once per scrape, on the loop's thread."""
        self.gauges[_key(name, version)] = gauges

    def rpc(self, method: str, grpc_type: str, service: str = exposition.SERVICE) -> RpcMetrics:
        """The counts of a method's calls; grpc_type is unary or bidi_stream."""
        return self.rpcs.setdefault((grpc_type, service, method), RpcMetrics())

    @property
    def rpcs_started(self) -> int:
        """Calls that arrived, of all methods."""
        return sum(each.started for each in self.rpcs.values())

    @property
    def rpcs_handled(self) -> int:
        """Calls that ended, of all methods."""
        return sum(each.handled.total() for each in self.rpcs.values())

    def has_store(self) -> None:
        """Its calls are shown from now on, at 0."""
        self.store_seconds = {op: Histogram(SECONDS, NANOSECOND) for op in STORE_OPS}

    def store_took(self, op: str, duration_ns: int) -> None:
        """One call of the store; `op` is one of STORE_OPS."""
        self.store_seconds[op].observe(duration_ns)

    def store_failed(self, op: str, reason: str) -> None:
        """A call that failed, or one row of it that was refused."""
        self.store_errors[op, reason] += 1

    def collect(self) -> Iterable[Metric]:
        """Called by the registry at every scrape, on the scrape's thread."""
        return self._read(lambda: list(exposition.families(self)))


def _key(name: str, version: int) -> tuple[str, str]:
    return name, str(version or "")
