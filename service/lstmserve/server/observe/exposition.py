"""Owns the names, labels and help of every metric. Reads the counts, never changes them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from prometheus_client import Metric
from prometheus_client.core import InfoMetricFamily

from lstmserve.server.observe.families import Labels, counter, gauge, histogram

if TYPE_CHECKING:  # metrics imports this module
    from lstmserve.server.observe.metrics import Metrics, ModelMetrics

SERVICE = "lstmserve.v1.LstmService"
MODEL = ("model", "version")
RPC = ("grpc_type", "grpc_service", "grpc_method")
# Shown as 0 before the first: rate() and increase() never see a series begin at its first count.
WATCHED_CODES = ("OK", "Unavailable", "Internal", "Unknown", "DataLoss")


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
    yield InfoMetricFamily("lstm_build", "The release.", value={"version": _version()})


@functools.cache
def _version() -> str:
    """From files, so not at every scrape, which the event loop waits for."""
    return metadata.version("lstmserve")
