"""The scalers around a user's forward(): it takes raw inputs, and gives raw outputs.

It knows tensors by name and results by number, and must not know what they are to the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from lstmserve_export.lstm.network import Norm


class Columns:
    """A norm along one axis of a tensor, whose mean and scale have a `shape` that broadcasts to it.

    It computes in the dtype of the tensor, as the served graph does in float32.
    """

    def __init__(self, norm: Norm, shape: tuple[int, ...]) -> None:
        double = [torch.from_numpy(part).reshape(shape) for part in (norm.mean, norm.scale)]
        # Made here, so that a trace has the constants themselves, and no cast of them.
        self._parts = {
            dtype: tuple(part.to(dtype) for part in double)
            for dtype in (torch.float32, torch.float64)
        }

    def scaled(self, raw: torch.Tensor) -> torch.Tensor:
        """(raw - mean) / scale."""
        mean, scale = self._parts[raw.dtype]
        return (raw - mean) / scale

    def raw(self, scaled: torch.Tensor) -> torch.Tensor:
        """scaled * scale + mean."""
        mean, scale = self._parts[scaled.dtype]
        return scaled * scale + mean


@dataclass(frozen=True, slots=True)
class Scaling:
    """What is scaled: forward's tensors by name, and its results by number."""

    inputs: Mapping[str, Columns] = field(default_factory=dict)
    results: Mapping[int, Columns] = field(default_factory=dict)
