"""Reads the initial state that a flag names. Never unpickles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lstmserve_export.arrays import read_npz
from lstmserve_export.lstm.checkpoint import read_checkpoint
from lstmserve_export.refusal import Refused


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
