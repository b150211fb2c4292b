"""Reads the files of means, scales and initial states that flags name. Never unpickles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lstmserve_export.arrays import read_npz
from lstmserve_export.lstm.checkpoint import read_checkpoint
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


def read_state(path: Path | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """h0 and c0 of an .npz, or of a dict that torch.save wrote. Raises Refused."""
    if path is None:
        return None
    found: Mapping[str, Any]
    found = (
        read_npz(path, "--initial-state")
        if path.suffix == ".npz"
        else read_checkpoint(path).tensors
    )
    if missing := [name for name in ("h0", "c0") if name not in found]:
        raise Refused(
            f"--initial-state {path} has no {missing[0]}: save both with numpy.savez(FILE, h0=h0, "
            "c0=c0), each [num_layers, width]"
        )
    h0, c0 = (torch.as_tensor(found[name]) for name in ("h0", "c0"))
    return h0, c0
