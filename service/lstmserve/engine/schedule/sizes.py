"""Computes how many rows of a length a batch takes. Pure."""

from __future__ import annotations

from lstmserve.config import Config


def length_class(length: int) -> int:
    """0 for 1, 1 for 2, 2 for 3-4, 3 for 5-8, ...: lengths of a class differ by less than 2x."""
    return (length - 1).bit_length()


def batch_max(config: Config, index: int) -> int:
    """Most rows of this length class in one batch."""
    return max(1, min(config.batch_sessions_max, config.batch_cells_max >> index))


def group_max(config: Config, longest: int) -> int:
    """Most sequences, the longest of this length, that may wait as one: they fit one batch, and
    their states may be kept between two."""
    index = length_class(min(longest, config.slice_rows_max))
    return min(batch_max(config, index), config.long_steps_max)
