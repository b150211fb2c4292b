"""Builds the answer to a request: its response, or the text of its error.

The errors of a sequence have Triton's words. This module must not decide whether a request failed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

import numpy as np

from lstmserve.engine import Engine, Model
from lstmserve.engine.compute.pool import States
from lstmserve.engine.errors import (
    ServeError,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionLost,
    SessionNotFound,
    SessionReplaced,
    StateRolledBack,
)
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.rows import Rows
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.kserve.request import InferRequest
from lstmserve.server.kserve.signature import OutputTensor, Part, WantedOutputs
from lstmserve.server.kserve.tensors import Array, Axes
from lstmserve.server.pending_bytes import Lease
from lstmserve.server.steps import AppliedStep
from lstmserve.spec import MISSING

SHOWN_MAX: Final = 128

# What follows "sequence S of model 'M' " in an error. A sequence that was never started gets
# Triton's own sentence, because clients look for it.
SENTENCES: Final[dict[type[ServeError], str]] = {
    SessionExpired: "has expired: it was idle for longer than its time to live; send START",
    SessionClosed: "has ended, by END, a close, or a START that failed; send START",
    SessionReplaced: "was started again: the request's incarnation has ended",
    SessionExists: "is live, and restart=false forbids another START to end it",
}
NEVER_STARTED: Final = (
    "inference request for sequence {sequence} to model '{model}' must specify the START flag on "
    "the first request of the sequence: it was never started here"
)


class InferResponder(Protocol):
    """The caller of one request; either answer() or refuse() is called, once."""

    method: str  # the label of its counts
    tenant: Tenant
    arrival_ns: int
    lease: Lease  # of its bytes, until its answer is sent

    @property
    def is_over(self) -> bool:
        """Whether the caller has its answer, or has gone."""

    def answer(self, response: pb.ModelInferResponse) -> None:
        """The request was done."""

    def refuse(self, error: Exception) -> None:
        """The request failed."""


# --- responses


def begin_response(request: InferRequest, model: Model) -> pb.ModelInferResponse:
    """A response with the fields that every response repeats from its request."""
    return pb.ModelInferResponse(
        model_name=model.name, model_version=str(model.version), id=request.id
    )


def put_outputs(
    response: pb.ModelInferResponse, outputs: Iterable[tuple[OutputTensor, Array]]
) -> None:
    """Adds the arrays in this order, as raw contents whatever the request had."""
    for output, values in outputs:
        response.outputs.add(name=output.name, datatype=output.datatype, shape=values.shape)
        response.raw_output_contents.append(values.tobytes())


def step_response(
    engine: Engine,
    request: InferRequest,
    row: int,
    step: AppliedStep,
    wanted: WantedOutputs,
    axes: Axes,
) -> pb.ModelInferResponse:
    """The response to a step that was just applied, while the session still has the state after it.

    `axes` are those that its outputs have before the axes of a row, if it gives a row for each of
    its time steps. Without any row the outputs have an axis of 0.
    """
    model = engine.model_of(row)
    states = engine.sessions.state(row) if wanted.with_state else {}
    response = begin_response(request, model)
    response.parameters["step"].int64_param = step.number
    response.parameters["incarnation"].int64_param = engine.table.incarnation.item(row)
    if step.is_replayed:
        response.parameters["replayed"].bool_param = True
    if model.spec.waits:
        response.parameters[MISSING].int64_param = step.missing_rows
        axes = _axes_of(step.y, axes)
    rows = by_name(model, step.y)
    put_outputs(response, [(each, _values(each, rows, states, axes)) for each in wanted.outputs])
    return response


def _axes_of(y: Rows, axes: Axes) -> Axes:
    """The axes of outputs that have the rows y alone."""
    count = len(y)
    return (*axes[:-1], count) if axes or count != 1 else ()


def by_name(model: Model, y: Rows) -> Mapping[str, Array]:
    """The outputs of the rows y, each of as many rows; the axes behind those may still be one."""
    if len(model.outputs.tensors) == 1:
        return {model.outputs.tensors[0].name: y}
    return model.outputs.split(y)


def _values(output: OutputTensor, rows: Mapping[str, Array], states: States, axes: Axes) -> Array:
    """The output's values of a step: `rows` [T, ...], or [1, ...] where only the last row is
    wanted, and `states` [1, *shape] after it. A state has a batch axis where `axes` has one.

    The last row of none has the shape [0, *shape].
    """
    name, shape = output.tensor.name, output.tensor.shape
    if output.part is Part.ROWS:
        return rows[name].reshape((*axes, *shape))
    if output.part is Part.LAST:
        last = rows[name][-1:]
        return last.reshape((*axes[:-1], *shape) if len(last) else (0, *shape))
    values = states[name]
    return np.moveaxis(values, 0, output.batch_axis) if len(axes) == 2 else values.reshape(shape)


# --- errors


def sequence_error(error: ServeError, sequence: int | str, model: str) -> ServeError:
    """The error in the words of sequences. `error` stays as it is: others may be answered by it."""
    kind, shown = type(error), str(sequence) if isinstance(sequence, int) else repr(sequence)
    if kind is SessionNotFound:
        return with_text(error, NEVER_STARTED.format(sequence=shown, model=model))
    if kind is SessionLost:
        text = f"is lost: {error.message}"
    elif kind is StateRolledBack:
        step = int(error.metadata["step"])
        text = (
            f"may have lost steps that were answered: the last one left is step {step}. Begin it "
            "again with START, or go on from there with a request whose parameter step is "
            f"{step + 1}"
        )
    elif kind in SENTENCES:
        text = SENTENCES[kind]
    else:
        return error
    return with_text(error, f"sequence {shown} of model '{model}' {text}")


def with_text(error: ServeError, text: str) -> ServeError:
    """The same error with another text."""
    changed = copy.copy(error)
    changed.args = (text,)
    changed.message = text
    if changed.field == "session_id":
        changed.field = "sequence_id"
    return changed


def without_tensors(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    """As much of the request as error_prefix() and error_response() show."""
    shown = pb.ModelInferRequest(id=request.id, model_name=request.model_name)
    if "sequence_id" in request.parameters:
        shown.parameters["sequence_id"].CopyFrom(request.parameters["sequence_id"])
    return shown


def error_prefix(request: pb.ModelInferRequest | None) -> str:
    """What a stream's error begins with: its client's library shows nothing else of the request.

    None: the request could not be read.
    """
    if request is None:
        return ""
    parameter = request.parameters.get("sequence_id")
    kind = parameter.WhichOneof("parameter_choice") if parameter is not None else None
    named = (
        ("request id", request.id),
        ("sequence id", str(getattr(parameter, kind)) if kind else ""),
    )
    listed = ", ".join(f"{name}: {value[:SHOWN_MAX]}" for name, value in named if value)
    return f"[{listed}] " if listed else ""


def error_response(
    request: pb.ModelInferRequest | None, message: str
) -> pb.ModelStreamInferResponse:
    """The message of an error in band; `request` is None where it could not be read."""
    response = pb.ModelInferResponse()
    if request is not None:
        response.id, response.model_name = request.id, request.model_name[:SHOWN_MAX]
    return pb.ModelStreamInferResponse(
        error_message=error_prefix(request) + message, infer_response=response
    )
