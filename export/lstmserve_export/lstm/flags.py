"""Reads the files of means and scales that flags name. Never unpickles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lstmserve_export.lstm.network import Floats
from lstmserve_export.refusal import Refused

VALUE_FILE_BYTES_MAX = 1 << 24


def read_values(path: Path | None, flag: str) -> Floats | None:
    """A vector float64 [width] from .npy, or from text with one number a line. Raises Refused."""
    if path is None:
        return None
    try:
        if path.stat().st_size > VALUE_FILE_BYTES_MAX:
            raise Refused(f"{flag} {path} is larger than {VALUE_FILE_BYTES_MAX} bytes")
        if path.suffix == ".npy":
            values = np.asarray(np.load(path, allow_pickle=False), np.float64)
        else:
            values = np.array([float(line) for line in path.read_text().split()], np.float64)
    except (OSError, ValueError, EOFError) as error:
        raise Refused(f"{flag} {path}: give .npy or one number a line ({error})") from error
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise Refused(f"{flag} {path} is no vector of finite numbers: shape {list(values.shape)}")
    return values
