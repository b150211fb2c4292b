"""Owns the counts that Prometheus reads. Loop thread only; no label is ever a session id.

The counts change per batch; `families` turns them into samples at scrape.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

from grpc import StatusCode
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import InfoMetricFamily

from lstmserve.server.observe.families import Labels, counter, gauge, histogram
from lstmserve.server.observe.histogram import SECONDS, SIZES, Histogram

NANOSECOND = 1e-9
SERVICE = "lstmserve.v1.LstmService"
MODEL = ("model", "version")
RPC = ("grpc_type", "grpc_service", "grpc_method")
# Shown as 0 before the first: rate() and increase() never see a series begin at its first count.
WATCHED_CODES = ("OK", "Unavailable", "Internal", "Unknown", "DataLoss")
SOURCES = ("new", "import", "fork", "load", "resume")
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
        self.model_folders = {"served": 0, "refused": 0}
        self.rpcs: dict[tuple[str, str, str], RpcMetrics] = {}
        self.loop_lag = Histogram(SECONDS)
        self.durable_lag_s: Callable[[], float] = lambda: 0.0
        self.pending_bytes: Callable[[], tuple[int, int]] = lambda: (0, 0)  # held, and the limit
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

    def rpc(self, method: str, grpc_type: str, service: str = SERVICE) -> RpcMetrics:
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
        return self._read(lambda: list(families(self)))


def _key(name: str, version: int) -> tuple[str, str]:
    return name, str(version or "")


def families(metrics: Metrics) -> Iterator[Metric]:
    """Every metric with its samples as they are now."""
    yield from _steps(metrics)
    yield from _sessions(metrics)
    yield from _rpcs(metrics)
    yield from _store(metrics)
    yield from _infos(metrics)
    yield histogram(
        "lstm_loop_lag_seconds",
        "How late the event loop's own timer fired.",
        (),
        [((), metrics.loop_lag)],
    )


def _steps(metrics: Metrics) -> Iterator[Metric]:
    models = metrics.models
    yield counter(
        "lstm_steps",
        "Steps answered, over all methods; code OK: applied.",
        (*MODEL, "method", "code"),
        [((*key, *labels), n) for key, m in models.items() for labels, n in _answered(m).items()],
    )
    yield counter(
        "lstm_step_errors",
        "Steps answered with an error.",
        ("model", "reason"),
        _errors(metrics),
    )
    for name, text, attribute in (
        ("lstm_steps_replayed", "Steps answered from the saved reply.", "replays"),
        ("lstm_rows", "Rows (time steps) computed.", "rows"),
        ("lstm_padding_rows", "Rows computed for nobody, to fill a batch.", "padding_rows"),
    ):
        yield counter(name, text, MODEL, [(k, getattr(m, attribute)) for k, m in models.items()])
    for name, text, attribute in (
        ("lstm_step_seconds", "Arrival to answer of an applied step.", "total"),
        ("lstm_queue_seconds", "Arrival to start of compute of an applied step.", "queue"),
        ("lstm_compute_seconds", "One run of the model.", "compute"),
        ("lstm_batch_size", "Sessions in one run of the model.", "batch_size"),
    ):
        yield histogram(name, text, MODEL, [(k, getattr(m, attribute)) for k, m in models.items()])


def _answered(counts: ModelMetrics) -> dict[tuple[str, str], int]:
    methods = {method for method, _ in counts.answered}
    return dict.fromkeys(itertools.product(sorted(methods), WATCHED_CODES), 0) | counts.answered


def _errors(metrics: Metrics) -> list[tuple[Labels, float]]:
    """The contract's label is the model alone: versions are summed."""
    sums: dict[Labels, float] = {}
    for (model, _), counts in metrics.models.items():
        for reason, count in counts.errors.items():
            sums[model, reason] = sums.get((model, reason), 0) + count
    return list(sums.items())


def _sessions(metrics: Metrics) -> Iterator[Metric]:
    models = [(key, m) for key, m in metrics.models.items() if key[0]]
    yield counter(
        "lstm_sessions_opened",
        "Sessions that began.",
        (*MODEL, "source"),
        [((*key, source), n) for key, m in models for source, n in m.sources.items()],
    )
    yield counter(
        "lstm_sessions_closed",
        "Sessions that ended; opened - closed = lstm_sessions.",
        (*MODEL, "reason"),
        [((*key, reason), n) for key, m in models for reason, n in m.closings.items()],
    )
    now = [(key, read()) for key, read in metrics.gauges.items()]
    yield gauge(
        "lstm_pending_steps",
        "Steps queued or running.",
        MODEL,
        [(key, each.pending_steps) for key, each in now],
    )
    pending, limit = metrics.pending_bytes()
    for name, text, value in (
        ("lstm_pending_bytes", "Bytes of messages, inputs and replies that wait.", pending),
        ("lstm_pending_bytes_limit", "The most that may: --pending-bytes-max.", limit),
    ):
        yield gauge(name, text, (), [((), value)])
    for name, text, states in (
        ("slots", "Rows of the state pool.", ("used", "spare", "free")),
        ("sessions", "Live sessions; dirty: not yet in the store.", ("clean", "dirty")),
    ):
        yield gauge(
            f"lstm_{name}",
            text,
            (*MODEL, "state"),
            [((*key, s), getattr(each, f"{name}_{s}")) for key, each in now for s in states],
        )


def _rpcs(metrics: Metrics) -> Iterator[Metric]:
    rpcs = [(labels, each) for labels, each in metrics.rpcs.items() if each.started]
    yield counter(
        "grpc_server_started",
        "Calls that arrived.",
        RPC,
        [(labels, each.started) for labels, each in rpcs],
    )
    yield counter(
        "grpc_server_handled",
        "Calls that ended.",
        (*RPC, "grpc_code"),
        [
            ((*labels, code), n)
            for labels, each in rpcs
            for code, n in {"Unknown": 0, **each.handled}.items()
        ],
    )
    yield histogram(
        "grpc_server_handling_seconds",
        "Arrival to end of a unary call.",
        RPC,
        [(labels, each.seconds) for labels, each in rpcs if labels[0] == "unary"],
    )


def _store(metrics: Metrics) -> Iterator[Metric]:
    yield histogram(
        "lstm_store_seconds",
        "One call of the store.",
        ("op",),
        [((op,), seconds) for op, seconds in metrics.store_seconds.items()],
    )
    yield counter(
        "lstm_store_errors",
        "Calls of the store that failed, and rows that it refused.",
        ("op", "reason"),
        list(metrics.store_errors.items()),
    )
    yield gauge(
        "lstm_durable_lag_seconds",
        "Age of the oldest step that a store does not have yet.",
        (),
        [((), metrics.durable_lag_s())],
    )


def _infos(metrics: Metrics) -> Iterator[Metric]:
    model = InfoMetricFamily("lstm_model", "The weights a version has.", labels=MODEL)
    for key, fingerprint in metrics.fingerprints.items():
        model.add_metric(key, {"fingerprint": fingerprint})
    yield model
    yield gauge(
        "lstm_model_folders",
        "Versions in the models folder; refused: not served, the log says why.",
        ("state",),
        [((state,), count) for state, count in metrics.model_folders.items()],
    )
    yield InfoMetricFamily("lstm_build", "The release.", value={"version": _version()})


@functools.cache
def _version() -> str:
    """From files, so not at every scrape, which the event loop waits for."""
    return metadata.version("lstmserve")
