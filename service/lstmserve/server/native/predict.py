"""Translates Predict: whole sequences, nothing is kept. Decides nothing."""

from __future__ import annotations

from lstmserve.engine import Engine, Model
from lstmserve.engine.errors import BadTensor, ServeError
from lstmserve.engine.predict import PredictJob
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import (
    check_finite,
    check_reply,
    input_rows,
    parse,
    sequence_lengths,
    state_rows,
)
from lstmserve.server.message_sizes import predict_bytes
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import Lease
from lstmserve.server.status import code
from lstmserve.server.transport import UnaryCall
from lstmserve.wire.v1 import lstm_pb2 as pb


class PredictCalls:
    """The handler; one for all calls."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    async def answer(self, call: UnaryCall) -> bytes:
        """The whole call. Raises what it ends with."""
        request = parse(pb.PredictRequest, call.take())
        work = self.predict(request, call.tenant, call.lease)
        del request  # or it would be held while its input is computed
        return (await work).SerializeToString()

    async def predict(
        self, request: pb.PredictRequest, tenant: Tenant, lease: Lease
    ) -> pb.PredictResponse:
        """y, (hn, cn) = head(lstm(x, (h0, c0))) of each sequence."""
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
            y=prediction.y.tobytes(),
            queue_ns=prediction.queue_ns,
            compute_ns=prediction.compute_ns,
        )
        if job.with_state and prediction.hn is not None and prediction.cn is not None:
            response.hn, response.cn = prediction.hn.tobytes(), prediction.cn.tobytes()
        return response

    def _job(self, model: Model, request: pb.PredictRequest, now_ns: int) -> PredictJob:
        spec = model.spec
        self._engine.predictor.check_count(len(request.lengths))
        given = list(request.lengths) or [_single_length(model, request)]
        lengths = sequence_lengths(given, self._engine.config.length_max)
        total = int(lengths.sum())
        x = input_rows(spec, request.x, request.tokens, total)
        check_finite(x, "x")
        layers, count = spec.num_layers * spec.num_directions, len(given)
        height = count if request.last_only else total
        check_reply(height, spec.output_size, self._engine.config.message_bytes_max)
        h0, c0 = (
            state_rows(content, layers, count, width, field) if content else None
            for content, width, field in (
                (request.h0, spec.state_size, "h0"),
                (request.c0, spec.hidden_size, "c0"),
            )
        )
        if (h0 is None) != (c0 is None):
            other = "c0" if c0 is None else "h0"
            raise BadTensor(f"{other} is missing: give both or neither", field=other)
        return PredictJob(
            x=x,
            lengths=lengths,
            h0=h0,
            c0=c0,
            last_only=request.last_only,
            with_state=request.with_state,
            arrival_ns=now_ns,
        )


def _single_length(model: Model, request: pb.PredictRequest) -> int:
    """T of a request without lengths: one sequence of all there is."""
    if model.spec.num_embeddings:
        count = len(request.tokens)
    else:
        count, rest = divmod(len(request.x), 4 * model.spec.input_size)
        if rest:
            raise BadTensor(f"x is no multiple of {model.spec.input_size} values", field="x")
    return count or 1  # without any the next check says what is missing
