"""What the dashboard shows: rows of panels, each with a title, a unit, a reason and its queries.

This module knows nothing of Grafana's JSON, which generate.py writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MODEL: Final = 'instance=~"$instance", model=~"$model"'
SERVER: Final = 'instance=~"$instance"'
PROCESS: Final = 'job="lstmserve", instance=~"$instance"'
RATE: Final = "[$__rate_interval]"
NO_STORE: Final = "These servers run without --store."
NO_FAILURE: Final = "None so far."


@dataclass(frozen=True)
class Panel:
    """`queries` are pairs of PromQL and the legend; the kind is one of generate.KINDS."""

    title: str
    unit: str
    description: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 8  # of 24
    thresholds: tuple[float, ...] = ()  # green below the first, then yellow, then red
    is_stacked: bool = False
    high: float | None = None
    empty: str = ""  # shown in place of "No data"


def rate(metric: str, by: str, where: str = MODEL) -> str:
    """The expression for the growth per second."""
    return f"sum by ({by}) (rate({metric}{{{where}}}{RATE}))"


def quantile(q: float, metric: str, by: str = "", where: str = MODEL) -> str:
    """The expression for a histogram's quantile; `by` are labels besides le."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(metric + '_bucket', labels, where)})"


def quantiles(metric: str, name: str) -> tuple[tuple[str, str], ...]:
    """The queries for the median and the slowest hundredth."""
    return ((quantile(0.5, metric), f"{name} p50"), (quantile(0.99, metric), f"{name} p99"))


def heat(metric: str, where: str = MODEL) -> tuple[tuple[str, str], ...]:
    """The query for a histogram over time, as a heatmap shows it."""
    return ((f"sum by (le) (increase({metric}_bucket{{{where}}}{RATE}))", "{{le}}"),)


def ratio(part: str, whole: str) -> str:
    """The expression for the ratio of two expressions."""
    return f"{part} / {whole}"


NOW = (
    Panel(
        *("Sessions", "none", "Sessions open now. Each has its state in a slot."),
        ((f"sum(lstm_sessions{{{MODEL}}})", ""),),
        *("stat", 4),
    ),
    Panel(
        *("Rows", "suffix: rows/s", "Time steps computed per second; a step has one or more rows."),
        ((f"sum(rate(lstm_rows_total{{{MODEL}}}{RATE}))", ""),),
        *("stat", 4),
    ),
    Panel(
        *(
            "Step latency p99",
            "s",
            "From arrival to answer of an applied step, measured in the server.",
        ),
        ((quantile(0.99, "lstm_step_seconds"), ""),),
        *("stat", 4, (0.05, 0.25)),
    ),
    Panel(
        *("Server errors", "percentunit"),
        "Share of steps answered UNAVAILABLE, INTERNAL, UNKNOWN or DATA_LOSS. The goal is 0.1 %.",
        (("max(job:lstm_steps_bad:ratio_rate5m)", ""),),
        *("stat", 4, (0.001, 0.0144)),
    ),
    Panel(
        *("Slots used", "percentunit"),
        "Of the fullest model. Without a store, new sessions are refused at 100 %.",
        ((f"max(instance:lstm_slots:used_ratio{{{MODEL}}})", ""),),
        *("stat", 4, (0.75, 0.9)),
    ),
    Panel(
        *("Servers", "none", "Servers that answer the scrape."),
        ((f"sum(up{{{PROCESS}}})", ""),),
        *("stat", 4),
    ),
)

TRAFFIC = (
    Panel(
        *(
            "Steps by method",
            "ops",
            "Steps answered, errors included. StepMany counts one per session.",
        ),
        ((rate("lstm_steps_total", "method"), "{{method}}"),),
        is_stacked=True,
    ),
    Panel(
        *("Rows by model", "suffix: rows/s", "Time steps computed, for each model version."),
        ((rate("lstm_rows_total", "model, version"), "{{model}}:{{version}}"),),
        is_stacked=True,
    ),
    Panel(
        *("Calls by method", "reqps"),
        "gRPC calls that arrived. A stream counts as one call.",
        ((rate("grpc_server_started_total", "grpc_method", SERVER), "{{grpc_method}}"),),
    ),
)

ERRORS = (
    Panel(
        *("Steps that failed, by code", "ops"),
        "Server errors (Unavailable, Internal, Unknown and DataLoss) count against the goal.",
        ((rate("lstm_steps_total", "code", f'{MODEL}, code!="OK"'), "{{code}}"),),
        is_stacked=True,
    ),
    Panel(
        *("Steps that failed, by reason", "ops"),
        "The reason that the client received (google.rpc.ErrorInfo).",
        ((rate("lstm_step_errors_total", "reason"), "{{reason}}"),),
        is_stacked=True,
        empty=NO_FAILURE,
    ),
    Panel(
        *("Calls that failed, by code", "reqps"),
        "Calls of every kind. Canceled: the client left, which is how most streams end.",
        (
            (
                rate("grpc_server_handled_total", "grpc_code", f'{SERVER}, grpc_code!="OK"'),
                "{{grpc_code}}",
            ),
        ),
        is_stacked=True,
    ),
    Panel(
        *("Server errors, against the goal", "percentunit"),
        "Share of all steps. The goal is 0.1 %; alerts compare with 14.4, 6 and 1 times that.",
        (
            ("job:lstm_steps_bad:ratio_rate5m", "5 minutes"),
            ("job:lstm_steps_bad:ratio_rate1h", "1 hour"),
            ("job:lstm_steps_bad:ratio_rate6h", "6 hours"),
        ),
        *("timeseries", 12, (0.001, 0.0144)),
    ),
    Panel(
        *("Steps answered again", "ops"),
        "Numbered steps sent twice. The saved reply answered them, and each counted once.",
        ((rate("lstm_steps_replayed_total", "model, version"), "{{model}}:{{version}}"),),
        width=12,
    ),
)

LATENCY = (
    Panel(
        *("Step latency", "s", "From arrival to answer, and its two parts: queue and compute."),
        (
            *quantiles("lstm_step_seconds", "step"),
            *quantiles("lstm_queue_seconds", "queue"),
            *quantiles("lstm_compute_seconds", "compute"),
        ),
    ),
    Panel(
        *("Queue", "s", "How long applied steps waited, from arrival to the start of compute."),
        heat("lstm_queue_seconds"),
        kind="heatmap",
    ),
    Panel(
        *("Compute", "s", "One run of the model, for a whole batch."),
        heat("lstm_compute_seconds"),
        kind="heatmap",
    ),
)

BATCHES = (
    Panel(
        *("Batch size", "none", "Sessions in one run. A larger batch costs less per session."),
        heat("lstm_batch_size"),
        *("heatmap", 6),
    ),
    Panel(
        *("Mean batch size", "none", "Sessions in one run, on average."),
        (
            (
                ratio(
                    rate("lstm_batch_size_sum", "model, version"),
                    rate("lstm_batch_size_count", "model, version"),
                ),
                "{{model}}:{{version}}",
            ),
        ),
        width=6,
    ),
    Panel(
        *("Padding waste", "percentunit"),
        "Share of computed rows that are padding, because steps of unlike lengths ran together.",
        (
            (
                f"{rate('lstm_padding_rows_total', 'model, version')} / "
                f"({rate('lstm_rows_total', 'model, version')}"
                f" + {rate('lstm_padding_rows_total', 'model, version')})",
                "{{model}}:{{version}}",
            ),
        ),
        width=6,
        high=1,
    ),
    Panel(
        *(
            "Pending steps",
            "none",
            "Steps queued or running now. At the limit further steps get OVERLOADED.",
        ),
        (
            (
                f"sum by (model, version) (lstm_pending_steps{{{MODEL}}})",
                "{{model}}:{{version}}",
            ),
        ),
        width=6,
    ),
)

SESSIONS = (
    Panel(
        *(
            "Sessions",
            "none",
            "Sessions open now. dirty: the store does not have the last step yet.",
        ),
        ((f"sum by (state) (lstm_sessions{{{MODEL}}})", "{{state}}"),),
        width=6,
        is_stacked=True,
    ),
    Panel(
        *(
            "Opened, by source",
            "ops",
            "load: the session came from the store when a call named it.",
        ),
        ((rate("lstm_sessions_opened_total", "source"), "{{source}}"),),
        width=6,
        is_stacked=True,
    ),
    Panel(
        *("Closed, by reason", "ops"),
        "evicted: to the store, for room. moved: to another server. drained: the server left.",
        ((rate("lstm_sessions_closed_total", "reason"), "{{reason}}"),),
        width=6,
        is_stacked=True,
    ),
    Panel(
        *("State memory", "bytes"),
        "The models share --pool-bytes. Charged is what they need, touched what is resident.",
        (
            (f"sum by (state) (lstm_pool_bytes{{{MODEL}}})", "{{state}}"),
            (f"sum(lstm_pool_bytes_limit{{{SERVER}}})", "limit"),
        ),
        width=6,
    ),
)

STORE = (
    Panel(
        *(
            "Store latency",
            "s",
            "Time of one call to the store. With write-through a step waits for it.",
        ),
        (
            (quantile(0.5, "lstm_store_seconds", "op", SERVER), "{{op}} p50"),
            (quantile(0.99, "lstm_store_seconds", "op", SERVER), "{{op}} p99"),
        ),
        width=6,
        empty=NO_STORE,
    ),
    Panel(
        *("Store calls", "ops", "Calls to the store, each with up to 256 records."),
        ((rate("lstm_store_seconds_count", "op", SERVER), "{{op}}"),),
        width=6,
        empty=NO_STORE,
    ),
    Panel(
        *(
            "Store errors",
            "ops",
            "Calls that failed, and records refused because another server owns the session.",
        ),
        ((rate("lstm_store_errors_total", "op, reason", SERVER), "{{op}} {{reason}}"),),
        width=6,
        is_stacked=True,
        empty=NO_FAILURE,
    ),
    Panel(
        *(
            "Durable lag",
            "s",
            "Age of the oldest step that the store does not have: what kill -9 would lose.",
        ),
        (
            (
                f"lstm_durable_lag_seconds{{{SERVER}}}"
                f" and on (instance) lstm_store_seconds_count{{{SERVER}}}",
                "{{instance}}",
            ),
        ),
        *("timeseries", 6, (1, 3)),
        empty=NO_STORE,
    ),
)

SERVERS = (
    Panel(
        *(
            "Event loop lag",
            "s",
            "How late the event loop's own timer fires. Everything else is as late.",
        ),
        (
            (quantile(0.5, "lstm_loop_lag_seconds", "instance", SERVER), "{{instance}} p50"),
            (quantile(0.99, "lstm_loop_lag_seconds", "instance", SERVER), "{{instance}} p99"),
        ),
        *("timeseries", 6, (0.05, 0.25)),
    ),
    Panel(
        *(
            "CPU",
            "suffix: cores",
            "Cores that the process uses. A server has one event loop and one kernel thread.",
        ),
        ((f"rate(process_cpu_seconds_total{{{PROCESS}}}{RATE})", "{{instance}}"),),
        width=6,
    ),
    Panel(
        *(
            "Memory",
            "bytes",
            "Resident memory. It follows the states in use: it falls seconds after sessions end.",
        ),
        ((f"process_resident_memory_bytes{{{PROCESS}}}", "{{instance}}"),),
        width=6,
    ),
    Panel(
        *("Open files", "none", "Open file descriptors; most are connections."),
        ((f"process_open_fds{{{PROCESS}}}", "{{instance}}"),),
        width=6,
    ),
    Panel(
        *("Up since", "s", "Age of the process. Each drop to zero is a restart."),
        ((f"time() - process_start_time_seconds{{{PROCESS}}}", "{{instance}}"),),
        width=12,
    ),
    Panel(
        *(
            "Models",
            "none",
            "The weights that the servers have. Each version should have one fingerprint.",
        ),
        (
            (
                f"count by (model, version, kind, fingerprint) (lstm_model_info{{{MODEL}}})",
                "{{model}}:{{version}} {{kind}} {{fingerprint}}",
            ),
        ),
        *("table", 12),
    ),
)

ROWS: Final = {
    "Now": NOW,
    "Traffic": TRAFFIC,
    "Errors": ERRORS,
    "Latency": LATENCY,
    "Batches": BATCHES,
    "Sessions": SESSIONS,
    "Store": STORE,
    "Servers": SERVERS,
}
