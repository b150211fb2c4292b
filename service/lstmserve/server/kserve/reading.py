"""Owns what a request's inputs and outputs may be for a model: checked here, trusted by the engine.

Steps of sequences and whole sequences share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from lstmserve.engine import Model
from lstmserve.engine.arrays import Input
from lstmserve.engine.errors import BadTensor, Malformed
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.codec import check_finite, input_rows
from lstmserve.server.kserve.tensors import SHOWN_MAX, Array, Tensor, array, refuse_parameters
from lstmserve.spec import ModelSpec

OUTPUTS: Final = ("y", "y_last", "hn", "cn")
STATES: Final = ("h0", "c0")

Inputs = Mapping[str, Tensor]


def input_name(spec: ModelSpec) -> str:
    """Of what the model reads."""
    return "tokens" if spec.num_embeddings else "x"


def input_width(spec: ModelSpec) -> tuple[int, ...]:
    """The axes of one row."""
    return () if spec.num_embeddings else (spec.input_size,)


def shown_shapes(spec: ModelSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of x and y in a request of one step, after an axis that clients call the batch's.

    That one is T, or 1. Tokens need one more, as clients send no input without a shape; so do whole
    sequences, where there is nothing else.
    """
    rows = (-1,) if spec.num_embeddings or spec.bidirectional else ()
    return (*rows, *input_width(spec)), (*rows, spec.output_size)


def wanted_outputs(request: pb.ModelInferRequest, model: Model) -> tuple[str, ...]:
    """Their names, in order; y when none is named. Raises Malformed, NotImplementedYet."""
    names = []
    for output in request.outputs:
        if (name := output.name) not in OUTPUTS:
            raise Malformed(
                f"unexpected inference output '{name[:SHOWN_MAX]}' for model '{model.name}'; "
                f"there are {', '.join(OUTPUTS)}"
            )
        if output.parameters:
            refuse_parameters(output.parameters, f"output '{name}'")
        names.append(name)
    return tuple(names) or ("y",)


def model_input(model: Model, inputs: Inputs, optional: Sequence[str]) -> Array:
    """x or tokens in the shape it came in; besides it only these may be there. Raises Malformed,
    BadTensor."""
    wanted = input_name(model.spec)
    known = (wanted, *optional)
    for name in inputs:
        if name not in known:
            raise Malformed(
                f"unexpected inference input '{name[:SHOWN_MAX]}' for model '{model.name}'; "
                f"such a request takes {', '.join(known)}"
            )
    if wanted not in inputs:
        raise BadTensor(f"input '{wanted}' is missing", field=wanted)
    return array(inputs[wanted], "INT64" if model.spec.num_embeddings else "FP32")


def check_values(spec: ModelSpec, rows: Input) -> None:
    """x [T, I] is finite, tokens [T] are in range. Raises NonFinite, BadTensor."""
    if spec.num_embeddings:
        input_rows(spec, b"", rows.tolist(), len(rows))
    else:
        check_finite(rows, "x")


def states(inputs: Inputs) -> tuple[Array, Array] | None:
    """h0 and c0 as they came; None when there is neither. Raises BadTensor."""
    given = [name for name in STATES if name in inputs]
    if len(given) == 1:
        (missing,) = {*STATES} - {*given}
        raise BadTensor(f"{missing} is missing: give both or neither", field=missing)
    if not given:
        return None
    h0, c0 = (array(inputs[name], "FP32") for name in STATES)
    return h0, c0


def shaped(name: str, values: Array, *shapes: tuple[int, ...]) -> Array:
    """The values, finite, in one of these shapes. Raises BadTensor, NonFinite."""
    if values.shape not in shapes:
        allowed = " or ".join(str(list(shape)) for shape in shapes)
        raise BadTensor(
            f"input '{name}' has shape {list(values.shape)}, must have {allowed}", field=name
        )
    check_finite(values, name)
    return values
