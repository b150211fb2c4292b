"""Translates Predict, which computes whole sequences and keeps nothing. It decides nothing."""

from __future__ import annotations

from lstmserve.engine import Engine, Model
from lstmserve.engine.errors import BadTensor, Malformed, ServeError
from lstmserve.engine.predict import PredictJob
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import (
    check_final_states,
    check_finite,
    check_reply,
    input_rows,
    parse,
    sequence_lengths,
)
from lstmserve.server.message_sizes import predict_bytes
from lstmserve.server.native.tensors import (
    Arrays,
    check_states,
    put_outputs,
    read_tensors,
    tensors,
)
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import Lease
from lstmserve.server.status import code
from lstmserve.server.transport import UnaryCall
from lstmserve.wire.v1 import lstm_pb2 as pb


class PredictCalls:
    """The method's handler; one object serves all calls."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    async def answer(self, call: UnaryCall) -> bytes:
        """Answers a call with its response's bytes. Raises the error that ends the call."""
        request = parse(pb.PredictRequest, call.take())
        work = self.predict(request, call.tenant, call.lease)
        del request  # or it would be held while its input is computed
        return (await work).SerializeToString()

    async def predict(
        self, request: pb.PredictRequest, tenant: Tenant, lease: Lease
    ) -> pb.PredictResponse:
        """The outputs of each sequence, and its final states where they are wanted."""
        engine = self._engine
        engine.check_open()
        model = engine.model(request.model, request.version)
        counters = self._metrics.model(model.name, model.version)
        start_ns = engine.clock().monotonic_ns
        try:
            job = self._job(model, request, start_ns)
            del request
            tenant.check(job.lengths.size, len(job.x), start_ns)
            height = job.lengths.size if job.last_only else len(job.x)
            lease.grow(predict_bytes(model, job, height))
            lease.hold()
            with tenant.using(job.lengths.size):
                prediction = await engine.predictor.predict(model, job, lease.release)
        except ServeError as error:
            counters.failed("Predict", code(error), error.reason)
            raise
        total_ns = engine.clock().monotonic_ns - start_ns
        counters.steps("Predict", 1, total_ns, prediction.queue_ns)
        response = pb.PredictResponse(
            version=model.version,
            lengths=prediction.lengths.tolist(),
            queue_ns=prediction.queue_ns,
            compute_ns=prediction.compute_ns,
        )
        put_outputs(response, model.outputs, prediction.y)
        if job.with_state:
            assert prediction.finals is not None
            response.final.extend(tensors(model.spec.states, prediction.finals))
        return response

    def _job(self, model: Model, request: pb.PredictRequest, now_ns: int) -> PredictJob:
        self._engine.predictor.check_count(len(request.lengths))
        given = list(request.lengths) or [_single_length(model, request)]
        lengths = sequence_lengths(given, self._engine.config.length_max)
        total = int(lengths.sum())
        x = input_rows(model, request.x, request.tokens, total)
        check_finite(x, "x")
        height = len(given) if request.last_only else total
        message_bytes_max = self._engine.config.message_bytes_max
        check_reply(height, model, message_bytes_max)
        if request.with_state:
            check_final_states(len(given), model, message_bytes_max, "lengths")
        return PredictJob(
            x=x,
            lengths=lengths,
            initial=_initial(model, request, len(given)),
            last_only=request.last_only,
            with_state=request.with_state,
            arrival_ns=now_ns,
        )


def _initial(model: Model, request: pb.PredictRequest, count: int) -> Arrays | None:
    """The initial states, [B, *shape] each; None stands for the model's own.

    Raises Malformed for the h0 and c0 of a client of the first edition, which would be ignored.
    """
    if request.was_8 or request.was_9:
        raise Malformed(
            "h0 and c0 are fields of the first edition of lstmserve: send the initial states as "
            "tensors named h and c in `initial`",
            field="initial",
        )
    if not request.initial:
        return None
    values = read_tensors(model.spec.states, request.initial, "initial", (count,))
    check_states(model, values, "initial")
    return values


def _single_length(model: Model, request: pb.PredictRequest) -> int:
    """T of a request without lengths, whose rows are one sequence."""
    form = model.inputs
    if not form.floats:
        count, rest = divmod(len(request.tokens), form.ints)
    else:
        count, rest = divmod(len(request.x), 4 * form.floats)
    if rest:
        field, width = ("x", form.floats) if form.floats else ("tokens", form.ints)
        raise BadTensor(f"{field} is no multiple of {width} values", field=field)
    return count or 1  # without any row the next check says what is missing
