"""Puts scalers around forward(), at the inputs and outputs that its signature has.

A signature says which tensors are states, and where the features of a tensor are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, TypeVar

import numpy as np

from lstmserve.spec import TensorSpec
from lstmserve_export.arrays import Array
from lstmserve_export.lstm.network import CHOOSE, Norm
from lstmserve_export.module.forward import Forward
from lstmserve_export.module.scaling import Columns, Scaling
from lstmserve_export.module.signature.probe import probe
from lstmserve_export.module.signature.signature import Input, Output, Signature
from lstmserve_export.refusal import Refused, shorten
from lstmserve_export.scalers.min_max import as_min_max
from lstmserve_export.scalers.sides import Scalers

FAR: Final = 10.0  # deviations from the mean
WRONG: Final = 30.0
NEAR: Final = 1.5  # of a MinMaxScaler's range, [0, 1] or [-1, 1]
Tensor = TypeVar("Tensor", Input, Output)


def probe_scaled(forward: Forward, scalers: Scalers, **named: Any) -> Signature:
    """The signature of forward() with the scalers around it, which `forward` has from then on.

    `named` is what probe() takes. Raises Refused.
    """
    signature, guess = _first(forward, scalers, named)
    if not scalers:
        return signature
    inputs = _placed("input", scalers.inputs, signature.inputs)
    outputs = _placed("output", scalers.outputs, signature.outputs)
    forward.scaling = Scaling(
        {each.name: _columns(each, norm) for each, norm in inputs},
        {each.result: _columns(each, norm) for each, norm in outputs},
    )
    ends = [
        *(f"send {each.spec.name} as it is measured: the model scales it" for each, _ in inputs),
        *(f"{each.spec.name} is scaled back by the model" for each, _ in outputs),
    ]
    notes = [*ends, *scalers.notes(), *_of_example(forward, inputs)]
    if inputs and _shapes(guess) != _shapes(forward.scaling.inputs):
        signature = probe(forward, **named)  # now with rows as in training
    return replace(signature, notes=(*notes, *signature.notes))


def _first(
    forward: Forward, scalers: Scalers, named: Mapping[str, Any]
) -> tuple[Signature, Mapping[str, Columns]]:
    """A signature, and the guess of what is scaled with which it was found. Raises Refused.

    Raw rows may be so large that a network answers all of them alike, so that nothing shows which
    rows it reads. A guess that is wrong does no harm: forward() fails, or the scaler is placed
    otherwise afterwards.
    """
    guess = _guess(forward, scalers.inputs, named.get("states", ()))
    forward.scaling = Scaling(guess)
    try:
        return probe(forward, **named), guess
    except Refused:
        if not guess:
            raise
        forward.scaling = Scaling()
        with suppress(Refused):
            return probe(forward, **named), {}
        raise


def _guess(
    forward: Forward, norms: Mapping[str, Norm], states: Sequence[str]
) -> dict[str, Columns]:
    """What may be scaled by the sizes alone: the only tensor of so many features, at its end or
    ahead of time."""
    found = {}
    for name, norm in norms.items():
        fitting = {
            key: tensor.dim() - 1 - axes[-1]
            for key, tensor in forward.example.items()
            if tensor.is_floating_point() and key not in states and name in ("", key)
            if (axes := [a for a, size in enumerate(tensor.shape) if a and size == len(norm.mean)])
        }
        if len(fitting) == 1:
            ((key, trailing),) = fitting.items()
            found[key] = Columns(norm, (-1, *[1] * trailing))
    return found


def _shapes(columns: Mapping[str, Columns]) -> dict[str, tuple[int, ...]]:
    return {name: each.shape for name, each in columns.items()}


def _placed(
    side: str, norms: Mapping[str, Norm], tensors: Sequence[Tensor]
) -> list[tuple[Tensor, Norm]]:
    """Each norm with its input or output. Raises Refused."""
    floats = {each.spec.name: each for each in tensors if each.spec.dtype == "float32"}
    known = shorten(list(floats)) or "none"
    found = []
    for name, norm in norms.items():
        if not name and len(floats) != 1:
            raise Refused(
                f"{side}_scaler: forward() has {len(floats)} {side}s of floats ({known}): name "
                f"those that have a scaler, {{'NAME': scaler}} in Python or NAME=FILE in a flag"
            )
        if name and name not in floats:
            raise Refused(
                f"{side}_scaler: forward() has no {side} {name} of floats; it has {known}"
            )
        each = floats[name] if name else next(iter(floats.values()))
        _check_width(side, each.spec, norm)
        found.append((each, norm))
    return found


def _check_width(side: str, spec: TensorSpec, norm: Norm) -> None:
    width = len(norm.mean)
    if spec.shape == (width,) or (not spec.shape and width == 1):
        return
    is_wider = spec.shape and width > spec.shape[0]
    hint = f"; {CHOOSE.format(side=side)}" if is_wider else ""
    raise Refused(
        f"the {side} scaler has {width} columns, and a row of {spec.name} is {list(spec.shape)}"
        f"{hint}"
    )


def _columns(each: Input | Output, norm: Norm) -> Columns:
    """The norm along the axis of the features, of which a tensor has one or none."""
    if not each.spec.shape:
        return Columns(norm, ())
    others = [axis for axis in (each.axes.batch, each.axes.time) if axis is not None]
    features = next(axis for axis in range(len(others) + 1) if axis not in others)
    return Columns(norm, (-1, *[1] * (len(others) - features)))


def _of_example(forward: Forward, inputs: Sequence[tuple[Input, Norm]]) -> Iterator[str]:
    """A note where the example's rows are far from what the scaler was fitted on.

    Raises Refused where they would fit if the mean and the scale were a MinMaxScaler's.
    """
    for each, norm in inputs:
        if np.all(norm.scale == 1):
            continue  # no deviations to count
        rows = each.axes.to_rows(forward.example[each.name]).numpy().reshape(-1, len(norm.mean))
        far = float(np.median(np.abs(_scaled(rows, norm)), axis=0).max())
        other = _scaled(rows, as_min_max(norm))
        is_near = np.abs(other).max() <= NEAR and np.ptp(other, axis=0).max() > 0.1
        if far > WRONG and is_near:
            raise Refused(
                f"with the scaler the rows of {each.spec.name} are {far:.3g} and more, and with "
                "its mean as min_ and its scale as scale_ of a MinMaxScaler they fit into its "
                "range: give the scaler itself"
            )
        if far > FAR:
            yield (
                f"the example's {each.spec.name} is {far:.3g} scales from the mean: give rows as "
                "they are measured, before the scaler"
            )


def _scaled(rows: Array, norm: Norm) -> Array:
    with np.errstate(all="ignore"):
        found: Array = (rows - norm.mean) / norm.scale
    return found
