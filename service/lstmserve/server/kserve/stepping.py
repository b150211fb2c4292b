"""Owns one request of a sequence: its session, its step, and what START and END are besides.

A step goes to the engine at once, which keeps the order. START and END are more than a step, so
others of the sequence stand in line until they are done: a START waits for the steps that the old
sequence was given, and leaves none if its own fails; END is answered when the session has ended.
"""

from __future__ import annotations

import asyncio

import structlog

from lstmserve.engine.clock import Now
from lstmserve.engine.errors import Cancelled, ServeError
from lstmserve.engine.schedule.step import Step
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.kserve.answering import Answering
from lstmserve.server.kserve.asking import Ask
from lstmserve.server.kserve.dialect import Dialect
from lstmserve.server.kserve.lookup import find, start
from lstmserve.server.kserve.responses import begin_response, step_response
from lstmserve.server.kserve.rows import Rows, initial_state, step_rows
from lstmserve.server.kserve.telling import told
from lstmserve.server.observe.logs import session_hash
from lstmserve.server.sizes import output_bytes, state_bytes

log = structlog.get_logger()

Outcome = pb.ModelInferResponse | ServeError | None  # None: it was applied, and nobody waits


class SequenceStep:
    """A Turn of its sequence's line, and the sink of its step."""

    def __init__(
        self, dialect: Dialect, answering: Answering, tenant: Tenant, ask: Ask, now: Now
    ) -> None:
        assert ask.parameters.sequence is not None
        self._dialect = dialect
        self._engine = dialect.engine
        self._answering = answering
        self._tenant = tenant
        self._ask = ask
        self._lease = answering.lease
        self._arrival_ns = now.monotonic_ns
        self._sequence = ask.parameters.sequence
        self._key = tenant.sequence_key(ask.model.name, self._sequence)
        self._axes: tuple[int, ...] = ()
        self._step: Step | None = None
        self._settled: asyncio.Future[Outcome] | None = None

    def begin(self) -> None:
        """Submits it, or lets it stand in line."""
        asked, lines = self._ask.parameters, self._dialect.lines
        must_wait = asked.is_start or asked.is_end or self._engine.lifecycle.has_store
        try:
            if must_wait or lines.has(self._key):
                lines.enter(self._key, self)
                self._lease.hold()
            else:
                self._submit(find(self._engine, self._tenant, self._ask, self._key))
        except ServeError as error:
            self._tell(error)

    def cancel(self) -> None:
        """The caller went away."""
        if self._step is not None:
            self._step.is_cancelled = True

    async def take(self) -> None:
        """As Turn.take."""
        try:
            if not self._answering.is_over:
                await self._take()
        except ServeError as error:
            self._tell(error)
        except asyncio.CancelledError:  # of the caller nobody tells so: a bug
            self._answering.refuse(RuntimeError("a turn was cancelled"))
        except Exception as error:
            self._answering.refuse(error)
        finally:
            self._lease.release()

    async def _take(self) -> None:
        asked = self._ask.parameters
        if asked.is_start:
            row, rows = await self._started()
        elif asked.is_end and not self._ask.inputs:
            await self._end_alone()
            return
        else:
            await self._engine.lifecycle.bring(self._key, asked.incarnation, asked.step or 0)
            row, rows = find(self._engine, self._tenant, self._ask, self._key), None
        if not (asked.is_start or asked.is_end):
            self._submit(row, rows)
            return
        incarnation = self._engine.table.incarnation.item(row)
        outcome = await self._outcome(row, rows)
        if asked.is_start if isinstance(outcome, ServeError) else asked.is_end:
            await self._end(incarnation)
        self._tell(outcome)

    async def _started(self) -> tuple[int, Rows]:
        """A new session's row, and the input of its first step."""
        ask = self._ask
        rows = self._rows(ask.model.index)
        state = initial_state(ask.model, ask.inputs)
        await self._dialect.rested(self._key)
        if self._answering.is_over:
            raise Cancelled("the caller went away before the sequence was started")
        deadline_ns = ask.parameters.deadline_ns(self._arrival_ns)
        row = await start(
            self._engine, self._tenant, ask, self._key, state, len(rows.x), deadline_ns
        )
        return row, rows

    async def _outcome(self, row: int, rows: Rows | None) -> Outcome:
        """What became of the step."""
        self._settled = asyncio.get_running_loop().create_future()
        try:
            self._submit(row, rows)
        except ServeError as error:
            return error
        return await self._settled

    async def _end(self, incarnation: int) -> None:
        """The session; where the store does not let it go, its time to live will."""
        try:
            await self._engine.lifecycle.close(self._key, incarnation)
        except ServeError as error:
            log.warning("sequence not ended", reason=error.reason, session=session_hash(self._key))

    async def _end_alone(self) -> None:
        """END without inputs: no step, and twice is fine."""
        number = await self._engine.lifecycle.close(self._key, self._ask.parameters.incarnation)
        response = begin_response(self._ask, self._ask.model)
        response.parameters["step"].int64_param = number
        self._tell(response)

    def _rows(self, model_index: int) -> Rows:
        """Raises what step_rows() raises."""
        engine, ask = self._engine, self._ask
        return step_rows(
            engine.models[model_index],
            ask.inputs,
            engine.config,
            is_start=ask.parameters.is_start,
            last_only=ask.last_only,
        )

    def _submit(self, row: int, rows: Rows | None = None) -> None:
        """Hands the step to the engine; `rows` where it was read and counted before."""
        engine, asked, number = self._engine, self._ask.parameters, self._ask.parameters.step
        model = engine.model_of(row)
        if rows is None:
            rows = self._rows(model.index)
            if self._tenant.is_limited:
                table = engine.table
                applied, accepted = table.step.item(row), table.accepted(row)
                told = accepted + 1 if number is None else number
                self._tenant.check_step(told, applied, accepted, len(rows.x), self._arrival_ns)
        self._axes = rows.axes
        self._step = Step(
            row,
            rows.x,
            self,
            arrival_ns=self._arrival_ns,
            last_only=self._ask.last_only,
            deadline_ns=asked.deadline_ns(self._arrival_ns),
            number=number or 0,
            is_numbered=number is not None,
        )
        height = 1 if self._ask.last_only else len(rows.x)
        state = state_bytes(model.spec) if self._ask.with_state else 0
        reply_bytes = height * output_bytes(model.spec) + state
        self._ask.inputs = {}  # what the step needs of them it has
        self._lease.grow(rows.x.nbytes + reply_bytes)
        self._lease.hold()
        try:
            engine.submit(model, self._step)
        except BaseException:
            self._lease.release()
            raise
        self._tenant.pending_steps += 1
        if not len(self._step.x):  # it joined another of its number
            self._lease.resize(reply_bytes)

    def applied(self, step: Step) -> None:
        """As Sink.applied."""
        self._tenant.pending_steps -= 1
        self._lease.release()
        if self._answering.is_over:
            self._finish(None)
            return
        model = self._engine.model_of(step.row)
        counters = self._dialect.counters(model)
        counters.steps(self._answering.method, 1, step.end_ns - step.arrival_ns, step.queue_ns)
        if step.is_replayed:
            counters.replayed()
        self._finish(step_response(self._engine, self._ask, step, self._axes))

    def failed(self, step: Step, error: ServeError) -> None:
        """As Sink.failed."""
        self._tenant.pending_steps -= 1
        self._lease.release()
        self._finish(error)

    def _finish(self, outcome: Outcome) -> None:
        if self._settled is None:
            self._tell(outcome)
        elif not self._settled.done():
            self._settled.set_result(outcome)

    def _tell(self, outcome: Outcome) -> None:
        if isinstance(outcome, ServeError):
            self._answering.refuse(told(outcome, self._sequence, self._ask.model.name))
        elif outcome is not None:
            self._answering.answer(outcome)
