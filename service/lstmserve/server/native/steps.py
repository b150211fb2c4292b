"""Translates a StepRequest into a step, and the step into a StepResponse. Decides nothing.

Step and StepStream share it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from lstmserve.engine import Engine, Model
from lstmserve.engine.arrays import Input
from lstmserve.engine.errors import BadStep, Malformed
from lstmserve.engine.schedule.step import Sink, Step
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import check_finite, check_length, check_reply, input_rows
from lstmserve.server.native.single import Single
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import Lease
from lstmserve.server.sizes import Sizes, output_bytes
from lstmserve.server.status import code, reason
from lstmserve.wire.v1 import lstm_pb2 as pb

MILLISECOND_NS = 1_000_000
INT64_BYTES = 8


class Steps:
    """One for all calls of a port."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self.sizes = Sizes(engine.models, engine.config, has_states=False)
        self.now_ns = engine.monotonic_ns
        self._counters = [metrics.model(each.name, each.version) for each in engine.models]

    @property
    def has_store(self) -> bool:
        """Whether bring() may wait."""
        return self._engine.lifecycle.has_store

    async def bring(self, tenant: Tenant, request: pb.StepRequest, session_id: str) -> None:
        """Brings the session here from the store, or makes certain of a refusal.

        What follows must be submitted before anything else is waited for. Raises ServeError.
        """
        key = tenant.key(session_id)
        await self._engine.lifecycle.bring(key, request.incarnation, request.step)

    def size(self, tenant: Tenant, request: pb.StepRequest, session_id: str, length: int) -> int:
        """The most bytes that a request, a message of so many, will take with its reply."""
        table = self._engine.table
        row = table.find(tenant.prefix + session_id)
        spec = None if row is None else self._engine.models[table.model.item(row)].spec
        rows = min(max(1, request.length), self._engine.config.length_max)
        if request.tokens:
            length += INT64_BYTES * rows
        return self.sizes.of(length, 1 if request.last_only else rows, spec)

    def submit(
        self,
        tenant: Tenant,
        request: pb.StepRequest,
        session_id: str,
        sink: Sink,
        arrival_ns: int,
        lease: Lease,
    ) -> Step:
        """Checks the request, and hands it to the engine. Raises ServeError.

        The lease is then the step's too, who must release it when the step has ended.
        """
        engine, table, now = self._engine, self._engine.table, self._engine.clock()
        number, incarnation = request.step, request.incarnation
        if is_numbered := request.HasField("step"):
            check_number(number, incarnation)
        key = tenant.prefix + session_id
        if table.find(key) is None:
            key = tenant.key(session_id)  # an id that is found was checked before
        row = engine.sessions.find(key, incarnation, now)
        model = engine.models[table.model.item(row)]
        x = self._input(model, request)
        if tenant.is_limited:
            applied, accepted = table.step.item(row), table.accepted(row)
            told = number if is_numbered else accepted + 1
            tenant.check_step(told, applied, accepted, len(x), now.monotonic_ns)
        reply_bytes = output_bytes(model.spec) * (1 if request.last_only else len(x))
        lease.grow(x.nbytes + reply_bytes)
        step = Step(
            row,
            x,
            sink,
            arrival_ns=arrival_ns,
            last_only=request.last_only,
            deadline_ns=deadline_ns(arrival_ns, request.timeout_ms),
            number=number,
            is_numbered=is_numbered,
        )
        lease.hold()
        try:
            engine.submit(model, step)
        except BaseException:
            lease.release()
            raise
        tenant.pending_steps += 1
        if not len(step.x):  # it joined another of its number
            lease.resize(reply_bytes)
        return step

    def _input(self, model: Model, request: pb.StepRequest) -> Input:
        config = self._engine.config
        length = request.length or 1
        if length != 1:
            check_length(length, config.length_max)
        x = input_rows(model.spec, request.x, request.tokens, length)
        check_finite(x, "x")
        height = 1 if request.last_only else length
        check_reply(height, model.output_size, config.message_bytes_max, "length")
        return x

    def response(self, step: Step, tag: int) -> pb.StepResponse:
        """The reply of an applied step."""
        y = step.output()
        response = pb.StepResponse(step=step.number, length=len(y), y=y.tobytes())
        response.queue_ns, response.compute_ns = step.queue_ns, step.compute_ns
        if tag:
            response.tag = tag
        if step.is_replayed:
            response.replayed = True
        if self.has_store:
            response.durable_step = step.durable_step
        return response

    def count_applied(self, method: str, step: Step) -> None:
        """Into lstm_steps_total and the times."""
        counters = self._counters[self._engine.table.model.item(step.row)]
        counters.steps(method, 1, step.end_ns - step.arrival_ns, step.queue_ns)
        if step.is_replayed:
            counters.replayed()

    def count_together(self, model: Model, singles: Sequence[Single], start_ns: int) -> None:
        """count_applied() of steps that were computed from `start_ns` on and have just ended."""
        counters, now_ns = self._counters[model.index], self.now_ns()
        for method, group in itertools.groupby(singles, key=lambda each: each.method):
            arrivals_ns = [single.arrival_ns for single in group]
            counters.steps_of(method, arrivals_ns, start_ns, now_ns)

    def count_failed(self, method: str, error: Exception, model: Model | None = None) -> None:
        """One that was accepted as a step of the model, or None for one refused at the door."""
        counters = self._metrics.model("", 0) if model is None else self._counters[model.index]
        counters.failed(method, code(error), reason(error))

    def model_of(self, step: Step) -> Model:
        """Whose step it is."""
        return self._engine.model_of(step.row)


def check_number(number: int, incarnation: int) -> None:
    """Of a numbered step. Raises BadStep."""
    if number < 1:
        raise BadStep(f"step is {number}, must be 1 or more, or unset", field="step")
    if not incarnation:
        raise BadStep(
            "a numbered step needs its session's incarnation (OpenSession tells it)",
            field="incarnation",
        )


def deadline_ns(arrival_ns: int, timeout_ms: int) -> int:
    """Of the start of compute; 0 for none. Raises Malformed."""
    if timeout_ms < 0:
        raise Malformed("timeout_ms is negative", field="timeout_ms")
    return arrival_ns + timeout_ms * MILLISECOND_NS if timeout_ms else 0
