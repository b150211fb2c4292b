"""Reads the tensors of one step of a sequence. Decides nothing.

x is [I], [T, I] or [1, T, I], and y has the same axes with O instead of I; tokens have those of x
without the last.
"""

from __future__ import annotations

from dataclasses import dataclass

from lstmserve.config import Config
from lstmserve.engine import Model
from lstmserve.engine.arrays import Input
from lstmserve.engine.errors import BadTensor
from lstmserve.engine.session.opening import ImportedState
from lstmserve.server.codec import check_length, check_reply
from lstmserve.server.kserve.reading import (
    STATES,
    Inputs,
    check_values,
    input_name,
    input_width,
    model_input,
    shaped,
    states,
)


@dataclass(slots=True)
class Rows:
    """x [T, I] or tokens [T] of one step, and the axes it came with before a row's: y's too."""

    x: Input
    axes: tuple[int, ...]


def step_rows(
    model: Model, inputs: Inputs, config: Config, *, is_start: bool, last_only: bool
) -> Rows:
    """One step's input. Raises Malformed, BadTensor, EmptyInput, TooLong, NonFinite."""
    x = model_input(model, inputs, STATES if is_start else ())
    name, width = input_name(model.spec), input_width(model.spec)
    axes = x.shape[: max(0, x.ndim - len(width))]
    if x.shape[len(axes) :] != width or len(axes) > 2:
        row = "".join(f", {size}" for size in width)
        raise BadTensor(
            f"input '{name}' has shape {list(x.shape)}, must have [{row[2:]}], [T{row}] or "
            f"[1, T{row}] in a sequence",
            field=name,
        )
    if len(axes) == 2 and axes[0] != 1:
        raise BadTensor(
            f"input '{name}' has batch size {axes[0]}, must have 1 in a sequence: batches are "
            "formed of many sequences' requests",
            field=name,
        )
    rows = x.reshape(-1, *width)
    check_length(len(rows), config.length_max, name)
    check_values(model.spec, rows)
    height = 1 if last_only else len(rows)
    check_reply(height, model.output_size, config.message_bytes_max, name)
    return Rows(rows, axes)


def initial_state(model: Model, inputs: Inputs) -> ImportedState | None:
    """h0 and c0 of a START, [L, S] or [L, 1, S]; None: zeros. Raises BadTensor, NonFinite."""
    if (given := states(inputs)) is None:
        return None
    spec = model.spec
    layers, widths = spec.num_layers, (spec.state_size, spec.hidden_size)
    h, c = (
        shaped(name, values, (layers, width), (layers, 1, width)).reshape(layers, width)
        for name, values, width in zip(STATES, given, widths, strict=True)
    )
    return ImportedState(h, c, 0)
