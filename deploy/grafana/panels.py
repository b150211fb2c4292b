"""Owns what the dashboard shows: rows of panels, each a title, a unit, a reason and its queries.

Knows nothing of Grafana's JSON, which generate.py owns.
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
    """How much it grows per second."""
    return f"sum by ({by}) (rate({metric}{{{where}}}{RATE}))"


def quantile(q: float, metric: str, by: str = "", where: str = MODEL) -> str:
    """Of a histogram; `by` are labels besides le."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(metric + '_bucket', labels, where)})"


def quantiles(metric: str, name: str) -> tuple[tuple[str, str], ...]:
    """The median and the slowest hundredth."""
    return ((quantile(0.5, metric), f"{name} p50"), (quantile(0.99, metric), f"{name} p99"))


def heat(metric: str, where: str = MODEL) -> tuple[tuple[str, str], ...]:
    """A histogram over time, for a heatmap."""
    return ((f"sum by (le) (increase({metric}_bucket{{{where}}}{RATE}))", "{{le}}"),)


def ratio(part: str, whole: str) -> str:
    """Of two expressions."""
    return f"{part} / {whole}"


NOW = (
    Panel(
        *("Sessions", "none", "Open now. Each has its state in a slot."),
        ((f"sum(lstm_sessions{{{MODEL}}})", ""),),
        *("stat", 4),
    ),
    Panel(
        *("Rows", "suffix: rows/s", "Time steps computed per second; a step has one or more rows."),
        ((f"sum(rate(lstm_rows_total{{{MODEL}}}{RATE}))", ""),),
        *("stat", 4),
    ),
    Panel(
        *("Step latency p99", "s", "Arrival to answer of an applied step, in the server."),
        ((quantile(0.99, "lstm_step_seconds"), ""),),
        *("stat", 4, (0.05, 0.25)),
    ),
    Panel(
        *("Failed by our fault", "percentunit"),
        "Steps answered UNAVAILABLE, INTERNAL, UNKNOWN or DATA_LOSS, of all; 0.1 % is the goal.",
        (("max(job:lstm_steps_bad:ratio_rate5m)", ""),),
        *("stat", 4, (0.001, 0.0144)),
    ),
    Panel(
        *("Slots used", "percentunit"),
        "Of the fullest model. Without a store the next session after 100 % is refused.",
        ((f"max(instance:lstm_slots:used_ratio{{{MODEL}}})", ""),),
        *("stat", 4, (0.75, 0.9)),
    ),
    Panel(
        *("Servers", "none", "That answer the scrape."),
        ((f"sum(up{{{PROCESS}}})", ""),),
        *("stat", 4),
    ),
)

TRAFFIC = (
    Panel(
        *("Steps by method", "ops", "Steps answered, well or not. StepMany counts each session's."),
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
        "gRPC calls that arrived. A stream is one call, whatever it carries.",
        ((rate("grpc_server_started_total", "grpc_method", SERVER), "{{grpc_method}}"),),
    ),
)

ERRORS = (
    Panel(
        *("Steps that failed, by code", "ops"),
        "Unavailable, Internal, Unknown and DataLoss are our fault, and count against the goal.",
        ((rate("lstm_steps_total", "code", f'{MODEL}, code!="OK"'), "{{code}}"),),
        is_stacked=True,
    ),
    Panel(
        *("Steps that failed, by reason", "ops"),
        "The reason the client was told (google.rpc.ErrorInfo).",
        ((rate("lstm_step_errors_total", "reason"), "{{reason}}"),),
        is_stacked=True,
        empty=NO_FAILURE,
    ),
    Panel(
        *("Calls that failed, by code", "reqps"),
        "Calls of every kind, OpenSession too. Canceled: the client left, as streams do.",
        (
            (
                rate("grpc_server_handled_total", "grpc_code", f'{SERVER}, grpc_code!="OK"'),
                "{{grpc_code}}",
            ),
        ),
        is_stacked=True,
    ),
    Panel(
        *("Failed by our fault, against the goal", "percentunit"),
        "Of all steps; the goal is 0.1 %. The alerts compare 14.4, 6 and 1 times the goal.",
        (
            ("job:lstm_steps_bad:ratio_rate5m", "5 minutes"),
            ("job:lstm_steps_bad:ratio_rate1h", "1 hour"),
            ("job:lstm_steps_bad:ratio_rate6h", "6 hours"),
        ),
        *("timeseries", 12, (0.001, 0.0144)),
    ),
    Panel(
        *("Steps answered again", "ops"),
        "A numbered step that was sent twice, answered from its saved reply: it counted once.",
        ((rate("lstm_steps_replayed_total", "model, version"), "{{model}}:{{version}}"),),
        width=12,
    ),
)

LATENCY = (
    Panel(
        *("Step latency", "s", "Arrival to answer, and its two parts. queue: until its batch."),
        (
            *quantiles("lstm_step_seconds", "step"),
            *quantiles("lstm_queue_seconds", "queue"),
            *quantiles("lstm_compute_seconds", "compute"),
        ),
    ),
    Panel(
        *("Queue", "s", "Arrival to start of compute of applied steps: how long they waited."),
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
        *("Batch size", "none", "Sessions in one run. More at once is cheaper for each."),
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
        "Rows computed for nobody, because steps of unlike lengths ran together.",
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
        *("Pending steps", "none", "Queued or running now. At the limit steps are OVERLOADED."),
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
        *("Sessions", "none", "Open now; dirty: the store does not have the last step yet."),
        ((f"sum by (state) (lstm_sessions{{{MODEL}}})", "{{state}}"),),
        width=6,
        is_stacked=True,
    ),
    Panel(
        *("Opened, by source", "ops", "load: fetched from the store on touch."),
        ((rate("lstm_sessions_opened_total", "source"), "{{source}}"),),
        width=6,
        is_stacked=True,
    ),
    Panel(
        *("Closed, by reason", "ops"),
        "evicted: to the store, for room. moved: another server has it now. drained: we left.",
        ((rate("lstm_sessions_closed_total", "reason"), "{{reason}}"),),
        width=6,
        is_stacked=True,
    ),
    Panel(
        *("Slots", "none", "Rows of the state pool; spare ones are for steps under way."),
        ((f"sum by (state) (lstm_slots{{{MODEL}}})", "{{state}}"),),
        width=6,
        is_stacked=True,
    ),
)

STORE = (
    Panel(
        *("Store latency", "s", "One call of the store; with write-through a step waits for it."),
        (
            (quantile(0.5, "lstm_store_seconds", "op", SERVER), "{{op}} p50"),
            (quantile(0.99, "lstm_store_seconds", "op", SERVER), "{{op}} p99"),
        ),
        width=6,
        empty=NO_STORE,
    ),
    Panel(
        *("Store calls", "ops", "A call has up to 256 records."),
        ((rate("lstm_store_seconds_count", "op", SERVER), "{{op}}"),),
        width=6,
        empty=NO_STORE,
    ),
    Panel(
        *(
            "Store errors",
            "ops",
            "Calls that failed, and records refused: another server was there.",
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
            "Age of the oldest step the store does not have: what kill -9 loses.",
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
        *("Event loop lag", "s", "How late the loop's own timer fires: all else is as late."),
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
            "Used by the process. A server has one event loop and one kernel thread.",
        ),
        ((f"rate(process_cpu_seconds_total{{{PROCESS}}}{RATE})", "{{instance}}"),),
        width=6,
    ),
    Panel(
        *(
            "Memory",
            "bytes",
            "Resident. It grows with the slots that were ever used, then no more.",
        ),
        ((f"process_resident_memory_bytes{{{PROCESS}}}", "{{instance}}"),),
        width=6,
    ),
    Panel(
        *("Open files", "none", "Connections are most of them."),
        ((f"process_open_fds{{{PROCESS}}}", "{{instance}}"),),
        width=6,
    ),
    Panel(
        *("Up since", "s", "Age of the process. A saw's tooth is a restart."),
        ((f"time() - process_start_time_seconds{{{PROCESS}}}", "{{instance}}"),),
        width=12,
    ),
    Panel(
        *("Models", "none", "The weights that each server has: one fingerprint per version."),
        (
            (
                f"count by (model, version, fingerprint) (lstm_model_info{{{MODEL}}})",
                "{{model}}:{{version}} {{fingerprint}}",
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
