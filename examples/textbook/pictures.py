"""Draws the pictures of docs/lstm.md: python -m examples.textbook.pictures."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

from examples.textbook.latch import VALUE, ask, chatter, latch_cell, tell
from examples.textbook.lstm import run

mpl.use("Agg")
import matplotlib.pyplot as plt

IMAGES = Path(__file__).parents[2] / "docs" / "img"
SEED = 1
STEPS = 10_000
TIMES = "\u00d7"
INK, BLUE, ORANGE, GREY = "#222222", "#1f6fb4", "#d9691e", "#9a9a9a"


def draw_cell() -> plt.Figure:
    """The cell as boxes and arrows."""
    figure, axes = plt.subplots(figsize=(7.2, 3.9), layout="constrained")
    axes.set(xlim=(0, 10.6), ylim=(0, 5.6))
    axes.axis("off")
    axes.add_patch(plt.Rectangle((1.3, 0.75), 8.0, 4.2, fill=False, ec=GREY, lw=1.2))
    for name, left, colour in (
        ("f", 2.0, BLUE),
        ("i", 3.6, BLUE),
        ("g", 5.0, ORANGE),
        ("o", 6.6, BLUE),
    ):
        axes.add_patch(plt.Rectangle((left, 1.35), 0.9, 0.6, fc="white", ec=colour, lw=1.6))
        axes.text(left + 0.45, 1.65, name, ha="center", va="center", color=colour, size=13)
        _arrow(axes, (left + 0.45, 1.0), (left + 0.45, 1.35))
    _draw_wires(axes)
    for x, y, symbol in (
        (2.45, 4.4, TIMES),
        (4.75, 3.1, TIMES),
        (4.75, 4.4, "+"),
        (8.1, 2.6, TIMES),
    ):
        axes.add_patch(plt.Circle((x, y), 0.24, fc="white", ec=INK, lw=1.2, zorder=3))
        axes.text(x, y, symbol, ha="center", va="center", size=13, zorder=4)
    axes.add_patch(plt.Rectangle((7.65, 3.25), 0.9, 0.5, fc="white", ec=ORANGE, lw=1.6, zorder=3))
    axes.text(8.1, 3.5, "tanh", ha="center", va="center", color=ORANGE, size=11, zorder=4)
    for x, y, text in (
        (0.1, 4.4, "c before"),
        (0.1, 1.0, "h before"),
        (9.6, 4.4, "c"),
        (9.6, 1.0, "h"),
    ):
        axes.text(x, y, text, va="center", size=11)
    axes.text(1.75, 0.12, "x", ha="center", size=11)
    axes.text(1.5, 5.2, "blue: sigmoid, 0 to 1.   orange: tanh, -1 to 1.", size=9.5, color=INK)
    return figure


def _arrow(axes: plt.Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.2})


def _line(axes: plt.Axes, *points: tuple[float, float]) -> None:
    axes.plot(*zip(*points, strict=True), color=INK, lw=1.2, solid_capstyle="butt")


def _draw_wires(axes: plt.Axes) -> None:
    _line(axes, (1.0, 1.0), (7.05, 1.0))
    _line(axes, (1.75, 0.35), (1.75, 1.0))
    _arrow(axes, (1.0, 4.4), (2.21, 4.4))
    _arrow(axes, (2.69, 4.4), (4.51, 4.4))
    _arrow(axes, (4.99, 4.4), (9.55, 4.4))
    _arrow(axes, (2.45, 1.95), (2.45, 4.16))
    _line(axes, (4.05, 1.95), (4.05, 3.1))
    _arrow(axes, (4.05, 3.1), (4.51, 3.1))
    _line(axes, (5.45, 1.95), (5.45, 3.1))
    _arrow(axes, (5.45, 3.1), (4.99, 3.1))
    _arrow(axes, (4.75, 3.34), (4.75, 4.16))
    _arrow(axes, (8.1, 4.4), (8.1, 3.75))
    _arrow(axes, (8.1, 3.25), (8.1, 2.84))
    _line(axes, (7.05, 1.95), (7.05, 2.6))
    _arrow(axes, (7.05, 2.6), (7.86, 2.6))
    _line(axes, (8.1, 2.36), (8.1, 1.0))
    _arrow(axes, (8.1, 1.0), (9.55, 1.0))


def draw_gates() -> plt.Figure:
    """Every number inside the latch over 14 steps: told +1, asked, told -1, asked."""
    x = chatter(14, np.random.default_rng(SEED))
    x[1], x[5], x[8], x[12] = tell(1), ask(), tell(-1), ask()
    trace = run(latch_cell(), x)
    rows = (
        ("f: keep", trace.f, (-0.15, 1.15), BLUE),
        ("i: let in", trace.i, (-0.15, 1.15), BLUE),
        ("g: candidate", trace.g, (-1.3, 1.3), ORANGE),
        ("o: show", trace.o, (-0.15, 1.15), BLUE),
        ("c: the cell", trace.c, (-1.3, 1.3), INK),
        ("h: the output", trace.h, (-1.3, 1.3), INK),
    )
    figure, panels = plt.subplots(6, 1, figsize=(7.2, 6.4), sharex=True, layout="constrained")
    steps = np.arange(1, len(x) + 1)
    for axes, (label, values, limits, colour) in zip(panels, rows, strict=True):
        axes.bar(steps, values[:, 0], width=0.7, color=colour)
        axes.axhline(0, color=GREY, lw=0.8)
        axes.set(ylim=limits, yticks=[0, 1] if limits[0] > -1 else [-1, 0, 1])
        axes.set_ylabel(label, rotation=0, ha="right", va="center")
        axes.spines[["top", "right"]].set_visible(False)
    for at, text in ((2, "told +1"), (6, "asked"), (9, "told -1"), (13, "asked")):
        panels[0].text(at, 1.2, text, ha="center", va="bottom", size=10)
    panels[0].set_title("The gates of a one-unit LSTM that keeps a fact", pad=20)
    panels[-1].set(xticks=steps, xlabel="time step")
    return figure


def draw_memory() -> plt.Figure:
    """The cell over 10,000 steps of chatter, for three forget gates."""
    x = np.vstack([tell(1), chatter(STEPS, np.random.default_rng(SEED))])
    figure, axes = plt.subplots(figsize=(7.2, 3.0), layout="constrained")
    axes.plot(x[:, VALUE], ",", color="#cfcfcf", zorder=0)
    axes.plot([], [], "o", ms=3, color="#cfcfcf", label="values heard on the way")
    for sure, text, colour in ((20, "1 to float32's precision", BLUE), (9, "0.9999", ORANGE)):
        cell = run(latch_cell(sure), x).c[:, 0]
        axes.plot(cell, color=colour, lw=2, label=f"cell, forget gate {text}")
    cell = run(latch_cell(7), x).c[:, 0]
    axes.plot(cell, color=INK, lw=2, label="cell, forget gate 0.999")
    axes.set(xlabel="time steps after it was told +1", ylabel="value of the cell")
    axes.set(title="How long a fact stays in the cell", ylim=(-1.1, 1.15), xlim=(0, STEPS))
    axes.legend(loc="lower right", framealpha=0.95)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Writes the pictures."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, draw in (("cell", draw_cell), ("gates", draw_gates), ("memory", draw_memory)):
        draw().savefig(IMAGES / f"lstm-{name}.png", dpi=110, metadata={"Software": None})
        print(f"wrote docs/img/lstm-{name}.png")


if __name__ == "__main__":
    main()
