"""Checks the tensors of a file, gives them out, and remembers which were used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from lstmserve_export.refusal import Faults, Refused

# A flipped exponent bit makes a weight larger than any trained one; safetensors has no checksum.
WEIGHT_ABS_MAX = 1e8


def check_tensor(name: str, tensor: torch.Tensor) -> None:
    """Raises Refused for a tensor whose values must not be read."""
    fault = ""
    if tensor.layout != torch.strided:
        fault = "is sparse: save tensor.to_dense()"
    elif tensor.device.type != "cpu":
        fault = f"has no data (device {tensor.device.type}): save a model whose weights are loaded"
    # An expanded tensor of four bytes may claim terabytes.
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        fault = "is larger than its storage: save tensor.clone()"
    if fault:
        raise Refused(f"{name} {fault}")


def check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raises Refused for a tensor of an LSTM that has another shape."""
    if tuple(tensor.shape) != shape:
        raise Refused(
            f"{name} is {list(tensor.shape)}, but must be {list(shape)} beside the first layer's "
            "sizes: save the whole model again"
        )


def check_values(name: str, tensor: torch.Tensor) -> None:
    """Raises Refused for weights that no training gives."""
    if not tensor.isfinite().all():
        raise Refused(
            f"{name} has NaN or infinite values: the training diverged, or the file "
            "is damaged; export an earlier checkpoint"
        )
    if tensor.numel() and tensor.abs().max() > WEIGHT_ABS_MAX:
        raise Refused(
            f"{name} has a value beyond {WEIGHT_ABS_MAX:g}, which no training gives: the file "
            "is damaged; copy or save it again"
        )


def dtype_name(tensor: torch.Tensor) -> str:
    """The dtype as in float32."""
    return str(tensor.dtype).removeprefix("torch.")


def dtype_notes(dtypes: Iterable[torch.dtype]) -> tuple[str, ...]:
    """A note for each dtype that is converted."""
    names = {str(dtype).removeprefix("torch.") for dtype in dtypes}
    return tuple(
        f"weights are {name} in the file, served as float32" for name in sorted(names - {"float32"})
    )


class Taker:
    """The tensors of one file, which it never changes."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._taken: dict[str, torch.dtype] = {}
        self._ignored: set[str] = set()

    def take(self, name: str) -> torch.Tensor:
        """The tensor on the CPU: contiguous, float64 if the file has that, else float32.

        Raises Refused.
        """
        tensor = self._tensors[name]
        self._taken[name] = tensor.dtype
        check_tensor(name, tensor)
        if not tensor.is_floating_point():
            raise Refused(
                f"{name} is {dtype_name(tensor)}, not floating point: save the model before it was "
                "quantised"
            )
        if tensor.dtype != torch.float64:
            tensor = tensor.to(torch.float32)
        check_values(name, tensor)
        return tensor.contiguous()

    def take_all(self, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
        """take() for each name, by its key. Raises Refused, with the faults of all of them."""
        faults, found = Faults(), {}
        for own, name in names.items():
            with faults.collect():
                found[own] = self.take(name)
        faults.refuse()
        return found

    def ignore(self, name: str) -> None:
        """Counts a tensor as used that nothing needs."""
        if name in self._tensors:
            self._ignored.add(name)

    def taken(self) -> list[str]:
        """Names of the tensors that were taken."""
        return list(self._taken)

    def unused(self) -> list[str]:
        """Names of the tensors that were not taken."""
        return [name for name in self._tensors if name not in {*self._taken, *self._ignored}]

    def notes(self) -> tuple[str, ...]:
        """A note for each dtype that was converted."""
        return dtype_notes(self._taken.values())
