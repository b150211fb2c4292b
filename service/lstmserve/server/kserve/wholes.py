"""Translates the tensors of whole sequences, of which nothing is kept. Decides nothing.

x is [B, T, I] and tokens are [B, T]; of each the first `lengths` [B] rows count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lstmserve.config import Config
from lstmserve.engine import Model
from lstmserve.engine.arrays import Floats
from lstmserve.engine.errors import BadTensor
from lstmserve.engine.predict import Prediction, PredictJob
from lstmserve.server.codec import check_length, check_reply, sequence_lengths
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
from lstmserve.server.kserve.tensors import Array, array

Lengths = npt.NDArray[np.int32]


def whole_sequences(
    model: Model, inputs: Inputs, wanted: Sequence[str], config: Config, now_ns: int
) -> tuple[PredictJob, int]:
    """The job, and T. Raises Malformed, BadTensor, EmptyInput, TooLong, NonFinite."""
    x = model_input(model, inputs, ("lengths", *STATES))
    name, width = input_name(model.spec), input_width(model.spec)
    if x.ndim != 2 + len(width) or x.shape[2:] != width:
        row = "".join(f", {size}" for size in width)
        raise BadTensor(
            f"input '{name}' has shape {list(x.shape)}, must have [B, T{row}] where there is no "
            "sequence: whole sequences. A step must specify a non-zero or non-empty sequence_id",
            field=name,
        )
    count, longest = x.shape[:2]
    check_length(count, config.pending_steps_max, name)
    check_length(longest, config.length_max, name)
    height = longest if "y" in wanted else 1
    check_reply(count * height, model.output_size, config.message_bytes_max, name)
    lengths = _lengths(inputs, count, longest)
    rows = x[_within(lengths, longest)]
    check_values(model.spec, rows)
    h0, c0 = _initial_states(model, inputs, count)
    job = PredictJob(
        x=rows,
        lengths=lengths,
        h0=h0,
        c0=c0,
        last_only="y" not in wanted,
        with_state="hn" in wanted or "cn" in wanted,
        arrival_ns=now_ns,
    )
    return job, longest


def whole_outputs(
    prediction: Prediction, longest: int, wanted: Sequence[str]
) -> list[tuple[str, Array]]:
    """y [B, T, O], zeros past a sequence's end; y_last [B, O]; hn and cn [L*D, B, S]."""
    outputs: list[tuple[str, Array]] = []
    for name in wanted:
        if name == "y":
            outputs.append((name, _padded(prediction, longest)))
        elif name == "y_last":
            outputs.append((name, prediction.y[np.cumsum(prediction.lengths) - 1]))
        else:
            values = prediction.hn if name == "hn" else prediction.cn
            assert values is not None
            outputs.append((name, values))
    return outputs


def _padded(prediction: Prediction, longest: int) -> Array:
    lengths = prediction.lengths
    y = np.zeros((lengths.size, longest, prediction.y.shape[1]), np.float32)
    y[_within(lengths, longest)] = prediction.y
    return y


def _within(lengths: Lengths, longest: int) -> npt.NDArray[np.bool_]:
    """[B, T], which rows are of a sequence: one after another they are a job's."""
    return np.arange(longest) < lengths[:, np.newaxis]


def _lengths(inputs: Inputs, count: int, longest: int) -> Lengths:
    if "lengths" not in inputs:
        return np.full(count, longest, np.int32)
    values = shaped("lengths", array(inputs["lengths"], "INT32", "INT64"), (count,))
    return sequence_lengths(values.tolist(), longest)


def _initial_states(
    model: Model, inputs: Inputs, count: int
) -> tuple[Floats | None, Floats | None]:
    """[L*D, B, S] each; None: zeros."""
    if (given := states(inputs)) is None:
        return None, None
    spec = model.spec
    layers = spec.num_layers * spec.num_directions
    h0, c0 = (
        shaped(name, values, (layers, count, width))
        for name, values, width in zip(
            STATES, given, (spec.state_size, spec.hidden_size), strict=True
        )
    )
    return h0, c0
