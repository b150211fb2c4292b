"""Owns what `lstmserve top` looks like. Draws numbers; asks nobody for them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lstmserve.top import text
from lstmserve.top.numbers import Numbers, Times
from lstmserve.top.parts import BAD, MAIN, SOFT, Bar, Line, panel, table_of

ROWS_MAX = 8  # of a list


def screen(
    address: str, now: Numbers, history: Sequence[Numbers], trouble: str = ""
) -> RenderableType:
    """What is now, and lines of what was look by look; `trouble` is why there is nothing newer."""
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
    head.add_row(title, Text(f"{address} · up {text.age(now.up_s)}", SOFT))
    return head


def _tiles(now: Numbers, history: Sequence[Numbers]) -> RenderableType:
    """The four numbers that matter, each with its line."""
    places = sum(model.slots for model in now.models)
    tiles = (
        ("sessions", text.short(now.sessions), f"of {text.short(places)}", "sessions", MAIN),
        ("steps", text.short(now.steps_per_s), "per s", "steps_per_s", MAIN),
        ("rows", text.short(now.rows_per_s), "per s", "rows_per_s", MAIN),
        ("errors", text.short(now.errors_per_s), "per s", "errors_per_s", BAD),
    )
    table = Table.grid(expand=True)
    panels = []
    for title, value, unit, name, color in tiles:
        table.add_column(ratio=1)
        number = Text.assemble((value, "bold"), (f" {unit}", SOFT))
        drawn = Line([getattr(each, name) for each in history], color)
        panels.append(panel(title, number, drawn))
    table.add_row(*panels)
    return table


def _latency(now: Numbers, history: Sequence[Numbers]) -> Panel:
    table = table_of("", ">p50", ">p99", "*p99 over time")
    for name in ("step", "queue", "compute"):
        times: Times = getattr(now, name)
        past = [getattr(each, name).p99_s for each in history]
        table.add_row(
            name,
            text.seconds(times.p50_s),
            Text(text.seconds(times.p99_s), "bold"),
            Line(past),
        )
    return panel("latency", table)


def _batches(now: Numbers) -> Panel:
    """Sizes up to the largest that occurred, at least four."""
    counts = [each for each in now.batches if math.isfinite(each[0])]
    last = max([3, *(n for n, (_, count) in enumerate(counts) if count)])
    runs, most = sum(count for _, count in counts), max(count for _, count in counts)
    table = table_of(">size", ">", "*runs")
    for bound, count in counts[: last + 1]:
        size = f"{bound:.0f}" if bound <= 2 else f"≤ {bound:.0f}"
        share = text.percent(count / runs if runs else 0.0)
        table.add_row(size, share, Bar(count / most if most else 0.0))
    return panel(f"batch size, mean {text.short(now.batch_mean)}", table)


def _errors(now: Numbers) -> Panel:
    fault = now.faults / now.steps if now.steps else math.nan
    title = f"errors, {text.percent(fault)} by our fault"
    if not now.errors:
        return panel(title, Text("no step has failed", SOFT))
    table, most = table_of("reason", ">", "*"), max(now.errors.values())
    for reason, count in list(now.errors.items())[:ROWS_MAX]:
        table.add_row(reason, text.short(count), Bar(count / most, BAD))
    return panel(title, table)


def _sessions(now: Numbers) -> Panel:
    table = table_of("opened", ">", "closed", ">")
    blank = ("", math.nan)
    for (source, opened), (reason, closed) in itertools.zip_longest(
        now.opened.items(), now.closed.items(), fillvalue=blank
    ):
        table.add_row(
            *(source, text.short(opened) if source else ""),
            *(reason, text.short(closed) if reason else ""),
        )
    return panel("sessions", table)


def _models(now: Numbers) -> Panel:
    table = table_of("model", ">rows/s", ">waits", "slots used", "*")
    for model in now.models[:ROWS_MAX]:
        part = model.slots_used / model.slots if model.slots else 0.0
        slots = f"{text.short(model.slots_used)} of {text.short(model.slots)}"
        table.add_row(
            model.name,
            text.short(model.rows_per_s),
            text.short(model.pending_steps),
            slots if model.slots else "keeps none",
            Bar(part, BAD if part > 0.9 else MAIN),
        )
    if len(now.models) > ROWS_MAX:
        table.add_row(Text(f"and {len(now.models) - ROWS_MAX} more", SOFT))
    return panel("models", table)


def _server(now: Numbers) -> Panel:
    table = table_of("", "")
    table.add_row("cpu", f"{text.short(now.cpu_cores)} cores")
    table.add_row("memory", text.size(now.memory_bytes))
    table.add_row("loop late", f"p99 {text.seconds(now.loop_lag.p99_s)}")
    table.add_row("padding", f"{text.percent(now.padding_ratio)} of rows")
    if now.store is None:
        table.add_row("store", "none: sessions end with the process")
    else:
        table.add_row("store", f"p99 {text.seconds(now.store.p99_s)}")
        table.add_row("store errors", text.short(now.store_errors))
        table.add_row("unstored", text.seconds(now.durable_lag_s))
    return panel("server", table)
