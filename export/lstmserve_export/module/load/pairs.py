"""Compares forward() with results that the user saved. A wrong --module-args may load, too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lstmserve.golden import excess
from lstmserve_export.arrays import Array, Arrays, read_npz
from lstmserve_export.module.forward import Forward
from lstmserve_export.module.load.example import Example, arguments, parameters_of
from lstmserve_export.refusal import Refused, one_line, shorten


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
    module: nn.Module, example: Example, expected: Arrays, prepare: Callable[[Forward], object]
) -> float:
    """How far forward() is from the user's results, in units of the allowed error, at most 1.

    `prepare` puts scalers around forward(). `y` is the first result unless one has this name.
    Raises Refused.
    """
    forward = Forward(module, example)
    prepare(forward)
    worst = _difference(forward, expected)
    if worst <= 1:
        return worst
    hint = "check --module-args, and that yours was in eval mode"
    for words, scaling in forward.scaling.others():
        forward.scaling = scaling
        if _difference(forward, expected) <= 1:
            hint = f"with {words} it would"
            break
    raise Refused(
        "--golden: forward() with these weights does not give your results: the difference is "
        f"{worst:.3g} times the allowed one; {hint}"
    )


def _difference(forward: Forward, expected: Arrays) -> float:
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
        worst = max(worst, _excess(name, array, actual, exact))
    return worst


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
