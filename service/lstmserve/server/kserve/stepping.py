"""Owns one request of a sequence: its session, its step, and what START and END are besides.

A step goes to the engine at once, which keeps the order. START and END are more than a step, so
others of the sequence stand in line until they are done: a START waits for the steps that the old
sequence was given, and leaves none if its own fails; END is answered when the session has ended.
"""

from __future__ import annotations

import asyncio

import structlog

from lstmserve.engine import Model
from lstmserve.engine.clock import Now
from lstmserve.engine.errors import Cancelled, ServeError
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.kserve.answering import Answering
from lstmserve.server.kserve.asking import Ask
from lstmserve.server.kserve.dialect import Dialect
from lstmserve.server.kserve.lookup import find, start
from lstmserve.server.kserve.responses import begin_response, step_response
from lstmserve.server.kserve.rows import Rows, initial_state, step_rows
from lstmserve.server.kserve.telling import told
from lstmserve.server.message_sizes import output_bytes, state_bytes
from lstmserve.server.observe.logs import session_hash
from lstmserve.server.steps import AppliedStep, PendingStep

log = structlog.get_logger()

Outcome = pb.ModelInferResponse | ServeError | None  # None: it was applied, and nobody waits


class SequenceStep(PendingStep):
    """A Turn of its sequence's line, and a step of its session."""

    def __init__(
        self, dialect: Dialect, answering: Answering, tenant: Tenant, ask: Ask, now: Now
    ) -> None:
        super().__init__(tenant, now.monotonic_ns, answering.method)
        assert ask.parameters.sequence is not None
        self._dialect = dialect
        self._engine = dialect.engine
        self._answering = answering
        self._ask = ask
        self.lease = answering.lease
        self._sequence = ask.parameters.sequence
        self._key = tenant.sequence_key(ask.model.name, self._sequence)
        self._axes: tuple[int, ...] = ()
        self._settled: asyncio.Future[Outcome] | None = None

    @property
    def is_over(self) -> bool:
        """As PendingStep.is_over; a START or END goes on without its caller."""
        return self._settled is None and self._answering.is_over

    def begin(self) -> SequenceStep | None:
        """The step, where the engine may have it now; else it stands in line, or is answered."""
        asked, lines, lifecycle = self._ask.parameters, self._dialect.lines, self._engine.lifecycle
        must_wait = asked.is_start or asked.is_end or lines.has(self._key)
        if not must_wait:
            must_wait = not lifecycle.is_certain(self._key, asked.incarnation, asked.step or 0)
        try:
            if must_wait:
                lines.enter(self._key, self)
                self.lease.hold()
                return None
            self._read(find(self._engine, self.tenant, self._ask, self._key))
        except ServeError as error:
            self._tell(error)
            return None
        return self

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
            self.lease.release()

    async def _take(self) -> None:
        asked = self._ask.parameters
        if asked.is_start:
            row, rows = await self._started()
        elif asked.is_end and not self._ask.inputs:
            await self._end_alone()
            return
        else:
            await self._engine.lifecycle.bring(self._key, asked.incarnation, asked.step or 0)
            row, rows = find(self._engine, self.tenant, self._ask, self._key), None
        if not (asked.is_start or asked.is_end):
            self._read(row)
            self._dialect.steps.accept([self])
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
        deadline_ns = ask.parameters.deadline_ns(self.arrival_ns)
        row = await start(
            self._engine, self.tenant, ask, self._key, state, len(rows.x), deadline_ns
        )
        return row, rows

    async def _outcome(self, row: int, rows: Rows | None) -> Outcome:
        """What became of the step."""
        try:
            self._read(row, rows)
        except ServeError as error:
            return error
        self._settled = asyncio.get_running_loop().create_future()
        self._dialect.steps.accept([self])
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

    def _read(self, row: int, rows: Rows | None = None) -> None:
        """The step of that session; `rows` where they were read and counted before."""
        model = self._engine.model_of(row)
        self.is_counted = rows is not None
        if rows is None:
            rows = self._rows(model.index)
        ask, self._axes = self._ask, rows.axes
        self.row, self.x = row, rows.x
        self.number, self.last_only = ask.parameters.step or 0, ask.last_only
        self.deadline_ns = ask.parameters.deadline_ns(self.arrival_ns)
        height = 1 if ask.last_only else len(rows.x)
        state = state_bytes(model.spec) if ask.with_state else 0
        self.reply_bytes = height * output_bytes(model.spec) + state
        ask.inputs = {}  # what the step needs of them it has

    def applied(self, step: AppliedStep) -> None:
        """As PendingStep.applied."""
        if self._answering.is_over:
            self._finish(None)
        else:
            self._finish(step_response(self._engine, self._ask, self.row, step, self._axes))

    def failed(self, error: Exception, model: Model | None) -> None:
        """As PendingStep.failed; the request that it is of counts it."""
        assert isinstance(error, ServeError)
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
