"""scikit-learn's scalers as the tests of the export use them, fitted on the same raw rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

from exporting import INPUTS

Rows = npt.NDArray[np.float64]
NAMES = ["temperature", "pressure", "humidity", "wind", "site"]
assert len(NAMES) == INPUTS


def raw_rows(count: int = 300, seed: int = 3) -> Rows:
    """Rows [count, INPUTS] in kelvin, pascal and so on; the last column never changes."""
    rng = np.random.default_rng(seed)
    rows = rng.normal([285, 101_325, 0.6, -2, 7], [12, 900, 0.15, 3, 0], (count, INPUTS))
    return np.round(rows, 3)


def raw_targets(count: int = 300, seed: int = 4) -> Rows:
    """Rows [count, 3] of what is forecast."""
    return np.random.default_rng(seed).normal([3, 70, -0.2], [2, 15, 0.01], (count, 3))


def named(scaler: Any) -> Any:
    """The scaler as fit() leaves it for a DataFrame."""
    scaler.feature_names_in_ = np.array(NAMES, dtype=object)
    return scaler


def in_parts(scaler: Any, rows: Rows) -> Any:
    """Fitted by partial_fit()."""
    for part in np.array_split(rows, 4):
        scaler.partial_fit(part)
    return scaler


MAKERS: dict[str, Callable[[Rows], Any]] = {
    "StandardScaler": lambda rows: StandardScaler().fit(rows),
    "StandardScaler of parts": lambda rows: in_parts(StandardScaler(), rows),
    "StandardScaler with weights": lambda rows: StandardScaler().fit(
        rows, sample_weight=np.arange(len(rows))
    ),
    "StandardScaler without mean": lambda rows: StandardScaler(with_mean=False).fit(rows),
    "StandardScaler without deviation": lambda rows: StandardScaler(with_std=False).fit(rows),
    "MinMaxScaler": lambda rows: MinMaxScaler().fit(rows),
    "MinMaxScaler of parts": lambda rows: in_parts(MinMaxScaler((-1, 1)), rows),
    "MinMaxScaler to (-3, 0.5)": lambda rows: MinMaxScaler((-3, 0.5)).fit(rows),
    "RobustScaler": lambda rows: RobustScaler().fit(rows),
    "RobustScaler of other quantiles": lambda rows: RobustScaler(
        quantile_range=(5, 90), unit_variance=True
    ).fit(rows),
    "RobustScaler without centre": lambda rows: RobustScaler(with_centering=False).fit(rows),
    "RobustScaler without scale": lambda rows: RobustScaler(with_scaling=False).fit(rows),
    "MaxAbsScaler": lambda rows: MaxAbsScaler().fit(rows),
    "MaxAbsScaler of parts": lambda rows: in_parts(MaxAbsScaler(), rows),
}
KINDS = ("StandardScaler", "MinMaxScaler", "RobustScaler", "MaxAbsScaler")
# train_data_scaler.yml as neuralhydrology writes it, in YAML 1.2, where 1e-05 is a number.
HYDROLOGY = """\
attribute_means:
  elev_mean: 715.0357281553398
  slope_mean: 45.73078805825243
attribute_stds:
  elev_mean: 772.9868594812874
  slope_mean: 46.97479379837598
xarray_feature_scale:
  coords: {}
  attrs: {}
  dims: {}
  data_vars:
    APCP_surface:
      dims: []
      attrs: {}
      data: 0.8656719923019409
    QObs(mm/h):
      dims: []
      attrs: {}
      data: 0.18175311386585236
    SPFH_2maboveground:
      dims: []
      attrs: {}
      data: 5e-05
xarray_feature_center:
  coords: {}
  attrs: {}
  dims: {}
  data_vars:
    APCP_surface:
      dims: []
      attrs: {}
      data: 0.14485099911689758
    QObs(mm/h):
      dims: []
      attrs: {}
      data: 0.07877858728170395
    SPFH_2maboveground:
      dims: []
      attrs: {}
      data: 1e-05
"""
