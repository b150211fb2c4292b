"""A request of whole sequences, from its tensors to its response: nothing of it is kept.

x is [B, T, I] and tokens are [B, T]; the first `lengths` [B] rows of each sequence count. It must
not know any session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lstmserve.config import Config
from lstmserve.engine import Engine, Model
from lstmserve.engine.arrays import Floats
from lstmserve.engine.errors import BadTensor, DeadlineExpired
from lstmserve.engine.predict import Prediction, PredictJob
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.codec import check_length, check_reply, sequence_lengths
from lstmserve.server.kserve.request import InferRequest
from lstmserve.server.kserve.responses import InferResponder, begin_response, put_outputs
from lstmserve.server.kserve.tensors import (
    STATES,
    Array,
    Inputs,
    check_values,
    in_shape,
    initial_states,
    input_array,
    model_input,
    to_array,
)
from lstmserve.server.message_sizes import predict_bytes
from lstmserve.server.observe.metrics import Metrics

Lengths = npt.NDArray[np.int32]


async def predict(
    engine: Engine, metrics: Metrics, responder: InferResponder, request: InferRequest
) -> None:
    """Answers the request. A cancelled one is not answered: its caller has gone."""
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
    job, longest = _job(request, engine.config, arrival_ns)
    request.inputs = {}
    tenant.check(job.lengths.size, len(job.x), arrival_ns)
    height = job.lengths.size * (1 if request.last_only else longest)
    lease.grow(predict_bytes(model, job, height))
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
    put_outputs(response, _outputs(prediction, longest, request.outputs))
    return response


def _job(request: InferRequest, config: Config, arrival_ns: int) -> tuple[PredictJob, int]:
    """The job, and T. Raises Malformed, BadTensor, EmptyInput, TooLong, NonFinite."""
    model, inputs = request.model, request.inputs
    x = input_array(model, inputs, ("lengths", *STATES))
    name, _, row = model_input(model.spec)
    if x.ndim != 2 + len(row) or x.shape[2:] != row:
        sizes = "".join(f", {size}" for size in row)
        raise BadTensor(
            f"input '{name}' has shape {list(x.shape)}, must have [B, T{sizes}] where there is no "
            "sequence: whole sequences. A step must specify a non-zero or non-empty sequence_id",
            field=name,
        )
    count, longest = x.shape[:2]
    check_length(count, config.pending_steps_max, name)
    check_length(longest, config.length_max, name)
    height = 1 if request.last_only else longest
    check_reply(count * height, model, config.message_bytes_max, name)
    lengths = _lengths(inputs, count, longest)
    rows = x[_within(lengths, longest)]
    check_values(model.spec, rows)
    h0, c0 = _initial_states(model, inputs, count)
    job = PredictJob(
        x=rows,
        lengths=lengths,
        h0=h0,
        c0=c0,
        last_only=request.last_only,
        with_state=request.with_state,
        arrival_ns=arrival_ns,
    )
    return job, longest


def _lengths(inputs: Inputs, count: int, longest: int) -> Lengths:
    if "lengths" not in inputs:
        return np.full(count, longest, np.int32)
    values = in_shape("lengths", to_array(inputs["lengths"], "INT32", "INT64"), (count,))
    return sequence_lengths(values.tolist(), longest)


def _within(lengths: Lengths, longest: int) -> npt.NDArray[np.bool_]:
    """[B, T], whether a row is part of its sequence. A job has those rows one after another."""
    return np.arange(longest) < lengths[:, np.newaxis]


def _initial_states(
    model: Model, inputs: Inputs, count: int
) -> tuple[Floats | None, Floats | None]:
    """[L*D, B, S] each; None: zeros."""
    if (given := initial_states(inputs)) is None:
        return None, None
    spec = model.spec
    layers = spec.num_layers * spec.num_directions
    h0, c0 = (
        in_shape(name, values, (layers, count, width))
        for name, values, width in zip(
            STATES, given, (spec.state_size, spec.hidden_size), strict=True
        )
    )
    return h0, c0


def _outputs(prediction: Prediction, longest: int, names: Sequence[str]) -> list[tuple[str, Array]]:
    """y [B, T, O], zeros past a sequence's end; y_last [B, O]; hn and cn [L*D, B, S]."""
    outputs: list[tuple[str, Array]] = []
    for name in names:
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
