"""Owns what the screen is made of: lines, bars, tables, frames. Knows no number's name."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lstmserve.top import text

BAR_WIDTH_MAX = 30
MAIN, BAD, SOFT = "cyan", "red", "dim"


class Line:
    """Values over time, as wide as there is room."""

    def __init__(self, values: Sequence[float], color: str = MAIN) -> None:
        self._values, self._color = values, color

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(text.line(self._values, options.max_width), self._color)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, options.max_width)


class Bar(Line):
    """A part of 1, in what room there is."""

    def __init__(self, part: float, color: str = MAIN) -> None:
        self._part, self._color = part, color

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(text.bar(self._part, min(BAR_WIDTH_MAX, options.max_width)), self._color)


def table_of(*columns: str) -> Table:
    """Without lines. ">" before a name sets its column right, "*" gives it what room is left."""
    has_rest = any(column.startswith("*") for column in columns)
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        header_style=SOFT,
        show_header=any(column.strip(">*") for column in columns),
        expand=has_rest,
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
    """A frame with its title."""
    return Panel(
        Group(*content), title=title, title_align="left", box=box.ROUNDED, border_style=SOFT
    )
