"""Writes the figures into bench/RESULTS.md, and leaves the text that people wrote there."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from bench.machine import ROOT, commit, description
from bench.rows import Row

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAGE = ROOT / "bench" / "RESULTS.md"
IMAGES = ROOT / "bench" / "img"
START, END = "<!-- figures -->\n", "<!-- end of the figures -->\n"
HEADER = ["#", "measure", "goal", "median", "lowest - highest", "context"]
COLOURS = {
    "ours": "#1b6ca8",
    "echo": "#b8b8b8",
    "echo and onnxruntime": "#7d8a97",
    "by hand": "#d9822b",
}


def table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = [HEADER, ["---"] * len(HEADER), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(rows: Sequence[Row], command: str, page: Path = PAGE) -> None:
    """Replaces the table, the line about its origin, and the pictures."""
    today = datetime.datetime.now(datetime.UTC).date()
    origin = f"`{command}`, commit {commit()}, {today}.\n{description()}.\n\n"
    text = page.read_text()
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{START}{origin}{table(rows)}{END}{after}")
    draw([row for row in rows if row.parts], IMAGES / "rates.png")
    draw_ratios([row for row in rows if row.goal and row.goal.is_least], IMAGES / "ratios.png")


def draw(rows: Sequence[Row], file: Path) -> None:
    """Draws our rates beside the floor, and beside what people write by hand."""
    file.parent.mkdir(exist_ok=True)
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(rows) + 1.2))
    height = 0.2
    for i, row in enumerate(reversed(rows)):
        for k, (name, rate) in enumerate(row.parts.items()):
            axes.barh(i - k * height, rate, height, color=COLOURS[name])
            axes.text(rate, i - k * height, f" {rate:,.0f}", va="center", fontsize=7)
    axes.set_yticks([i - 1.5 * height for i in range(len(rows))], [r.name for r in reversed(rows)])
    axes.set_xlabel("answers per second, one core")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    axes.legend(
        handles, list(COLOURS), frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120, bbox_inches="tight")
    plt.close(figure)


def draw_ratios(rows: Sequence[Row], file: Path) -> None:
    """Draws each figure as a part of its goal, with the spread of its rounds."""
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(rows) + 1.2))
    for i, row in enumerate(reversed(rows)):
        assert row.goal is not None
        goal = row.goal.value
        low, high = min(row.values) / goal, max(row.values) / goal
        colour = "#1b6ca8" if row.goal.is_met(row.value) else "#c0392b"
        axes.plot([low, high], [i, i], color=colour, linewidth=1)
        axes.plot(row.value / goal, i, "o", color=colour)
    axes.axvline(1, color="#808080", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), [f"{r.name} ({r.goal})" for r in reversed(rows)], fontsize=7)
    axes.set_xlabel("median / goal, and the rounds' lowest and highest")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120, bbox_inches="tight")
    plt.close(figure)
