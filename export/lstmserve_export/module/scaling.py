"""The scalers around a user's forward(): it takes raw inputs, and gives raw outputs.

It knows tensors by name and results by number, and must not know what they are to the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

import torch

from lstmserve_export.lstm.network import Norm
from lstmserve_export.scalers.min_max import K, other_readings

Shape = tuple[int, ...]


class Columns:
    """A norm along one axis of a tensor, whose mean and scale have a `shape` that broadcasts to it.

    It computes in the dtype of the tensor, as the served graph does in float32.
    """

    def __init__(self, norm: Norm, shape: Shape) -> None:
        self.norm = norm
        self.shape = shape
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

    def others(self) -> Iterator[tuple[str, Scaling]]:
        """What a user may have meant instead, each in words."""
        readings = product(_others("input", self.inputs), _others("output", self.results))
        for (x_words, inputs), (y_words, results) in list(readings)[1:]:
            yield " and with ".join(filter(None, (x_words, y_words))), Scaling(inputs, results)


def _others(side: str, given: Mapping[K, Columns]) -> Iterator[tuple[str, Mapping[K, Columns]]]:
    for words, norms in other_readings(side, {key: each.norm for key, each in given.items()}):
        yield words, {key: Columns(norm, given[key].shape) for key, norm in norms.items()}
