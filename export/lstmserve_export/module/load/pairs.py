"""Compares forward() with results that the user saved. A wrong --module-args may load, too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lstmserve.golden import excess
from lstmserve_export.arrays import Array, Arrays, read_npz
from lstmserve_export.module.forward import Forward
from lstmserve_export.module.load.example import Example, arguments, parameters_of
from lstmserve_export.refusal import Refused, one_line, shorten

Prepare = Callable[[Forward], object]


def read_pairs(path: Path, module: nn.Module) -> tuple[Example, Arrays]:
    """The arguments of forward() in an .npz, and the results that it must give.

    `x` or `tokens` is the first argument, whatever its name. Raises Refused.
    """
    arrays = read_npz(path, "--golden")
    parameters = parameters_of(module)
    inputs = {name: each for name, each in arrays.items() if name.partition(".")[0] in parameters}
    if not inputs:
        inputs = {name: arrays[name] for name in ("x", "tokens") if name in arrays}
    results = {name: array for name, array in arrays.items() if name not in inputs}
    if not inputs or not results:
        raise Refused(
            "--golden: the file must have what forward() takes, such as x, and what it gives, y; "
            f"it has {shorten(list(arrays)) or 'nothing'}"
        )
    return arguments(inputs, module, "--golden"), results


def check_pairs(
    module: nn.Module, example: Example, expected: Arrays, prepare: Prepare
) -> tuple[float, Example]:
    """How far forward() is from the user's results, in units of the allowed error, at most 1; and
    the arguments as the export takes them, with a batch.

    `prepare` puts scalers around forward(). `y` is the first result unless one has this name. One
    sequence may lack the axis of the batch, which then stands where forward() gives the results
    with it. Raises Refused.
    """
    try:
        found = _compare(module, example, expected, prepare), example
    except Refused:
        if (batch := _compare_batch(module, example, expected, prepare)) is None:
            raise
        return batch
    if _may_lack_batch(example):
        return _compare_batch(module, example, expected, prepare) or found
    return found


def _compare_batch(
    module: nn.Module, example: Example, expected: Arrays, prepare: Prepare
) -> tuple[float, Example] | None:
    """check_pairs() of the arguments as a batch of one; None if forward() then gives other
    results."""
    for axis in (0, 1):
        with contextlib.suppress(Refused):
            batch = _as_batch(example, axis)
            return _compare(module, batch, expected, prepare, is_one=True), batch
    return None


def _may_lack_batch(example: Example) -> bool:
    """Whether forward() may have read the rows of one sequence, as nn.LSTM does without a batch:
    states of its own have a batch, whatever the rows are."""
    (first, *others) = example.values()
    return not others and isinstance(first, torch.Tensor) and first.ndim <= 2


def _as_batch(example: Example, axis: int) -> Example:
    """The arguments as a batch of one, whose axis is `axis`, where they have so many."""

    def expand(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(expand, value))
        return value.unsqueeze(axis) if value.ndim >= axis else value

    return {name: expand(value) for name, value in example.items()}


def _compare(
    module: nn.Module,
    example: Example,
    expected: Arrays,
    prepare: Prepare,
    *,
    is_one: bool = False,
) -> float:
    """How far forward() is from the results, at most 1; where `is_one`, these may lack an axis of
    length 1. Raises Refused."""
    forward = Forward(module, example)
    prepare(forward)
    worst = _difference(forward, expected, is_one)
    if worst <= 1:
        return worst
    hint = "check --module-args and the scalers, and that yours was in eval mode"
    for words, scaling in forward.scaling.others():
        forward.scaling = scaling
        if _difference(forward, expected, is_one) <= 1:
            hint = f"with {words} it would"
            break
    raise Refused(
        "--golden: forward() with these weights does not give your results: the difference is "
        f"{worst:.3g} times the allowed one; {hint}"
    )


def _difference(forward: Forward, expected: Arrays, is_one: bool) -> float:
    """The largest error in units of the allowed one. Raises Refused."""
    try:
        single = forward(forward.example)
    except Exception as error:  # the user's code may raise anything
        raise Refused(f"--golden: forward() fails on it: {one_line(error)}") from error
    double = single
    with contextlib.suppress(Exception):  # forward() need not run in float64
        double = forward.as_double()(forward.example)
    places = {result.path: place for place, result in enumerate(single)}
    places.setdefault("y", 0)
    worst = 0.0
    for name, array in expected.items():
        if name not in places or not single:
            known = shorten([result.path or "y" for result in single]) or "no tensor"
            raise Refused(
                f"--golden: forward() has no argument and no result {name}; it gives {known}"
            )
        actual, exact = (_floats(each[places[name]].tensor) for each in (single, double))
        if is_one and array.shape in _without_one(actual.shape):
            array = array.reshape(actual.shape)
        worst = max(worst, _excess(name, array, actual, exact))
    return worst


def _without_one(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shapes without one axis of length 1."""
    return [(*shape[:n], *shape[n + 1 :]) for n, size in enumerate(shape) if size == 1]


def _excess(name: str, array: Array, actual: Array, exact: Array) -> float:
    """Raises Refused for an array that cannot be this result."""
    if array.dtype.kind not in "fiub" or array.shape != actual.shape:
        raise Refused(
            f"--golden: {name} is {array.dtype} {list(array.shape)}, forward() gives "
            f"{list(actual.shape)}"
        )
    torch_error = float(np.abs(actual - exact).max(initial=0))
    return excess(actual, array.astype(np.float64), torch_error)


def _floats(tensor: torch.Tensor) -> Array:
    return tensor.to(torch.float64).numpy()
