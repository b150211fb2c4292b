"""Draws the demo's picture. Computes no forecast and reads no file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

from examples.weather.features import HORIZONS_H, Floats, Year

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.dates import DateFormatter, DayLocator

STATION, HORIZON = 1, 2  # JFK, six hours ahead
WEEK, WEEK_H = 8, 168  # of the twelve held-out weeks, the one in which the kept state helps most
STYLES = {
    "persistence": ("#9a9a9a", "persistence"),
    "served_without_state": ("#d9691e", "LSTM, state dropped"),
    "served": ("#1f6fb4", "LSTM, state kept"),
}


def draw(path: Path, year: Year, warming: Mapping[str, Floats], rmse: Mapping[str, list[float]]):
    """Draws the forecasts of one held-out week beside the truth, and the errors per horizon.

    `warming` float32 [S, T, 4] and `rmse` in °F, by the names of STYLES.
    """
    figure, (week, errors) = plt.subplots(
        1, 2, figsize=(10, 3.8), width_ratios=[2.6, 1], layout="constrained"
    )
    _draw_week(week, year, warming)
    _draw_errors(errors, rmse)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def hours_of(year: Year, week: int) -> npt.NDArray[np.intp]:
    """The hours of a held-out week, as places in the year."""
    return np.flatnonzero(year.held_out)[week * WEEK_H : (week + 1) * WEEK_H]


def _draw_week(axes: plt.Axes, year: Year, warming: Mapping[str, Floats]) -> None:
    weeks = int(year.held_out.sum()) // WEEK_H
    shown = hours_of(year, min(WEEK, weeks - 1))  # a part of the year shows its last one
    hours = np.array(year.hours)[shown]
    made = shown - HORIZONS_H[HORIZON]
    axes.plot(hours, year.temp_f[STATION, shown], color="black", lw=2.2, label="measured")
    for name in ("served_without_state", "served"):
        colour, label = STYLES[name]
        forecast = year.temp_f[STATION, made] + warming[name][STATION, made, HORIZON]
        axes.plot(hours, forecast, color=colour, lw=1.5, label=label)
    axes.set(ylabel="temperature, °F", xlabel="2013, UTC", xlim=(hours[0], hours[-1]))
    axes.set_title(
        f"{year.stations[STATION]}, its best week held out of training: forecasts made 6 h before"
    )
    axes.xaxis.set_major_locator(DayLocator())
    axes.xaxis.set_major_formatter(DateFormatter("%d %b"))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_errors(axes: plt.Axes, rmse: Mapping[str, list[float]]) -> None:
    for name, (colour, label) in STYLES.items():
        axes.plot(HORIZONS_H, rmse[name], "o-", color=colour, ms=5, label=label)
    axes.set(xlabel="hours ahead", ylabel="RMSE, °F", xticks=HORIZONS_H, ylim=(0, None))
    axes.set_title("All held-out hours, 3 airports")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
