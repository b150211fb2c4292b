"""Runs a request of whole sequences, from its tensors to its response, and keeps nothing of it.

Every input is [B, T, *shape]; the first `lengths` [B] rows of each sequence count. This module must
not know any session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lstmserve.config import Config
from lstmserve.engine import Engine, Model
from lstmserve.engine.compute.pool import States
from lstmserve.engine.errors import BadTensor, DeadlineExpired
from lstmserve.engine.predict import Prediction, PredictJob
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.codec import (
    check_final_states,
    check_length,
    check_reply,
    sequence_lengths,
)
from lstmserve.server.kserve.request import InferRequest
from lstmserve.server.kserve.responses import (
    InferResponder,
    begin_response,
    by_name,
    put_outputs,
)
from lstmserve.server.kserve.signature import (
    InputTensor,
    OutputTensor,
    Part,
    WantedOutputs,
    signature_of,
)
from lstmserve.server.kserve.tensors import (
    Array,
    Axes,
    Inputs,
    check_names,
    check_values,
    given_states,
    in_shape,
    joined,
    state_in_shape,
    to_array,
)
from lstmserve.server.message_sizes import predict_bytes
from lstmserve.server.observe.metrics import Metrics
from lstmserve.spec import KNOWN, LENGTHS

Lengths = npt.NDArray[np.int32]


async def predict(
    engine: Engine, metrics: Metrics, responder: InferResponder, request: InferRequest
) -> None:
    """Computes and answers the request. A cancelled one gets no answer, as its caller has gone."""
    try:
        response = await _predicted(engine, metrics, responder, request)
    except Exception as error:
        responder.refuse(error)
    else:
        responder.answer(response)


async def _predicted(
    engine: Engine, metrics: Metrics, responder: InferResponder, request: InferRequest
) -> pb.ModelInferResponse:
    model, tenant, lease = request.model, responder.tenant, responder.lease
    arrival_ns = responder.arrival_ns
    engine.check_open()
    wanted = signature_of(model).wanted(request.outputs, model)
    job, longest = _job(request, wanted, engine.config, arrival_ns)
    request.inputs = {}
    tenant.check(job.lengths.size, len(job.x), arrival_ns)
    height = job.lengths.size * (1 if job.last_only else longest)
    last_bytes = job.lengths.size * wanted.last_bytes
    lease.grow(predict_bytes(model, job, height) + last_bytes)
    deadline_ns = request.parameters.deadline_ns(arrival_ns)
    left_s = (deadline_ns - engine.monotonic_ns()) / 1e9 if deadline_ns else None
    try:
        async with asyncio.timeout(left_s):
            with tenant.using(job.lengths.size):
                lease.hold()
                prediction = await engine.predictor.predict(model, job, lease.release)
    except TimeoutError as error:
        raise DeadlineExpired("the timeout passed before the sequences were computed") from error
    total_ns = engine.monotonic_ns() - arrival_ns
    counters = metrics.model(model.name, model.version)
    counters.steps(responder.method, 1, total_ns, prediction.queue_ns)
    response = begin_response(request, model)
    if not model.spec.is_row_by_row:
        _check_rows(request, wanted, prediction)
        longest = int(prediction.lengths.max())
        response.parameters[LENGTHS].string_param = ",".join(map(str, prediction.lengths.tolist()))
    rows = by_name(model, prediction.y)
    put_outputs(
        response,
        [(each, _values(each, rows, prediction, longest)) for each in wanted.outputs],
    )
    return response


def _job(
    request: InferRequest, wanted: WantedOutputs, config: Config, arrival_ns: int
) -> tuple[PredictJob, int]:
    """The job, and T. Raises Malformed, BadTensor, EmptyInput, TooLong, NonFinite."""
    model, inputs = request.model, request.inputs
    signature = signature_of(model)
    check_names(model, inputs, (LENGTHS, *signature.states))
    first, arrays = signature.first.name, {}
    axes: Axes = ()
    for name, each in signature.inputs.items():
        arrays[name] = to_array(inputs[name], each.datatype)
        axes = _check_axes(each, arrays[name].shape, axes, first)
    count, longest = axes
    check_length(count, config.pending_steps_max, first)
    check_length(longest, config.length_max, first)
    height = count * (1 if wanted.last_only else longest)
    check_reply(height, model, config.message_bytes_max, first)
    if wanted.with_state:
        check_final_states(count, model, config.message_bytes_max, first)
    lengths = _lengths(inputs, count, longest)
    within = _within(lengths, longest)
    for name, each in signature.inputs.items():
        arrays[name] = arrays[name][within].reshape(-1, each.size)
        check_values(model, each, arrays[name])
    initial = _initial_states(model, inputs, count)
    if model.spec.waits and any(each.part is Part.LAST for each in wanted.outputs):
        _check_last(model, lengths, initial)
    job = PredictJob(
        x=joined(model, arrays),
        lengths=lengths,
        initial=initial,
        last_only=wanted.last_only,
        with_state=wanted.with_state,
        arrival_ns=arrival_ns,
    )
    return job, longest


def _check_axes(wanted: InputTensor, shape: Axes, others: Axes, first: str) -> Axes:
    """Checks the axes B and T of an input against those of the inputs before it, if any.

    Raises BadTensor.
    """
    name, axes = wanted.name, shape[:2]
    if len(shape) != 2 + len(wanted.shape) or shape[2:] != wanted.shape:
        sizes = "".join(f", {size}" for size in wanted.shape)
        raise BadTensor(
            f"input '{name}' has shape {list(shape)}, must have [B, T{sizes}] where there is no "
            "sequence: whole sequences. A step must specify a non-zero or non-empty sequence_id",
            field=name,
        )
    if others and axes != others:
        raise BadTensor(
            f"input '{name}' has B, T = {list(axes)}, input '{first}' has {list(others)}: all "
            "inputs of a request must have the same",
            field=name,
        )
    return axes


def _lengths(inputs: Inputs, count: int, longest: int) -> Lengths:
    if LENGTHS not in inputs:
        return np.full(count, longest, np.int32)
    values = in_shape(LENGTHS, to_array(inputs[LENGTHS], "INT32", "INT64"), (count,))
    return sequence_lengths(values.tolist(), longest)


def _within(lengths: Lengths, longest: int) -> npt.NDArray[np.bool_]:
    """The mask [B, T] of the rows that are part of their sequence. A job has those, one after
    another."""
    return np.arange(longest) < lengths[:, np.newaxis]


def _initial_states(model: Model, inputs: Inputs, count: int) -> States | None:
    """The initial states, [B, *shape] each; None stands for the model's own."""
    if (given := given_states(model, inputs)) is None:
        return None
    states = {}
    for name, state in signature_of(model).states.items():
        values = state_in_shape(model, state, given[name], state.batched(count))
        states[state.tensor.name] = np.moveaxis(values, state.batch_axis, 0)
    return states


def _check_last(model: Model, lengths: Lengths, initial: States | None) -> None:
    """Raises BadTensor where the last time step of a sequence has no whole window, so that its
    NAME_last would have no value."""
    known = 0 if initial is None else initial[KNOWN]
    lacking = np.flatnonzero(known + lengths < model.spec.window)
    if lacking.size:
        i = lacking[0]
        raise BadTensor(
            f"sequence {i} has {lengths[i]} rows, too few for a window of {model.spec.window}: it "
            f"has no last output. Ask for {model.spec.outputs[0].name}, which may have no row",
            field=signature_of(model).first.name,
        )


def _check_rows(request: InferRequest, wanted: WantedOutputs, prediction: Prediction) -> None:
    """Raises BadTensor where a sequence gives no row, so that its NAME_last would have no value."""
    empty = np.flatnonzero(prediction.lengths == 0)
    if empty.size and any(each.part is Part.LAST for each in wanted.outputs):
        model = request.model
        raise BadTensor(
            f"sequence {empty[0]} gives no row of outputs, so it has no last one. Ask for "
            f"{model.spec.outputs[0].name}, which may have no row",
            field=signature_of(model).first.name,
        )


def _values(
    output: OutputTensor, rows: Mapping[str, Array], prediction: Prediction, longest: int
) -> Array:
    """The values of one output: [B, T, *shape] with zeros past the rows that a sequence gives.

    The last time step of an output is [B, *shape], a state has its shape behind an axis B. `rows`
    are [rows, ...].
    """
    name, shape, lengths = output.tensor.name, output.tensor.shape, prediction.lengths
    if output.part is Part.STATE:
        assert prediction.finals is not None
        return np.moveaxis(prediction.finals[name], 0, output.batch_axis)
    values = rows[name]
    if output.part is Part.LAST:
        return values[np.cumsum(lengths) - 1].reshape((lengths.size, *shape))
    padded = np.zeros((lengths.size, longest, *values.shape[1:]), values.dtype)
    padded[_within(lengths, longest)] = values
    return padded.reshape((lengths.size, longest, *shape))
