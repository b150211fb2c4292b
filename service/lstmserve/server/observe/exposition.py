"""Owns the names, labels and help of every metric. Reads the counts, never changes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from prometheus_client import Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)

from lstmserve.server.observe.histogram import Histogram

if TYPE_CHECKING:  # metrics imports this module
    from lstmserve.server.observe.metrics import Metrics

SERVICE = "lstmserve.v1.LstmService"
MODEL = ("model", "version")
RPC = ("grpc_type", "grpc_service", "grpc_method")

Labels = tuple[str, ...]


def families(metrics: Metrics) -> Iterator[Metric]:
    """Every metric with its samples as they are now."""
    yield from _steps(metrics)
    yield from _sessions(metrics)
    yield from _rpcs(metrics)
    yield from _store(metrics)
    yield from _infos(metrics)
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
        [((*key, *labels), n) for key, m in models.items() for labels, n in m.answered.items()],
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
        ("lstm_padding_rows", "Rows computed for nobody, to fill a batch.", "padding_rows"),
    ):
        yield _counter(name, text, MODEL, [(k, getattr(m, attribute)) for k, m in models.items()])
    for name, text, attribute in (
        ("lstm_step_seconds", "Arrival to answer of an applied step.", "total"),
        ("lstm_queue_seconds", "Arrival to start of compute of an applied step.", "queue"),
        ("lstm_compute_seconds", "One run of the model.", "compute"),
        ("lstm_batch_size", "Sessions in one run of the model.", "batch_size"),
    ):
        yield _histogram(name, text, MODEL, [(k, getattr(m, attribute)) for k, m in models.items()])


def _errors(metrics: Metrics) -> list[tuple[Labels, float]]:
    """The contract's label is the model alone: versions are summed."""
    sums: dict[Labels, float] = {}
    for (model, _), counts in metrics.models.items():
        for reason, count in counts.errors.items():
            sums[model, reason] = sums.get((model, reason), 0) + count
    return list(sums.items())


def _sessions(metrics: Metrics) -> Iterator[Metric]:
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
    now = [(key, read()) for key, read in metrics.gauges.items()]
    yield _gauge(
        "lstm_pending_steps",
        "Steps queued or running.",
        MODEL,
        [(key, each.pending_steps) for key, each in now],
    )
    for name, text, states in (
        ("slots", "Rows of the state pool.", ("used", "spare", "free")),
        ("sessions", "Live sessions; dirty: not yet in the store.", ("clean", "dirty")),
    ):
        yield _gauge(
            f"lstm_{name}",
            text,
            (*MODEL, "state"),
            [((*key, s), getattr(each, f"{name}_{s}")) for key, each in now for s in states],
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
        [((*labels, code), n) for labels, each in rpcs for code, n in each.handled.items()],
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
        [((op,), histogram) for op, histogram in metrics.store_seconds.items()],
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


def _infos(metrics: Metrics) -> Iterator[Metric]:
    model = InfoMetricFamily("lstm_model", "The weights a version has.", labels=MODEL)
    for key, fingerprint in metrics.fingerprints.items():
        model.add_metric(key, {"fingerprint": fingerprint})
    yield model
    version = metadata.version("lstmserve")
    yield InfoMetricFamily("lstm_build", "The release.", value={"version": version})


def _counter(
    name: str, text: str, names: Labels, samples: Iterable[tuple[Labels, float]]
) -> Metric:
    family = CounterMetricFamily(name, text, labels=names)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _gauge(name: str, text: str, names: Labels, samples: Iterable[tuple[Labels, float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=names)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _histogram(
    name: str, text: str, names: Labels, samples: Iterable[tuple[Labels, Histogram]]
) -> Metric:
    family = HistogramMetricFamily(name, text, labels=names)
    for labels, histogram in samples:
        family.add_metric(labels, *histogram.read())
    return family
