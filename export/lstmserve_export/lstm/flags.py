"""Reads the initial state that a flag names. Never unpickles."""

from __future__ import annotations

from pathlib import Path

import torch

from lstmserve_export.lstm.checkpoint import read_checkpoint
from lstmserve_export.lstm.takes import Taker
from lstmserve_export.refusal import Refused


def read_state(path: Path | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """h0 and c0 of an .npz, or of a dict that torch.save wrote. Raises Refused."""
    if path is None:
        return None
    found = read_checkpoint(path).tensors
    if missing := [name for name in ("h0", "c0") if name not in found]:
        raise Refused(
            f"--initial-state {path} has no {missing[0]}: save both with numpy.savez(FILE, h0=h0, "
            "c0=c0), each [num_layers, width]"
        )
    taker = Taker(found)
    return taker.take("h0"), taker.take("c0")
