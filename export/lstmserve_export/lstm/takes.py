"""Gives out the tensors of a file, checks each one first, and remembers which were used."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lstmserve_export.refusal import Refused

# A flipped exponent bit makes a weight larger than any trained one; safetensors has no checksum.
WEIGHT_ABS_MAX = 1e8


class Taker:
    """The tensors of one file, which it never changes."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._taken: dict[str, torch.dtype] = {}

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """The tensor on the CPU: contiguous, float64 if the file has that, else float32.

        Raises Refused.
        """
        tensor = self._tensors[name]
        if fault := _fault(tensor):
            raise Refused(f"{name} {fault}")
        if shape is not None and tuple(tensor.shape) != shape:
            raise Refused(
                f"{name} is {list(tensor.shape)}, but must be {list(shape)} beside the first "
                "layer's sizes: save the whole model again"
            )
        self._taken[name] = tensor.dtype
        if tensor.dtype != torch.float64:
            tensor = tensor.to(torch.float32)
        if not tensor.isfinite().all():
            raise Refused(
                f"{name} has NaN or infinite values: the training diverged, or the file "
                "is damaged; export an earlier checkpoint"
            )
        if tensor.abs().max() > WEIGHT_ABS_MAX:
            raise Refused(
                f"{name} has a value beyond {WEIGHT_ABS_MAX:g}, which no training gives: the file "
                "is damaged; copy or save it again"
            )
        return tensor.contiguous()

    def unused(self) -> list[str]:
        """Names of the tensors that were not taken."""
        return [name for name in self._tensors if name not in self._taken]

    def notes(self) -> tuple[str, ...]:
        """A note for each dtype that was converted."""
        names = {str(dtype).removeprefix("torch.") for dtype in self._taken.values()}
        return tuple(
            f"weights are {name} in the file, served as float32"
            for name in sorted(names - {"float32"})
        )


def _fault(tensor: torch.Tensor) -> str:
    """Why a tensor must not be read, "" if it may."""
    if tensor.layout != torch.strided:
        return "is sparse: save tensor.to_dense()"
    if tensor.device.type != "cpu":
        return f"has no data (device {tensor.device.type}): save a model whose weights are loaded"
    if not tensor.is_floating_point():
        dtype = str(tensor.dtype).removeprefix("torch.")
        return f"is {dtype}, not floating point: save the model before it was quantised"
    # An expanded tensor of four bytes may claim terabytes.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "is larger than its storage: save tensor.clone()"
    return ""
