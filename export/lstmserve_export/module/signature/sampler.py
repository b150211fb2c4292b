"""Draws random inputs like those of an example, and random states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from lstmserve.spec import TensorSpec
from lstmserve_export.module.forward import Axes, Tensors
from lstmserve_export.sequences import SEED

SIZE: Final = 3  # of a batch
NOISE: Final = 0.3  # of a feature's deviation in the example, on top of the example's own rows


class Sampler:
    """Draws random inputs like those of an example, and random states."""

    def __init__(self, example: Tensors, axes: Mapping[str, Axes], seed: int = SEED) -> None:
        self._rng = torch.Generator().manual_seed(seed)
        self._rows = {
            name: each.to_rows(example[name]).flatten(0, 1) for name, each in axes.items()
        }
        self._is_constant = {name: each.time is None for name, each in axes.items()}

    def rows(self, size: int, length: int) -> dict[str, torch.Tensor]:
        """[size, length, *shape] of each input: the example's rows, and floats with noise.

        An input without an axis of time is the same at every time step, unless none has one.
        """
        found = {}
        has_time = not all(self._is_constant.values())
        for name, rows in self._rows.items():
            is_constant = self._is_constant[name] and has_time
            count = 1 if is_constant else length
            chosen = torch.randint(len(rows), (size, count), generator=self._rng)
            drawn = rows[chosen]
            if drawn.is_floating_point():
                # By feature: raw rows have a pressure in pascal beside a humidity in [0, 1].
                scale = NOISE * rows.std(0, correction=0)
                scale[scale == 0] = 1.0
                drawn = drawn + scale * torch.randn(drawn.shape, generator=self._rng)
            found[name] = drawn.expand(size, length, *drawn.shape[2:])
        return found

    def states(self, size: int, specs: Mapping[str, TensorSpec]) -> dict[str, torch.Tensor]:
        """[size, *shape] of each state: floats in (-0.9, 0.9), others zero."""
        found = {}
        for name, spec in specs.items():
            shape = (size, *spec.shape)
            if spec.dtype == "float32":
                found[name] = 1.8 * torch.rand(shape, generator=self._rng) - 0.9
            else:
                found[name] = torch.zeros(shape, dtype=getattr(torch, spec.dtype))
        return found
