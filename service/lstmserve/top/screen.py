"""Draws `lstmserve top`: panels with tables and bars, and numbers in readable units.

It gets its numbers from the caller and reads no server.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lstmserve.top.numbers import Numbers, Quantiles

ROWS_MAX = 8  # of one table
BAR_WIDTH_MAX = 30
MAIN, BAD, SOFT = "cyan", "red", "dim"
BLOCKS = "▁▂▃▄▅▆▇█"
EIGHTHS = " ▏▎▍▌▋▊▉█"
NOTHING = "-"


def render(
    address: str, now: Numbers, history: Sequence[Numbers], trouble: str = ""
) -> RenderableType:
    """The whole picture: the numbers now, and a sparkline per scrape of `history`.

    `trouble` says why the newest numbers are missing; "" means that `now` has them.
    """
    left, right = Table.grid(expand=True), Table.grid(expand=True)
    for each in (_latency(now, history), _models(now), _server(now)):
        left.add_row(each)
    for each in (_batches(now), _errors(now), _sessions(now)):
        right.add_row(each)
    columns = Table.grid(expand=True)
    columns.add_column(ratio=1)
    columns.add_column(ratio=1)
    columns.add_row(left, right)
    return Group(_head(address, now, trouble), _tiles(now, history), columns)


def _head(address: str, now: Numbers, trouble: str) -> RenderableType:
    state = (
        Text(" ready ", "black on cyan") if now.is_ready else Text(" not ready ", "white on red")
    )
    if trouble:
        state = Text(f" {trouble} ", "white on red")
    head = Table.grid(expand=True, padding=(0, 1))
    head.add_column()
    head.add_column(justify="right", no_wrap=True)
    title = Text.assemble(("lstmserve ", "bold"), (f"{now.version} ", SOFT), state)
    head.add_row(title, Text(f"{address} · up {age(now.up_s)}", SOFT))
    return head


def _tiles(now: Numbers, history: Sequence[Numbers]) -> RenderableType:
    """The four numbers that matter, each with its sparkline."""
    # Models share memory: a slot that is free for one may be free for all.
    free = max((model.slots - model.slots_used for model in now.models), default=0)
    places = sum(model.slots_used for model in now.models) + free
    tiles = (
        ("sessions", short(now.sessions), f"of {short(places)}", "sessions", MAIN),
        ("steps", short(now.steps_per_s), "per s", "steps_per_s", MAIN),
        ("rows", short(now.rows_per_s), "per s", "rows_per_s", MAIN),
        ("errors", short(now.errors_per_s), "per s", "errors_per_s", BAD),
    )
    table = Table.grid(expand=True)
    panels = []
    for title, value, unit, name, color in tiles:
        table.add_column(ratio=1)
        number = Text.assemble((value, "bold"), (f" {unit}", SOFT))
        drawn = Sparkline([getattr(each, name) for each in history], color)
        panels.append(panel(title, number, drawn))
    table.add_row(*panels)
    return table


def _latency(now: Numbers, history: Sequence[Numbers]) -> Panel:
    table = table_of("", ">p50", ">p99", "*p99 over time")
    for name in ("step", "queue", "compute"):
        times: Quantiles = getattr(now, name)
        past = [getattr(each, name).p99_s for each in history]
        table.add_row(
            name,
            seconds(times.p50_s),
            Text(seconds(times.p99_s), "bold"),
            Sparkline(past),
        )
    return panel("latency", table)


def _batches(now: Numbers) -> Panel:
    """Batch sizes up to the largest that occurred, at least four."""
    counts = [each for each in now.batches if math.isfinite(each[0])]
    last = max([3, *(n for n, (_, count) in enumerate(counts) if count)])
    runs, most = sum(count for _, count in counts), max(count for _, count in counts)
    table = table_of(">size", ">", "*runs")
    for bound, count in counts[: last + 1]:
        label = f"{bound:.0f}" if bound <= 2 else f"≤ {bound:.0f}"
        share = percent(count / runs if runs else 0.0)
        table.add_row(label, share, Bar(count / most if most else 0.0))
    return panel(f"batch size, mean {short(now.batch_mean)}", table)


def _errors(now: Numbers) -> Panel:
    fault = now.faults / now.steps if now.steps else math.nan
    title = f"errors, {percent(fault)} by our fault"
    if not now.errors:
        return panel(title, Text("no step has failed", SOFT))
    table, most = table_of("reason", ">", "*"), max(now.errors.values())
    for reason, count in list(now.errors.items())[:ROWS_MAX]:
        table.add_row(reason, short(count), Bar(count / most, BAD))
    return panel(title, table)


def _sessions(now: Numbers) -> Panel:
    table = table_of("opened", ">", "closed", ">")
    blank = ("", math.nan)
    for (source, opened), (reason, closed) in itertools.zip_longest(
        now.opened.items(), now.closed.items(), fillvalue=blank
    ):
        table.add_row(
            *(source, short(opened) if source else ""),
            *(reason, short(closed) if reason else ""),
        )
    return panel("sessions", table)


def _models(now: Numbers) -> Panel:
    table = table_of("model", ">rows/s", ">waits", "slots used", "*")
    for model in now.models[:ROWS_MAX]:
        part = model.slots_used / model.slots if model.slots else 0.0
        slots = f"{short(model.slots_used)} of {short(model.slots)}"
        table.add_row(
            model.name,
            short(model.rows_per_s),
            short(model.pending_steps),
            slots if model.slots else "keeps none",
            Bar(part, BAD if part > 0.9 else MAIN),
        )
    if len(now.models) > ROWS_MAX:
        table.add_row(Text(f"and {len(now.models) - ROWS_MAX} more", SOFT))
    return panel("models", table)


def _server(now: Numbers) -> Panel:
    table = table_of("", "")
    table.add_row("cpu", f"{short(now.cpu_cores)} cores")
    table.add_row("memory", size(now.memory_bytes))
    table.add_row("loop late", f"p99 {seconds(now.loop_lag.p99_s)}")
    table.add_row("padding", f"{percent(now.padding_ratio)} of rows")
    if now.store is None:
        table.add_row("store", "none: sessions end with the process")
    else:
        table.add_row("store", f"p99 {seconds(now.store.p99_s)}")
        table.add_row("store errors", short(now.store_errors))
        table.add_row("unstored", seconds(now.durable_lag_s))
    return panel("server", table)


class Sparkline:
    """Values over time, as wide as the column."""

    def __init__(self, values: Sequence[float], color: str = MAIN) -> None:
        self._values, self._color = values, color

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(sparkline(self._values, options.max_width), self._color)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, options.max_width)


class Bar(Sparkline):
    """A share of 1 as a bar, at most BAR_WIDTH_MAX wide."""

    def __init__(self, part: float, color: str = MAIN) -> None:
        self._part, self._color = part, color

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(bar(self._part, min(BAR_WIDTH_MAX, options.max_width)), self._color)


def table_of(*columns: str) -> Table:
    """A table without lines. ">" before a name aligns its column right, "*" lets it grow."""
    has_growing = any(column.startswith("*") for column in columns)
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        header_style=SOFT,
        show_header=any(column.strip(">*") for column in columns),
        expand=has_growing,
    )
    for column in columns:
        table.add_column(
            column.lstrip(">*"),
            justify="right" if column.startswith(">") else "left",
            no_wrap=True,
            ratio=1 if column.startswith("*") else None,
        )
    return table


def panel(title: str, *content: RenderableType) -> Panel:
    """A frame with a title."""
    return Panel(
        Group(*content), title=title, title_align="left", box=box.ROUNDED, border_style=SOFT
    )


def short(value: float) -> str:
    """A count or rate in 3 or 4 digits, with k, M or G."""
    if not math.isfinite(value):
        return NOTHING
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / unit:.3g}{letter}"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def seconds(value: float) -> str:
    """A time in the unit that keeps the number small."""
    if not math.isfinite(value):
        return NOTHING
    if not value:
        return "0 s"
    for least, unit, name in ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (0.0, 1e6, "µs")):
        if value >= least:
            return f"{value * unit:.3g} {name}"
    return NOTHING


def size(count: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 30 else f"{count / 2**20:.0f} MiB"


def percent(part: float) -> str:
    """A share of 1 in percent."""
    if not math.isfinite(part):
        return NOTHING
    return f"{100 * part:.1f} %" if part >= 0.01 else f"{100 * part:.2g} %"


def age(value_s: float) -> str:
    """A duration in its two largest units."""
    minutes, rest_s = divmod(int(value_s), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{rest_s} s"


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as blocks, the largest one full. A value that is NaN is a blank."""
    shown = list(values)[-width:]
    most = max((value for value in shown if math.isfinite(value)), default=0.0)
    top = len(BLOCKS) - 1
    marks = (
        " " if not math.isfinite(value) else BLOCKS[round(top * value / most) if most else 0]
        for value in shown
    )
    return "".join(marks).rjust(width)


def bar(part: float, width: int) -> str:
    """A share of 1 as a bar, exact to an eighth of a character."""
    eighths = round(max(0.0, min(1.0, part)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[rest] if rest else "")).ljust(width)
