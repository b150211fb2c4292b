"""Owns what two looks at a server say: rates, quantiles, counts. No I/O, no clock but the looks'.

A number that cannot be known yet is NaN.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lstmserve.top.scrape import Scrape

MODEL = ("model", "version")
FAULTS = ("Unavailable", "Internal", "Unknown", "DataLoss")  # as the alerts count them

Buckets = list[tuple[float, float]]  # upper bound, how many are in the bucket


@dataclass(frozen=True)
class Times:
    """Of a histogram between two looks, in seconds."""

    p50_s: float
    p99_s: float


@dataclass(frozen=True)
class ModelNumbers:
    """Of one model version."""

    name: str
    fingerprint: str
    rows_per_s: float
    pending_steps: float
    slots_used: float
    slots: float  # that sessions can have; 0: keeps no state


@dataclass(frozen=True)
class Numbers:
    """Of a whole server. Per second and quantiles: between the looks; counts: since its start."""

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
    step: Times
    queue: Times
    compute: Times
    batch_mean: float
    batches: Buckets
    padding_ratio: float
    errors: dict[str, float]
    opened: dict[str, float]
    closed: dict[str, float]
    models: list[ModelNumbers]
    cpu_cores: float
    memory_bytes: float
    loop_lag: Times
    store: Times | None
    store_errors: float
    durable_lag_s: float


def compare(before: Scrape, after: Scrape) -> Numbers:
    """What happened from one look to the next, and what is now."""
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
        step=_times(before, after, "lstm_step_seconds"),
        queue=_times(before, after, "lstm_queue_seconds"),
        compute=_times(before, after, "lstm_compute_seconds"),
        batch_mean=stepped / runs if runs else math.nan,
        batches=buckets(before, after, "lstm_batch_size"),
        padding_ratio=padding / (padding + rows) if rows else math.nan,
        errors=_counted(after, "lstm_step_errors_total", "reason"),
        opened=_counted(after, "lstm_sessions_opened_total", "source"),
        closed=_counted(after, "lstm_sessions_closed_total", "reason"),
        models=_models(rate, after),
        cpu_cores=rate.per_s("process_cpu_seconds_total"),
        memory_bytes=after.total("process_resident_memory_bytes"),
        loop_lag=_times(before, after, "lstm_loop_lag_seconds"),
        store=_times(before, after, "lstm_store_seconds")
        if "lstm_store_seconds_count" in after.samples
        else None,
        store_errors=after.total("lstm_store_errors_total"),
        durable_lag_s=after.total("lstm_durable_lag_seconds"),
    )


def is_same_run(before: Scrape, after: Scrape) -> bool:
    """Whether the server did not restart in between: counts begin anew then."""
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
    """Of a histogram between two looks, by bound; the last one's is infinite."""
    first = before.by(f"{name}_bucket", "le")
    grown = sorted(
        (float(key[0]), count - first.get(key, 0.0))
        for key, count in after.by(f"{name}_bucket", "le").items()
    )
    below = [0.0, *(count for _, count in grown)]
    return [(bound, count - low) for (bound, count), low in zip(grown, below, strict=False)]


def quantile(q: float, counts: Sequence[tuple[float, float]]) -> float:
    """As PromQL's histogram_quantile: linear within a bucket; NaN when all are empty."""
    rank = q * sum(count for _, count in counts)
    seen, low = 0.0, 0.0
    if not rank:
        return math.nan
    for bound, count in counts:
        if count and seen + count >= rank:
            return low if math.isinf(bound) else low + (bound - low) * (rank - seen) / count
        seen, low = seen + count, bound
    return low


def _times(before: Scrape, after: Scrape, name: str) -> Times:
    counts = buckets(before, after, name)
    return Times(quantile(0.5, counts), quantile(0.99, counts))


def _counted(scrape: Scrape, name: str, label: str) -> dict[str, float]:
    """What is not 0, the most first."""
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
