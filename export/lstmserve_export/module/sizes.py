"""Gives two calls in the user's code a meaning that no size of an axis changes.

len(x) of a tensor is a number of Python, of which a trace makes a constant. x.squeeze() without an
axis also drops the axis of a batch of one, or of a single time step. It must not know what a module
computes.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn

Squeezed = dict[tuple[CodeType, int], tuple[int, ...]]
"""The axes that a squeeze() dropped, by its place in the code of its caller."""


@contextmanager
def symbolic_len(module: nn.Module) -> Iterator[None]:
    """Meanwhile len(x) of a tensor is x.shape[0] in the source files of the module's classes."""

    def length(value: Any) -> Any:
        is_sized = isinstance(value, torch.Tensor) and value.dim()
        return value.shape[0] if is_sized else builtins.len(value)

    spaces = {id(space): space for space in _globals(module) if "len" not in space}
    for space in spaces.values():
        space["len"] = length
    try:
        yield
    finally:
        for space in spaces.values():
            del space["len"]


def _globals(module: nn.Module) -> Iterator[dict[str, Any]]:
    """The globals of the functions forward() that are not torch's own."""
    for each in module.modules():
        for kind in type(each).__mro__:
            function = vars(kind).get("forward")
            if isinstance(function, FunctionType) and not kind.__module__.startswith("torch."):
                yield function.__globals__


@contextmanager
def steady_squeeze(known: Squeezed) -> Iterator[None]:
    """Meanwhile squeeze() without an axis drops the axes that it dropped in its first call, which
    it enters into `known`."""
    of_tensor, of_torch = torch.Tensor.squeeze, torch.squeeze

    def squeeze(input: Any, *axis: Any, **named: Any) -> Any:  # noqa: A002  # torch's own name
        if axis or named:
            return of_tensor(input, *axis, **named)
        caller = sys._getframe(1)
        place = caller.f_code, caller.f_lasti
        if place not in known:
            known[place] = tuple(a for a, size in enumerate(input.shape) if size == 1)
        return of_tensor(input, known[place])

    library: Any = torch
    library.Tensor.squeeze = library.squeeze = squeeze
    try:
        yield
    finally:
        library.Tensor.squeeze, library.squeeze = of_tensor, of_torch
