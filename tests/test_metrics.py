"""The counts against plain Python, and the names and labels against the contract."""

from __future__ import annotations

import bisect
import random

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from lstmserve.server.observe.counters import (
    SECONDS_BOUNDS,
    SIZE_BOUNDS,
    UNSORTED_MAX,
    Histogram,
    go_code,
)
from lstmserve.server.observe.metrics import (
    SERVICE,
    STORE_OPS,
    WATCHED_CODES,
    Gauges,
    Metrics,
)

LABELS = {
    *("model", "version", "method", "code", "reason", "state", "source", "op"),
    *("fingerprint", "kind", "window"),
    *("grpc_type", "grpc_service", "grpc_method", "grpc_code", "le"),
}
NAMES = {
    *("grpc_server_started", "grpc_server_handled", "grpc_server_handling_seconds"),
    *("lstm_steps", "lstm_step_errors", "lstm_steps_replayed", "lstm_rows", "lstm_padding_rows"),
    *("lstm_step_seconds", "lstm_queue_seconds", "lstm_compute_seconds", "lstm_batch_size"),
    *("lstm_pending_steps", "lstm_slots", "lstm_sessions"),
    *("lstm_pool_bytes", "lstm_pool_bytes_limit"),
    *("lstm_pending_bytes", "lstm_pending_bytes_limit"),
    *("lstm_sessions_opened", "lstm_sessions_closed", "lstm_loop_lag_seconds"),
    *("lstm_store_seconds", "lstm_store_errors", "lstm_durable_lag_seconds"),
    *("lstm_model", "lstm_model_difference", "lstm_build", "lstm_model_folders"),
}


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of the test's own."""
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    """Metrics that have counted a bit of everything."""
    metrics = Metrics(registry)
    model = metrics.model("tiny", 1)
    model.batch(sessions=3, rows=7, padding_rows=2, compute_ns=80_000)
    model.steps("StepStream", 1, 300_000, 3)
    model.steps("StepStream", 2, 150_000, 2)
    model.steps("Step", 2, 1_000_000, 500_000)
    model.failed("StepMany", "INVALID_ARGUMENT", "NON_FINITE", 4)
    model.opened("new")
    model.opened("fork")
    model.closed("client")
    gauges = Gauges(
        "abc",
        "network",
        1e-7,
        window="30 (wait)",
        pending_steps=5,
        slots_used=1,
        sessions_clean=1,
        pool_bytes_touched=9,
    )
    metrics.gauges = lambda: {("tiny", "1"): gauges}
    metrics.pool_bytes_max = 1024
    steps, streams = metrics.rpc("Step", "unary"), metrics.rpc("StepStream", "bidi_stream")
    steps.started = streams.started = 1
    steps.ended(grpc.StatusCode.NOT_FOUND, 0.002)
    streams.ended(grpc.StatusCode.OK)
    metrics.loop_lag.observe(0.003)
    return metrics


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    """A sample of the model version tiny:1."""
    return registry.get_sample_value(name, {"model": "tiny", "version": "1", **labels})


def test_counts_come_out(registry: CollectorRegistry, metrics: Metrics) -> None:
    """Every count is shown with its labels."""
    assert value(registry, "lstm_steps_total", method="StepStream", code="OK") == 3
    assert value(registry, "lstm_steps_total", method="Step", code="OK") == 2
    assert value(registry, "lstm_steps_total", method="StepMany", code="InvalidArgument") == 4
    errors = {"model": "tiny", "reason": "NON_FINITE"}
    assert registry.get_sample_value("lstm_step_errors_total", errors) == 4
    assert value(registry, "lstm_rows_total") == 7
    assert value(registry, "lstm_padding_rows_total") == 2
    assert value(registry, "lstm_batch_size_count") == 1
    assert value(registry, "lstm_batch_size_sum") == 3
    assert value(registry, "lstm_step_seconds_count") == 5
    assert value(registry, "lstm_step_seconds_sum") == pytest.approx(0.0026)
    assert value(registry, "lstm_step_seconds_bucket", le="0.00025") == 2
    assert value(registry, "lstm_queue_seconds_sum") == pytest.approx(0.001000006)
    assert value(registry, "lstm_compute_seconds_sum") == pytest.approx(80e-6)
    assert value(registry, "lstm_pending_steps") == 5
    assert value(registry, "lstm_slots", state="used") == 1
    assert value(registry, "lstm_pool_bytes", state="touched") == 9
    assert registry.get_sample_value("lstm_pool_bytes_limit") == 1024
    assert (
        value(registry, "lstm_model_info", fingerprint="abc", kind="network", window="30 (wait)")
        == 1
    )
    assert value(registry, "lstm_model_difference") == 1e-7


def test_rpcs_come_out_as_go_grpc_prometheus_names_them(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    """Calls have the names, labels and spelling of codes that stock dashboards expect."""
    labels = {
        "grpc_type": "unary",
        "grpc_service": "lstmserve.v1.LstmService",
        "grpc_method": "Step",
    }
    assert registry.get_sample_value("grpc_server_started_total", labels) == 1
    handled = {**labels, "grpc_code": "NotFound"}
    assert registry.get_sample_value("grpc_server_handled_total", handled) == 1
    assert registry.get_sample_value("grpc_server_handling_seconds_count", labels) == 1
    stream = {**labels, "grpc_type": "bidi_stream", "grpc_method": "StepStream"}
    assert registry.get_sample_value("grpc_server_handling_seconds_count", stream) is None


def test_names_and_labels_are_the_contract_s(registry: CollectorRegistry, metrics: Metrics) -> None:
    """Names and label names are a closed set, valid as OpenMetrics and as plain text."""
    families = list(text_string_to_metric_families(generate_openmetrics(registry).decode()))
    own = {family.name for family in families if not family.name.startswith("process_")}
    assert own == NAMES
    assert {family.name for family in families} > own
    found = {name for family in families for sample in family.samples for name in sample.labels}
    assert found <= LABELS
    assert b"lstm_build_info{" in generate_latest(registry)


def test_opened_minus_closed_is_sessions(registry: CollectorRegistry) -> None:
    """However sessions begin and end, opened - closed equals lstm_sessions at every scrape."""
    seed = 2
    print(f"seed {seed}")
    rng = random.Random(seed)
    metrics = Metrics(registry)
    model, live = metrics.model("tiny", 1), 0

    metrics.gauges = lambda: {("tiny", "1"): Gauges(sessions_clean=live)}
    for _ in range(200):
        if rng.random() < 0.6:
            model.opened(rng.choice(["new", "import", "fork"]))
            live += 1
        else:
            count = rng.randint(0, live)
            model.closed(rng.choice(["client", "expired", "replaced", "drained"]), count)
            live -= count
        totals = {"lstm_sessions_opened": 0.0, "lstm_sessions_closed": 0.0, "lstm_sessions": 0.0}
        for family in registry.collect():
            if family.name in totals:
                totals[family.name] = sum(sample.value for sample in family.samples)
        opened, closed, sessions = totals.values()
        assert opened - closed == sessions == live


@pytest.mark.parametrize("bounds", [SECONDS_BOUNDS, SIZE_BOUNDS], ids=["seconds", "sizes"])
def test_histogram_counts_as_plain_python_does(bounds: tuple[float, ...]) -> None:
    """Numpy's buckets equal bisect's, also on a bound itself and over several folds."""
    seed = 3
    print(f"seed {seed}")
    rng = random.Random(seed)
    histogram, counts, total = Histogram(bounds), [0] * (len(bounds) + 1), 0.0
    for _ in range(2 * UNSORTED_MAX + 7):
        value, count = rng.choice([*bounds, 10 ** rng.uniform(-5, 4)]), rng.randint(0, 4)
        histogram.observe(value, count)
        counts[bisect.bisect_left(bounds, value)] += count
        total += count * value
    buckets, read_sum = histogram.read()
    assert buckets[-1] == ("+Inf", sum(counts))
    assert [float(label) for label, _ in buckets[:-1]] == list(bounds)
    assert np.diff([0, *(count for _, count in buckets)]).tolist() == counts
    assert read_sum == pytest.approx(total)


def test_bounds_hold_in_nanoseconds() -> None:
    """A value on a bound counts below it, also when values are in nanoseconds."""
    histogram = Histogram(SECONDS_BOUNDS, 1e-9)
    for bound in SECONDS_BOUNDS:
        histogram.observe(round(bound * 1e9))
    assert [count for _, count in histogram.read()[0]] == [*range(1, len(SECONDS_BOUNDS) + 1), 14]


def test_codes_are_spelt_as_go_does() -> None:
    """The two irregular codes and a compound one are spelt as in Go, by code and by name."""
    assert go_code(grpc.StatusCode.OK) == "OK"
    assert go_code("CANCELLED") == "Canceled"
    assert go_code("FAILED_PRECONDITION") == "FailedPrecondition"


def test_scrape_runs_where_the_counts_live() -> None:
    """The function that the server hands in reads the counts, not the scrape's thread."""
    registry, calls = CollectorRegistry(), []

    def read(function):
        calls.append(function)
        return function()

    Metrics(registry, read)
    generate_latest(registry)
    assert len(calls) == 1


def test_counts_that_are_watched_begin_at_0(registry: CollectorRegistry) -> None:
    """A method that answered once shows 0 for the codes that alerts watch, and so does a store for
    its calls."""
    metrics = Metrics(registry)
    metrics.model("tiny", 1).failed("Step", "UNKNOWN", "INTERNAL")
    metrics.rpc("Step", "unary").started = 1
    labels = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": "Step"}
    for code in WATCHED_CODES:
        assert value(registry, "lstm_steps_total", method="Step", code=code) == (code == "Unknown")
    handled = {**labels, "grpc_code": "Unknown"}
    assert registry.get_sample_value("grpc_server_handled_total", handled) == 0
    assert registry.get_sample_value("lstm_store_seconds_count", {"op": "put"}) is None
    metrics.has_store()
    for op in STORE_OPS:
        assert registry.get_sample_value("lstm_store_seconds_count", {"op": op}) == 0
