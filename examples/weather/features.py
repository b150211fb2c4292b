"""Reads the year's observations into arrays in physical units. Needs neither torch nor a server.

The model scales by itself (lstmserve export --input-mean ... --output-scale ...), so a client sends
what a weather station reads.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

CSV = Path(__file__).with_name("nyc_weather_2013.csv.gz")
COLUMNS = ("temp_f", "dewpoint_f", "humidity", "pressure_mb", "wind_mph", "wind_deg")
FEATURES = (
    "temperature, °F",
    "dew point, °F",
    "humidity, %",
    "pressure, mb",
    "wind x sin(direction), mph",
    "wind x cos(direction), mph",
    "sin(hour)",
    "cos(hour)",
)
HORIZONS_H = (1, 3, 6, 12)
BLOCK_H = 504
WIND_MAX_MPH = 60.0  # the file has a reading of 1048 mph

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Year:
    """One year on an hourly grid: S stations, T hours.

    x float32 [S, T, 8] has the FEATURES. temp_f float32 [S, T]. held_out bool [T] is true in the
    blocks 3, 7, 11, ... (from 0) of 504 hours each, which are not trained on.
    """

    start: datetime
    stations: tuple[str, ...]
    x: Floats
    temp_f: Floats
    held_out: npt.NDArray[np.bool_]

    @property
    def hours(self) -> list[datetime]:
        """The grid, in UTC."""
        return [self.start + timedelta(hours=hour) for hour in range(len(self.held_out))]

    def warming(self) -> Floats:
        """The targets [S, T, 4]: °F warmer in 1, 3, 6, 12 hours; NaN past the end."""
        result = np.full((*self.temp_f.shape, len(HORIZONS_H)), np.nan, np.float32)
        for index, ahead in enumerate(HORIZONS_H):
            result[:, :-ahead, index] = self.temp_f[:, ahead:] - self.temp_f[:, :-ahead]
        return result


def load_year(path: Path = CSV) -> Year:
    """Reads the observations; a missing hour or reading takes the last known one."""
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    times = [datetime.strptime(row["time_utc"], "%Y-%m-%dT%H") for row in rows]
    start, length = min(times), _hours_between(min(times), max(times)) + 1
    stations = tuple(sorted({row["station"] for row in rows}))
    seen = np.full((len(stations), length, len(COLUMNS)), np.nan)
    for row, time in zip(rows, times, strict=True):
        seen[stations.index(row["station"]), _hours_between(start, time)] = [
            _number(row[name]) for name in COLUMNS
        ]
    known = _carry_forward(seen)
    held_out = np.arange(length) // BLOCK_H % 4 == 3
    temp_f = known[..., 0].astype(np.float32)
    return Year(start, stations, _features(known, start), temp_f, held_out)


def rmse_f(predicted: Floats, year: Year) -> list[float]:
    """Root mean square error in °F of a warming [S, T, 4], per horizon.

    It pools the forecasts that were made in held-out hours, of all stations.
    """
    error = (predicted - year.warming())[:, year.held_out].astype(np.float64)
    return [float(value) for value in np.sqrt(np.nanmean(error**2, axis=(0, 1)))]


def _hours_between(start: datetime, end: datetime) -> int:
    return round((end - start) / timedelta(hours=1))


def _number(text: str) -> float:
    return float(text) if text not in ("", "NA") else np.nan


def _carry_forward(seen: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Fills NaN with the last value of the same station and column; the first with the next."""
    known = seen.copy()
    for series in _columns(known):
        present = np.flatnonzero(~np.isnan(series))
        last = np.searchsorted(present, np.arange(len(series)), side="right") - 1
        series[:] = series[present[np.maximum(last, 0)]]
    return known


def _columns(table: npt.NDArray[np.float64]) -> Iterable[npt.NDArray[np.float64]]:
    for station in table:
        yield from station.T


def _features(known: npt.NDArray[np.float64], start: datetime) -> Floats:
    temp_f, dewpoint_f, humidity, pressure_mb, wind_mph, wind_deg = np.moveaxis(known, -1, 0)
    wind_mph = np.minimum(wind_mph, WIND_MAX_MPH)
    direction = np.radians(wind_deg)
    hour = np.broadcast_to(start.hour + np.arange(known.shape[1]), temp_f.shape) * (2 * np.pi / 24)
    columns = (
        temp_f,
        dewpoint_f,
        humidity,
        pressure_mb,
        wind_mph * np.sin(direction),
        wind_mph * np.cos(direction),
        np.sin(hour),
        np.cos(hour),
    )
    return np.stack(columns, axis=-1).astype(np.float32)
