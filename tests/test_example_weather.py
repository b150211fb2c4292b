"""Holds the weather example to its data, its split and its committed files."""

from __future__ import annotations

import numpy as np
import pytest

from examples.weather.features import BLOCK_H, FEATURES, HORIZONS_H, Year, load_year, rmse_f
from examples.weather.train import training_targets

PERSISTENCE = (1.65, 3.80, 6.33, 8.69)


@pytest.fixture(scope="module")
def year() -> Year:
    """The committed observations."""
    return load_year()


def test_the_grid_is_complete_and_physical(year: Year) -> None:
    """Three stations, every hour of the grid, no gaps left, outliers clipped."""
    assert year.stations == ("EWR", "JFK", "LGA")
    assert year.x.shape == (3, len(year.hours), len(FEATURES))
    assert np.isfinite(year.x).all()
    assert np.hypot(year.x[..., 4], year.x[..., 5]).max() <= 60.001


def test_every_fourth_block_is_held_out(year: Year) -> None:
    """Blocks 3, 7, 11, 15 of 504 hours, counted from the first observation."""
    held = {hour // BLOCK_H for hour in np.flatnonzero(year.held_out)}
    assert held == {3, 7, 11, 15}
    assert year.held_out.sum() == 4 * BLOCK_H


def test_nothing_held_out_is_trained_on(year: Year) -> None:
    """No training target lies in a held-out block, nor is made in one."""
    targets = training_targets(year)
    stations, hours, horizons = np.nonzero(~np.isnan(targets))
    assert len(stations) > 70_000
    assert not year.held_out[hours].any()
    assert not year.held_out[hours + np.array(HORIZONS_H)[horizons]].any()


def test_persistence_is_the_reference(year: Year) -> None:
    """Forecasting no change gives the issue's persistence errors: same data, same split."""
    assert rmse_f(np.zeros_like(year.warming()), year) == pytest.approx(PERSISTENCE, abs=0.05)
