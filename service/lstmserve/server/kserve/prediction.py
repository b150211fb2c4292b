"""Owns one request of whole sequences, which belong to no session: nothing is kept of it."""

from __future__ import annotations

import asyncio

from lstmserve.engine.clock import Now
from lstmserve.engine.errors import DeadlineExpired
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.kserve.answering import Answering
from lstmserve.server.kserve.asking import Ask
from lstmserve.server.kserve.dialect import Dialect
from lstmserve.server.kserve.responses import begin_response, put_outputs
from lstmserve.server.kserve.wholes import whole_outputs, whole_sequences
from lstmserve.server.message_sizes import predict_bytes


class WholeSequences:
    """Runs as a task of its own, which cancel() ends."""

    def __init__(
        self, dialect: Dialect, answering: Answering, tenant: Tenant, ask: Ask, now: Now
    ) -> None:
        self._dialect = dialect
        self._answering = answering
        self._tenant = tenant
        self._ask = ask
        self._now = now
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """The answer comes later."""
        self._task = asyncio.create_task(self._run(), name="whole sequences")

    def cancel(self) -> None:
        """The caller went away."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            response = await self._predicted()
        except Exception as error:
            self._answering.refuse(error)
        else:
            self._answering.answer(response)

    async def _predicted(self) -> pb.ModelInferResponse:
        engine, ask, start_ns = self._dialect.engine, self._ask, self._now.monotonic_ns
        engine.check_open()
        job, longest = whole_sequences(ask.model, ask.inputs, ask.wanted, engine.config, start_ns)
        ask.inputs = {}
        self._tenant.check(job.lengths.size, len(job.x), start_ns)
        height = job.lengths.size * (1 if ask.last_only else longest)
        lease = self._answering.lease
        lease.grow(predict_bytes(ask.model, job, height))
        try:
            async with asyncio.timeout(self._left_s()):
                with self._tenant.using(job.lengths.size):
                    lease.hold()
                    work = engine.predictor.predict(ask.model, job, lease.release)
                    prediction = await work
        except TimeoutError as error:
            raise DeadlineExpired(
                "the timeout passed before the sequences were computed"
            ) from error
        total_ns = engine.clock().monotonic_ns - start_ns
        counters = self._dialect.counters(ask.model)
        counters.steps(self._answering.method, 1, total_ns, prediction.queue_ns)
        response = begin_response(ask, ask.model)
        put_outputs(response, whole_outputs(prediction, longest, ask.wanted))
        return response

    def _left_s(self) -> float | None:
        """Of the request's timeout; None: it has none."""
        if not self._ask.parameters.timeout_us:
            return None
        deadline_ns = self._ask.parameters.deadline_ns(self._now.monotonic_ns)
        return (deadline_ns - self._dialect.engine.clock().monotonic_ns) / 1e9
