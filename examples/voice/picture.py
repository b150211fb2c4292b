"""Draws the example's picture: who spoke in a minute of many calls, and what each way costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np

from examples.voice.silero import SPEAKING
from examples.voice.speech import FRAME_S, RATE, Calls, Floats

mpl.use("Agg")
import matplotlib.pyplot as plt

BLUE, GREY, ORANGE = "#1f6fb4", "#9a9a9a", "#d9691e"
SHOWN_S = 20.0  # of one call


def draw(path: Path, calls: Calls, y: Floats, per_core: Mapping[str, tuple[float, bool]]) -> None:
    """`y` [S, T] has the probabilities; `per_core` how many streams a core keeps up with, by the
    way's name, and whether it is ours."""
    figure = plt.figure(figsize=(10, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=[1.75, 1], height_ratios=[2.2, 1])
    _draw_calls(figure.add_subplot(grid[0, 0]), y)
    _draw_call(figure.add_subplot(grid[1, 0]), calls, y)
    _draw_streams(figure.add_subplot(grid[:, 1]), per_core)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def _draw_calls(axes: plt.Axes, y: Floats) -> None:
    calls, count = y.shape
    axes.imshow(
        y,
        aspect="auto",
        cmap="Blues",
        vmin=0,
        vmax=1,
        interpolation="antialiased",
        extent=(0, count * FRAME_S, calls, 0),
    )
    axes.set(ylabel="call")
    axes.set_title(f"{calls} calls in one server: blue is speech")


def _draw_call(axes: plt.Axes, calls: Calls, y: Floats) -> None:
    """The call that speaks nearest to half of the time that is shown."""
    count = min(round(SHOWN_S / FRAME_S), y.shape[1])
    call = int(np.argmin(np.abs(calls.speech[:, :count].mean(axis=1) - 0.5)))
    sound = calls.samples[call, : round(count * FRAME_S * RATE)] / 32768
    envelope = np.abs(sound).reshape(count, -1).max(axis=1)
    at_s = (np.arange(count) + 0.5) * FRAME_S
    envelope *= 0.5 / envelope.max()
    axes.fill_between(at_s, -envelope, envelope, color=GREY, lw=0)
    axes.plot(at_s, y[call, :count], color=BLUE, lw=1.2)
    axes.axhline(float(SPEAKING), color=BLUE, lw=0.5, ls=":")
    axes.set(xlabel="seconds", ylabel="probability", ylim=(-0.55, 1.05), yticks=(0, 0.5, 1))
    axes.set_title(f"Call {call}: its sound, and the probability of speech")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_streams(axes: plt.Axes, per_core: Mapping[str, tuple[float, bool]]) -> None:
    names = [name.replace(", ", ",\n") for name in per_core]
    values = [value for value, _ in per_core.values()]
    colours = [BLUE if is_ours else ORANGE for _, is_ours in per_core.values()]
    bars = axes.barh(names, values, color=colours, height=0.6)
    axes.bar_label(bars, [f"{value:,.0f}" for value in values], padding=3)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.2 * max(values)), xticks=())
    axes.set_title("Streams per core, by CPU time")
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=8)
