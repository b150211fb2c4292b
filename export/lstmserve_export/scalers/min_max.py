"""Finds a MinMaxScaler that was taken for a mean and a scale: its scale_ multiplies.

It decides nothing. A mean and a scale alone do not always show where they are from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from lstmserve_export.lstm.network import Floats, Norm
from lstmserve_export.refusal import shorten

K = TypeVar("K")


def as_min_max(norm: Norm) -> Norm:
    """What the norm would be if its mean and its scale were a MinMaxScaler's min_ and scale_."""
    with np.errstate(all="ignore"):
        return replace(norm, mean=-norm.mean / norm.scale, scale=1 / norm.scale)


def other_readings(side: str, norms: Mapping[K, Norm]) -> Iterator[tuple[str, Mapping[K, Norm]]]:
    """The norms of a side as they are, after "", and as a user may have meant them, after words."""
    yield "", norms
    if norms:
        words = (
            f"the {side}'s mean and scale as min_ and scale_ of a MinMaxScaler (--{side}-scaler)"
        )
        yield words, {name: as_min_max(norm) for name, norm in norms.items()}
        yield f"no {side} scaler, as the pairs need raw values and have scaled ones", {}


def min_max_data(norm: Norm) -> str:
    """ "from LOW to HIGH" where mean and scale can only be a MinMaxScaler's: its scale_, and its
    min_ or data_min_; "" where nothing shows that.

    The evidence are short numbers. Data have few digits, or those of float32. What comes of them
    by division has not, and a mean and a scale do not become short ends when they are taken for
    min_ and scale_.
    """
    mean, scale = norm.mean, norm.scale
    if not np.all(scale > 0) or all(map(_is_short, zip(mean, scale, strict=True))):
        return ""
    for low, high in ((0.0, 1.0), (-1.0, 1.0)):
        ends = (low - mean) / scale, (high - mean) / scale
        if all(map(_is_short, zip(*ends, strict=True))):
            return f"from {shorten(_texts(ends[0]), 4)} to {shorten(_texts(ends[1]), 4)}"
        ends = mean, mean + (high - low) / scale
        is_odd = not all(_is_short((each,)) for each in scale)
        if is_odd and all(map(_is_short, zip(*ends, strict=True))):
            return f"from {shorten(_texts(ends[0]), 4)} to {shorten(_texts(ends[1]), 4)}"
    return ""


def _texts(values: Floats) -> list[str]:
    return [f"{value:.6g}" for value in values]


def _is_short(values: Sequence[float]) -> bool:
    """Whether each has at most nine digits, or is a number of float32, but for rounding."""
    error = 2e-14 * max(map(abs, values))
    return all(
        min(abs(value - float(f"{value:.8e}")), abs(value - float(np.float32(value)))) <= error
        for value in values
    )
