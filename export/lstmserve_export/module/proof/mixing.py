"""Finds the operation of a module's forward() that makes one row depend on others.

It runs forward() twice on inputs that agree in one time step (or one row of the batch) and differ
elsewhere, while the recurrent layers carry nothing, and compares every torch function that the two
runs call. It only explains: nothing that is served depends on it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from lstmserve_export.module.forward import Forward, Tensors
from lstmserve_export.module.places import callers, located
from lstmserve_export.module.recurrent import (
    CELLS,
    CallId,
    Layer,
    call_original,
    find_layers,
    replaced,
    sequence_axis,
)

TOLERANCE: Final = 1e-6
NEAR: Final = 8  # rows by which padding and slices change the length of a sequence
# These take rows apart, and say nothing of what becomes of them.
SELECTIONS: Final = frozenset(
    ("__getitem__", "select", "narrow", "unbind", "split", "chunk", "index_select", "__iter__")
)


@dataclass(frozen=True, slots=True)
class Operation:
    """A torch function, such as "softmax", and where the user's code calls it.

    `path` is the innermost layer that calls it, "" for the module itself, and `kind` its class;
    `line` is "FILE line N: CODE".
    """

    function: str
    path: str
    kind: str
    line: str

    def __str__(self) -> str:
        if self.path:
            return f"{self.path} ({self.kind})"
        function = "a slice" if self.function in SELECTIONS else f"{self.function}()"
        return f"{function} ({self.line})" if self.line else function


@dataclass(frozen=True, slots=True)
class _Called:
    """One call of a torch function: its tensors, and the frames' findings."""

    operation: Operation
    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]


def find_mixing(
    forward: Forward, one: Tensors, other: Tensors, size: int, index: int
) -> Operation | None:
    """The first function whose result at `index` of the axis of `size` entries differs between the
    two runs, although all that it reads agrees there. None if there is none.

    Raises what forward() raises.
    """
    first, second = _record(forward, one), _record(forward, other)
    counts = Counter(each.operation for each in first)
    found = [
        left.operation
        for left, right in zip(first, second, strict=False)
        if left.operation == right.operation
        and counts[left.operation] < size  # a loop over time takes the rows one by one
        and (left.operation.function not in SELECTIONS or len(left.outputs) == 1)  # no unbind()
        and _agree(left.inputs, right.inputs, size, index)
        and not _agree(left.outputs, right.outputs, size, index)
    ]
    computing = [each for each in found if each.function not in SELECTIONS]
    return next(iter(computing or found), None)


def is_loop(forward: Forward, tensors: Tensors, size: int) -> bool:
    """Whether one line of forward() calls a torch function for each of `size` time steps."""
    counts = Counter(each.operation for each in _record(forward, tensors))
    return max(counts.values(), default=0) >= size


def unusual_size(forward: Forward) -> int:
    """A number of rows near which no axis of the module's tensors is."""
    tensors = (*forward.module.parameters(), *forward.module.buffers(), *forward.example.values())
    taken = {size for tensor in tensors for size in tensor.shape}
    near = {size + each for size in taken for each in range(-2 * NEAR, 2 * NEAR + 1)}
    return next(size for size in range(3 * NEAR, 1 << 20) if size not in near)


@contextmanager
def memoryless(module: nn.Module) -> Iterator[None]:
    """Meanwhile each recurrent layer begins every time step from zeros."""
    with replaced(find_layers(module), lambda call_id, layer, x, state: _memoryless(layer, x)):
        yield


def _record(forward: Forward, tensors: Tensors) -> list[_Called]:
    layers = find_layers(forward.module)
    recorder = _Recorder(forward.module)

    def call(call_id: CallId, layer: Layer, x: torch.Tensor, state: Any) -> Any:
        with recorder.paused():
            return _memoryless(layer, x)

    with replaced(layers, call), recorder:
        forward(tensors)
    return recorder.calls


def _memoryless(layer: Layer, x: torch.Tensor) -> Any:
    """What the layer returns where each time step begins from zeros."""
    axis = sequence_axis(layer, x) if isinstance(x, torch.Tensor) else None
    if isinstance(layer, CELLS) or axis is None:
        return call_original(layer, x, None)
    steps = [call_original(layer, x.narrow(axis, t, 1), None) for t in range(x.shape[axis])]
    return torch.cat([y for y, _ in steps], axis), steps[-1][1]


class _Recorder(TorchFunctionMode):
    """Records the calls of torch functions, but not those that they make themselves."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.calls: list[_Called] = []
        self._module = module
        self._is_paused = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._is_paused:
            return func(*args, **kwargs)
        inputs = list(_tensors((args, kwargs)))
        result = func(*args, **kwargs)
        if outputs := list(_tensors(result)):
            where = located(callers(sys._getframe(1)), self._module)
            name = getattr(func, "__name__", str(func))
            self.calls.append(_Called(Operation(name, *where), inputs, outputs))
        return result

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile nothing is recorded."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Copies of the tensors in a value, since the user's code may write to them later."""
    leaves, _ = pytree.tree_flatten(value)
    return (leaf.detach().clone() for leaf in leaves if isinstance(leaf, torch.Tensor))


def _agree(one: list[torch.Tensor], other: list[torch.Tensor], size: int, index: int) -> bool:
    return len(one) == len(other) and all(
        left.shape == right.shape and _is_close(_at(left, size, index), _at(right, size, index))
        for left, right in zip(one, other, strict=True)
    )


def _at(tensor: torch.Tensor, size: int, index: int) -> torch.Tensor:
    """The entry of the first axis of about that size; the whole tensor where there is none."""
    axes = [axis for axis, each in enumerate(tensor.shape) if abs(each - size) <= NEAR]
    return tensor.select(axes[0], index) if axes else tensor


def _is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.is_floating_point():
        return torch.allclose(one, other, TOLERANCE, TOLERANCE, equal_nan=True)
    return torch.equal(one, other)
