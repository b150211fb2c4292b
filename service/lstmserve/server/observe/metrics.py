"""The server's metrics: every counter and gauge, and their samples when Prometheus scrapes.

Everything runs on the event loop's thread, apart from collect(). No label is ever a session id.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata

import numpy as np
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)

from lstmserve.engine import Engine, Model
from lstmserve.engine.budget import is_shared
from lstmserve.engine.model import spare_slots
from lstmserve.engine.table import CLOSING, OPEN
from lstmserve.server.observe.counters import (
    NANOSECOND,
    SECONDS_BOUNDS,
    Histogram,
    ModelMetrics,
    RpcMetrics,
)

SERVICE = "lstmserve.v1.LstmService"
MODEL = ("model", "version")
RPC = ("grpc_type", "grpc_service", "grpc_method")
# Shown as 0 before the first one: otherwise rate() and increase() would miss that one.
WATCHED_CODES = ("OK", "Unavailable", "Internal", "Unknown", "DataLoss")
STORE_OPS = ("load", "put", "quarantine")

Labels = tuple[str, ...]
ReadOnLoop = Callable[[Callable[[], list[Metric]]], list[Metric]]


@dataclass(frozen=True, slots=True)
class Gauges:
    """What one model has right now."""

    fingerprint: str = ""
    kind: str = "lstm"
    difference: float = 0.0
    window: str = ""  # its rows, and what stands for those that a new session lacks
    pending_steps: int = 0
    slots_used: int = 0
    slots_spare: int = 0
    slots_free: int = 0
    sessions_clean: int = 0
    sessions_dirty: int = 0
    pool_bytes_charged: int = 0
    pool_bytes_touched: int = 0


def read_gauges(engine: Engine) -> dict[Labels, Gauges]:
    """The gauges of the models that are served now, by their labels."""
    return {_model_labels(each.name, each.version): _gauges(engine, each) for each in engine.models}


def _gauges(engine: Engine, model: Model) -> Gauges:
    """Used and free slots are for sessions, spare ones for steps in flight. Where models share
    memory, a slot that is free for one may be free for all.

    Sessions are counted in the table, because the counters are compared with this number.
    """
    if model.pool is None or model.scheduler is None:
        return Gauges(model.fingerprint, model.spec.kind, model.difference)
    table = engine.table
    used = slice(table.used)
    phase = table.phase[used]
    is_live = ((phase == OPEN) | (phase == CLOSING)) & (table.model[used] == model.handle)
    sessions = int(np.count_nonzero(is_live))
    is_dirty = is_live & (table.step[used] > table.durable_step[used])
    dirty = int(np.count_nonzero(is_dirty)) if engine.lifecycle.has_store else 0
    return Gauges(
        model.fingerprint,
        model.spec.kind,
        model.difference,
        window=f"{model.spec.window} ({model.spec.window_fill})" if model.spec.window else "",
        pending_steps=model.scheduler.pending_steps,
        slots_used=model.sessions,
        slots_spare=spare_slots(engine.config, model.spec.cells),
        slots_free=engine.registry.budget.room(model),
        sessions_clean=sessions - dirty,
        sessions_dirty=dirty,
        pool_bytes_charged=model.charged_bytes,
        pool_bytes_touched=model.pool.touched_bytes if is_shared(model) else model.charged_bytes,
    )


class Metrics:
    """Every metric of one server, registered with `registry`.

    `read` runs a function on the thread that owns the counts and returns its result; the default
    is for a scrape on that thread itself.
    """

    def __init__(
        self, registry: CollectorRegistry, read: ReadOnLoop = lambda function: function()
    ) -> None:
        self._read = read
        self.models: dict[tuple[str, str], ModelMetrics] = {}
        # Each scrape calls it once, on the loop's thread: the models that are served, by labels.
        self.gauges: Callable[[], Mapping[Labels, Gauges]] = dict
        self.pool_bytes_max = 0
        self.folders_refused = 0
        self.rpcs: dict[tuple[str, str, str], RpcMetrics] = {}
        self.loop_lag = Histogram(SECONDS_BOUNDS)
        self.durable_lag_s: Callable[[], float] = lambda: 0.0
        self.pending_bytes: Callable[[], tuple[int, int]] = lambda: (0, 0)  # held, and the limit
        self.store_seconds: dict[str, Histogram] = {}
        self.store_errors: Counter[tuple[str, str]] = Counter()
        ProcessCollector(registry=registry)
        registry.register(self)

    def model(self, name: str, version: int) -> ModelMetrics:
        """The counts of one model version; ("", 0) are steps whose session was not found."""
        key = _model_labels(name, version)
        if key not in self.models:
            self.models[key] = ModelMetrics()
        return self.models[key]

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
        """Shows the store's calls from now on, beginning at 0."""
        self.store_seconds = {op: Histogram(SECONDS_BOUNDS, NANOSECOND) for op in STORE_OPS}

    def store_took(self, op: str, duration_ns: int) -> None:
        """Counts one call of the store; `op` is one of STORE_OPS."""
        self.store_seconds[op].observe(duration_ns)

    def store_failed(self, op: str, reason: str) -> None:
        """Counts a call that failed, or one row of it that was refused."""
        self.store_errors[op, reason] += 1

    def collect(self) -> Iterable[Metric]:
        """The registry calls this at every scrape, on the scrape's thread."""
        return self._read(lambda: list(families(self)))


def _model_labels(name: str, version: int) -> tuple[str, str]:
    return name, str(version or "")


def families(metrics: Metrics) -> Iterator[Metric]:
    """Every metric with its samples as they are now."""
    now = metrics.gauges()
    yield from _steps(metrics)
    yield from _sessions(metrics, now)
    yield from _rpcs(metrics)
    yield from _store(metrics)
    yield from _infos(metrics, now)
    yield _histogram(
        "lstm_loop_lag_seconds",
        "How late the event loop's own timer fired.",
        (),
        [((), metrics.loop_lag)],
    )


def _steps(metrics: Metrics) -> Iterator[Metric]:
    models = metrics.models
    yield _counter(
        "lstm_steps",
        "Steps answered, over all methods; code OK: applied.",
        (*MODEL, "method", "code"),
        [((*key, *labels), n) for key, m in models.items() for labels, n in _answered(m).items()],
    )
    yield _counter(
        "lstm_step_errors",
        "Steps answered with an error.",
        ("model", "reason"),
        _errors(metrics),
    )
    for name, text, attribute in (
        ("lstm_steps_replayed", "Steps answered from the saved reply.", "replays"),
        ("lstm_rows", "Rows (time steps) computed.", "rows"),
        ("lstm_padding_rows", "Rows computed only to fill a batch.", "padding_rows"),
    ):
        yield _counter(name, text, MODEL, [(k, getattr(m, attribute)) for k, m in models.items()])
    for name, text, attribute in (
        ("lstm_step_seconds", "Arrival to answer of an applied step.", "total"),
        ("lstm_queue_seconds", "Arrival to start of compute of an applied step.", "queue"),
        ("lstm_compute_seconds", "One run of the model.", "compute"),
        ("lstm_batch_size", "Sessions in one run of the model.", "batch_size"),
    ):
        yield _histogram(name, text, MODEL, [(k, getattr(m, attribute)) for k, m in models.items()])


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


def _sessions(metrics: Metrics, now: Mapping[Labels, Gauges]) -> Iterator[Metric]:
    models = [(key, m) for key, m in metrics.models.items() if key[0]]
    yield _counter(
        "lstm_sessions_opened",
        "Sessions that began.",
        (*MODEL, "source"),
        [((*key, source), n) for key, m in models for source, n in m.sources.items()],
    )
    yield _counter(
        "lstm_sessions_closed",
        "Sessions that ended; opened - closed = lstm_sessions.",
        (*MODEL, "reason"),
        [((*key, reason), n) for key, m in models for reason, n in m.closings.items()],
    )
    yield _gauge(
        "lstm_pending_steps",
        "Steps queued or running.",
        MODEL,
        [(key, each.pending_steps) for key, each in now.items()],
    )
    pending, limit = metrics.pending_bytes()
    for name, text, value in (
        ("lstm_pending_bytes", "Bytes of messages, inputs and replies that wait.", pending),
        ("lstm_pending_bytes_limit", "Limit of lstm_pending_bytes: --pending-bytes-max.", limit),
        ("lstm_pool_bytes_limit", "Most that all pools are charged.", metrics.pool_bytes_max),
    ):
        yield _gauge(name, text, (), [((), value)])
    for name, text, states in (
        ("slots", "Rows of the state pool.", ("used", "spare", "free")),
        ("pool_bytes", "Memory of states; touched: resident.", ("charged", "touched")),
        ("sessions", "Live sessions; dirty: not yet in the store.", ("clean", "dirty")),
    ):
        yield _gauge(
            f"lstm_{name}",
            text,
            (*MODEL, "state"),
            [
                ((*key, s), getattr(each, f"{name}_{s}"))
                for key, each in now.items()
                for s in states
            ],
        )


def _rpcs(metrics: Metrics) -> Iterator[Metric]:
    rpcs = [(labels, each) for labels, each in metrics.rpcs.items() if each.started]
    yield _counter(
        "grpc_server_started",
        "Calls that arrived.",
        RPC,
        [(labels, each.started) for labels, each in rpcs],
    )
    yield _counter(
        "grpc_server_handled",
        "Calls that ended.",
        (*RPC, "grpc_code"),
        [
            ((*labels, code), n)
            for labels, each in rpcs
            for code, n in {"Unknown": 0, **each.handled}.items()
        ],
    )
    yield _histogram(
        "grpc_server_handling_seconds",
        "Arrival to end of a unary call.",
        RPC,
        [(labels, each.seconds) for labels, each in rpcs if labels[0] == "unary"],
    )


def _store(metrics: Metrics) -> Iterator[Metric]:
    yield _histogram(
        "lstm_store_seconds",
        "One call of the store.",
        ("op",),
        [((op,), seconds) for op, seconds in metrics.store_seconds.items()],
    )
    yield _counter(
        "lstm_store_errors",
        "Calls of the store that failed, and rows that it refused.",
        ("op", "reason"),
        list(metrics.store_errors.items()),
    )
    yield _gauge(
        "lstm_durable_lag_seconds",
        "Age of the oldest step that a store does not have yet.",
        (),
        [((), metrics.durable_lag_s())],
    )


def _infos(metrics: Metrics, now: Mapping[Labels, Gauges]) -> Iterator[Metric]:
    model = InfoMetricFamily("lstm_model", "The weights a version has.", labels=MODEL)
    for key, each in now.items():
        value = {"fingerprint": each.fingerprint, "kind": each.kind, "window": each.window}
        model.add_metric(key, value)
    yield model
    yield _gauge(
        "lstm_model_difference",
        "Most that a row's results depend on its batch and chunk, as the start measured; 0: exact.",
        MODEL,
        [(key, each.difference) for key, each in now.items()],
    )
    yield _gauge(
        "lstm_model_folders",
        "Versions in the models folder; refused: not served, the log says why.",
        ("state",),
        [(("served",), len(now)), (("refused",), metrics.folders_refused)],
    )
    yield InfoMetricFamily("lstm_build", "The release.", value={"version": _version()})


def _counter(
    name: str, text: str, names: Labels, samples: Iterable[tuple[Labels, float]]
) -> Metric:
    return _filled(CounterMetricFamily(name, text, labels=names), samples)


def _gauge(name: str, text: str, names: Labels, samples: Iterable[tuple[Labels, float]]) -> Metric:
    return _filled(GaugeMetricFamily(name, text, labels=names), samples)


def _filled(
    family: CounterMetricFamily | GaugeMetricFamily, samples: Iterable[tuple[Labels, float]]
) -> Metric:
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _histogram(
    name: str, text: str, names: Labels, samples: Iterable[tuple[Labels, Histogram]]
) -> Metric:
    family = HistogramMetricFamily(name, text, labels=names)
    for labels, counts in samples:
        family.add_metric(labels, *counts.read())
    return family


@functools.cache
def _version() -> str:
    """Cached, because it reads files, and the event loop waits for the scrape."""
    return metadata.version("lstmserve")
