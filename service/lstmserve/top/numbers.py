"""Reads a server's metrics twice and computes what happened in between: rates, quantiles, counts.

Only scrape() does I/O, and the only clock is the time of each scrape. A number that is not known
yet is NaN. This module draws nothing.
"""

from __future__ import annotations

import http.client
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from lstmserve.address import join

TIMEOUT_S = 5.0
BYTES_MAX = 16 << 20

Samples = list[tuple[dict[str, str], float]]  # labels and value
MODEL = ("model", "version")
FAULTS = ("Unavailable", "Internal", "Unknown", "DataLoss")  # as the alerts count them
Buckets = list[tuple[float, float]]  # upper bound, observations in the bucket


class NoAnswer(Exception):
    """The address does not answer as lstmserve does. The message is one line."""


@dataclass(frozen=True)
class Scrape:
    """The samples of a server at `time_s` (monotonic)."""

    time_s: float
    is_ready: bool
    samples: dict[str, Samples] = field(repr=False)

    def total(self, name: str, **labels: str) -> float:
        """The sum over the samples that have these labels."""
        return sum(
            value for found, value in self.samples.get(name, ()) if labels.items() <= found.items()
        )

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """The sums of the samples, by the values of these labels."""
        sums: dict[tuple[str, ...], float] = {}
        for found, value in self.samples.get(name, ()):
            key = tuple(found.get(label, "") for label in labels)
            sums[key] = sums.get(key, 0.0) + value
        return sums


def scrape(host: str, port: int) -> Scrape:
    """Reads the metrics address once. Raises NoAnswer."""
    address = join(host, port)
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        status, body = _get(connection, "/metrics")
        time_s = time.monotonic()
        ready, _ = _get(connection, "/readyz")
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise NoAnswer(f"{address}: {reason} (is a server's --metrics there?)") from error
    except http.client.HTTPException as error:
        raise NoAnswer(f"{address} does not speak HTTP: {error!r}") from error
    finally:
        connection.close()
    if status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        raise NoAnswer(f"{address}: the server's event loop hangs (/metrics: {status})")
    try:
        samples = parse(body.decode()) if status == http.HTTPStatus.OK else {}
    except ValueError as error:
        raise NoAnswer(f"{address} is no lstmserve: /metrics cannot be read") from error
    if "lstm_build_info" not in samples:
        raise NoAnswer(
            f"{address} is no lstmserve: /metrics is {status} and has no lstm_build_info"
        )
    return Scrape(time_s, ready == http.HTTPStatus.OK, samples)


def _get(connection: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read(BYTES_MAX)


def parse(text: str) -> dict[str, Samples]:
    """The samples of Prometheus' text format by name. Raises ValueError."""
    samples: dict[str, Samples] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


@dataclass(frozen=True)
class Quantiles:
    """Quantiles of a histogram between two scrapes, in seconds."""

    p50_s: float
    p99_s: float


@dataclass(frozen=True)
class ModelNumbers:
    """The numbers of one model version."""

    name: str
    fingerprint: str
    rows_per_s: float
    pending_steps: float
    slots_used: float
    slots: float  # 0: the model keeps no state


@dataclass(frozen=True)
class Numbers:
    """The numbers of a server: rates and quantiles between two scrapes, counts since its start."""

    version: str
    is_ready: bool
    up_s: float
    sessions: float
    sessions_dirty: float
    steps_per_s: float
    rows_per_s: float
    errors_per_s: float
    steps: float
    faults: float
    step: Quantiles
    queue: Quantiles
    compute: Quantiles
    batch_mean: float
    batches: Buckets
    padding_ratio: float
    errors: dict[str, float]
    opened: dict[str, float]
    closed: dict[str, float]
    models: list[ModelNumbers]
    cpu_cores: float
    memory_bytes: float
    loop_lag: Quantiles
    store: Quantiles | None
    store_errors: float
    durable_lag_s: float


def compare(before: Scrape, after: Scrape) -> Numbers:
    """What happened from one scrape to the next, and what holds now."""
    rate = _Rate(before, after)
    padding, rows = after.total("lstm_padding_rows_total"), after.total("lstm_rows_total")
    runs, stepped = (rate.grown(f"lstm_batch_size_{part}") for part in ("count", "sum"))
    return Numbers(
        version=next((labels["version"] for labels, _ in after.samples["lstm_build_info"]), ""),
        is_ready=after.is_ready,
        up_s=max(0.0, time.time() - after.total("process_start_time_seconds")),
        sessions=after.total("lstm_sessions"),
        sessions_dirty=after.total("lstm_sessions", state="dirty"),
        steps_per_s=rate.per_s("lstm_steps_total"),
        rows_per_s=rate.per_s("lstm_rows_total"),
        errors_per_s=rate.per_s("lstm_step_errors_total"),
        steps=after.total("lstm_steps_total"),
        faults=sum(after.total("lstm_steps_total", code=code) for code in FAULTS),
        step=_quantiles(before, after, "lstm_step_seconds"),
        queue=_quantiles(before, after, "lstm_queue_seconds"),
        compute=_quantiles(before, after, "lstm_compute_seconds"),
        batch_mean=stepped / runs if runs else math.nan,
        batches=buckets(before, after, "lstm_batch_size"),
        padding_ratio=padding / (padding + rows) if rows else math.nan,
        errors=_counted(after, "lstm_step_errors_total", "reason"),
        opened=_counted(after, "lstm_sessions_opened_total", "source"),
        closed=_counted(after, "lstm_sessions_closed_total", "reason"),
        models=_models(rate, after),
        cpu_cores=rate.per_s("process_cpu_seconds_total"),
        memory_bytes=after.total("process_resident_memory_bytes"),
        loop_lag=_quantiles(before, after, "lstm_loop_lag_seconds"),
        store=_quantiles(before, after, "lstm_store_seconds")
        if "lstm_store_seconds_count" in after.samples
        else None,
        store_errors=after.total("lstm_store_errors_total"),
        durable_lag_s=after.total("lstm_durable_lag_seconds"),
    )


def is_same_run(before: Scrape, after: Scrape) -> bool:
    """Whether both scrapes are of one process; a restart sets every count back to 0."""
    name = "process_start_time_seconds"
    return before.total(name) == after.total(name)


class _Rate:
    def __init__(self, before: Scrape, after: Scrape) -> None:
        self._before, self._after = before, after
        self._s = after.time_s - before.time_s

    def grown(self, name: str, **labels: str) -> float:
        return self._after.total(name, **labels) - self._before.total(name, **labels)

    def per_s(self, name: str, **labels: str) -> float:
        return self.grown(name, **labels) / self._s if self._s > 0 else math.nan


def buckets(before: Scrape, after: Scrape, name: str) -> Buckets:
    """The buckets of a histogram between two scrapes, by bound; the last bound is infinite."""
    first = before.by(f"{name}_bucket", "le")
    grown = sorted(
        (float(key[0]), count - first.get(key, 0.0))
        for key, count in after.by(f"{name}_bucket", "le").items()
    )
    below = [0.0, *(count for _, count in grown)]
    return [(bound, count - low) for (bound, count), low in zip(grown, below, strict=False)]


def quantile(q: float, counts: Sequence[tuple[float, float]]) -> float:
    """PromQL's histogram_quantile: linear within a bucket; NaN when every bucket is empty."""
    rank = q * sum(count for _, count in counts)
    seen, low = 0.0, 0.0
    if not rank:
        return math.nan
    for bound, count in counts:
        if count and seen + count >= rank:
            return low if math.isinf(bound) else low + (bound - low) * (rank - seen) / count
        seen, low = seen + count, bound
    return low


def _quantiles(before: Scrape, after: Scrape, name: str) -> Quantiles:
    counts = buckets(before, after, name)
    return Quantiles(quantile(0.5, counts), quantile(0.99, counts))


def _counted(scrape: Scrape, name: str, label: str) -> dict[str, float]:
    """The counts that are not 0, the largest first."""
    counts = [(key, count) for (key,), count in scrape.by(name, label).items() if count]
    return dict(sorted(counts, key=lambda each: -each[1]))


def _models(rate: _Rate, scrape: Scrape) -> list[ModelNumbers]:
    found = []
    for labels, _ in scrape.samples.get("lstm_model_info", ()):
        where = {name: labels[name] for name in MODEL}
        used, free = (scrape.total("lstm_slots", **where, state=s) for s in ("used", "free"))
        found.append(
            ModelNumbers(
                name=":".join(where.values()),
                fingerprint=labels["fingerprint"],
                rows_per_s=rate.per_s("lstm_rows_total", **where),
                pending_steps=scrape.total("lstm_pending_steps", **where),
                slots_used=used,
                slots=used + free,
            )
        )
    return found
