"""Runs a request of a sequence: its session, its step, and what START and END do besides.

A step goes to the engine at once, which keeps the order. START and END are more than a step, so
later requests of the sequence wait until they are done: a START waits for the steps of the old
sequence, and leaves no sequence if its own step fails; END is answered when the session has ended.
With a store every request may have to wait. All of it runs on the event loop's thread. This module
must not know which call brought a request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

import structlog

from lstmserve.engine import Engine, Model
from lstmserve.engine.clock import SECOND_NS, Now
from lstmserve.engine.errors import (
    NOT_SERVED,
    Cancelled,
    DeadlineExpired,
    Draining,
    ModelMismatch,
    Overloaded,
    ServeError,
    SessionClosed,
    SessionNotFound,
    StateCorrupt,
    StepSuperseded,
)
from lstmserve.engine.session.opening import IfExists, ImportedState, OpenRequest
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.kserve.request import InferRequest
from lstmserve.server.kserve.responses import (
    InferResponder,
    begin_response,
    sequence_error,
    step_response,
)
from lstmserve.server.kserve.signature import WantedOutputs, signature_of
from lstmserve.server.kserve.tensors import Axes, start_state, step_input
from lstmserve.server.observe.logs import session_hash
from lstmserve.server.steps import AppliedStep, PendingStep, Steps

log = structlog.get_logger()

RETRY_S = 0.05

Outcome = pb.ModelInferResponse | ServeError | None  # None: it was applied, and its caller has left


class Sequences:
    """The sequences of one port: which of their requests wait for others, by session key."""

    def __init__(self, engine: Engine, steps: Steps) -> None:
        self.engine = engine
        self.steps = steps
        self._length_max = engine.config.session_pending_max
        self._queues: dict[str, deque[SequenceStep]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._until_idle: list[tuple[str, asyncio.Future[None]]] = []
        engine.batch_loop.add_source(self._wake)

    def has_queue(self, key: str) -> bool:
        """Whether a request of this key waits, or others have to wait for it."""
        return key in self._queues

    def enqueue(self, key: str, step: SequenceStep) -> None:
        """Awaits step.run() once that of all before it has ended. Raises Overloaded."""
        queue = self._queues.setdefault(key, deque())
        if len(queue) >= self._length_max:
            raise Overloaded(
                f"{len(queue)} requests of the sequence are waiting, the limit is "
                f"{self._length_max}: read its replies before you send more",
                retry_s=RETRY_S,
            )
        queue.append(step)
        if len(queue) == 1:
            task = asyncio.create_task(self._run(key, queue), name="sequence queue")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, key: str, queue: deque[SequenceStep]) -> None:
        while queue:
            await queue[0].run()
            queue.popleft()
        del self._queues[key]

    async def until_idle(self, key: str) -> None:
        """Waits until the engine has run all steps of this session that it had accepted."""
        while self._is_stepping(key):
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._until_idle.append((key, idle))
            await idle

    def _is_stepping(self, key: str) -> bool:
        row = self.engine.table.find(key)
        return row is not None and self.engine.table.pending.item(row) > 0

    def _wake(self) -> None:
        """Ends the waits of until_idle() that are over. The driver calls it before every batch."""
        if not self._until_idle:
            return
        waiting, self._until_idle = self._until_idle, []
        for key, idle in waiting:
            if self._is_stepping(key):
                self._until_idle.append((key, idle))
            elif not idle.done():
                idle.set_result(None)


class SequenceStep(PendingStep):
    """One request of a sequence, and the step of a session that it becomes."""

    __slots__ = (
        "_axes",
        "_engine",
        "_key",
        "_outcome",
        "_request",
        "_responder",
        "_sequences",
        "_wanted",
    )

    def __init__(
        self, sequences: Sequences, responder: InferResponder, request: InferRequest
    ) -> None:
        super().__init__(responder.tenant, responder.arrival_ns, responder.method)
        sequence = request.parameters.sequence
        assert sequence is not None
        self.lease = responder.lease
        self._sequences = sequences
        self._engine = sequences.engine
        self._responder = responder
        self._request = request
        self._key = self.tenant.sequence_key(request.model.name, sequence)
        # These once the input was read.
        self._axes: Axes = ()
        self._wanted: WantedOutputs
        # Of the step, while a START or END waits for it.
        self._outcome: asyncio.Future[Outcome] | None = None

    @property
    def is_over(self) -> bool:
        """Whether the caller has gone, unless a START or END goes on without it."""
        return self._outcome is None and self._responder.is_over

    # --- its way to the engine

    def begin(self, now: Now) -> bool:
        """Whether the engine may have the step now; else it waits in its queue, or is answered.

        `now` is the same for all that arrived together: no sequence ends between two of its steps.
        """
        asked, lifecycle = self._request.parameters, self._engine.lifecycle
        must_wait = asked.is_start or asked.is_end or self._sequences.has_queue(self._key)
        if not must_wait:
            must_wait = not lifecycle.is_certain(self._key, asked.incarnation, asked.step or 0)
        try:
            if must_wait:
                self._sequences.enqueue(self._key, self)
                self.lease.hold()
                return False
            self._read(self._find(now))
        except ServeError as error:
            self._refuse(error)
            return False
        return True

    async def run(self) -> None:
        """The whole request, once those before it in its sequence have ended. Does not raise."""
        try:
            if not self._responder.is_over:
                await self._run()
        except ServeError as error:
            self._refuse(error)
        except asyncio.CancelledError:  # a bug: a caller that leaves cancels no queue
            self._responder.refuse(RuntimeError("a request was cancelled in its queue"))
        except Exception as error:
            self._responder.refuse(error)
        finally:
            self.lease.release()

    async def _run(self) -> None:
        asked, steps = self._request.parameters, self._sequences.steps
        if asked.is_start:
            await self._start()
        elif asked.is_end and not self._request.inputs:
            await self._end_alone()
            return
        else:
            await self._engine.lifecycle.bring(self._key, asked.incarnation, asked.step or 0)
            self._read(self._find(self._engine.clock()))
            if not asked.is_end:
                steps.accept([self])
                return
        incarnation = self._engine.table.incarnation.item(self.row)
        self._outcome = asyncio.get_running_loop().create_future()
        steps.accept([self])
        outcome, self._outcome = await self._outcome, None
        if asked.is_start if isinstance(outcome, ServeError) else asked.is_end:
            await self._end(incarnation)
        self._settle(outcome)

    def _read(self, model: Model) -> ImportedState | None:
        """Reads the input of the step; returns the state that a START gives.

        Raises what step_input(), start_state() and Signature.wanted() raise.
        """
        request, asked = self._request, self._request.parameters
        self._wanted = wanted = signature_of(model).wanted(request.outputs, model)
        self.number, self.last_only = asked.step or 0, wanted.last_only
        self.x, self._axes = step_input(
            model,
            request.inputs,
            self._engine.config,
            is_start=asked.is_start,
            last_only=self.last_only,
        )
        state = start_state(model, request.inputs) if asked.is_start else None
        request.inputs = {}
        self.deadline_ns = asked.deadline_ns(self.arrival_ns)
        height = 1 if self.last_only else len(self.x)
        self.reply_bytes = height * model.outputs.bytes + wanted.last_bytes
        if wanted.with_state:
            self.reply_bytes += model.spec.state_bytes
        return state

    # --- a sequence that lives

    def _find(self, now: Now) -> Model:
        """Finds its session, which is here, and returns the model of that.

        Raises what LiveSessions.find() raises, ModelMismatch, and StepSuperseded for a numbered
        step of a sequence that ended after it.
        """
        engine, asked = self._engine, self._request.parameters
        try:
            self.row = engine.sessions.find(self._key, asked.incarnation, now)
        except SessionNotFound:
            self._check_elsewhere()
            raise
        except SessionClosed:
            self._check_superseded(now)
            raise
        model, version = engine.model_of(self.row), self._request.version
        if version not in (0, model.version):
            raise ModelMismatch(
                f"the sequence runs on version {model.version} of model '{model.name}', and stays "
                f"there until another START; version {version} was asked for"
            )
        return model

    def _check_elsewhere(self) -> None:
        """Raises ModelMismatch when the id is a sequence of another model of the tenant's."""
        engine, sequence = self._engine, self._request.parameters.sequence
        assert sequence is not None
        own = self._request.model.name
        for name in sorted({model.name for model in engine.models} - {own}):
            if engine.table.find(self.tenant.sequence_key(name, sequence)) is not None:
                raise ModelMismatch(
                    f"sequence {sequence!r} is one of model '{name}'; on model '{own}' it was "
                    "never started",
                    metadata={"model": name},
                )

    def _check_superseded(self, now: Now) -> None:
        """Raises StepSuperseded when the step is one of those that the ended sequence had."""
        asked = self._request.parameters
        steps: list[int] = []  # stays empty while the END is still running
        self._engine.sessions.close(self._key, asked.incarnation, now, steps.append)
        if asked.step is not None and steps and asked.step <= steps[0]:
            raise StepSuperseded(
                f"step {asked.step} was applied, the sequence has ended with step {steps[0]}, and "
                "the reply is no longer held",
                metadata={"last_step": str(steps[0])},
            )

    # --- START

    async def _start(self) -> None:
        """Reads the input and opens the session."""
        state = self._read(self._request.model)
        await self._sequences.until_idle(self._key)
        if self._responder.is_over:
            raise Cancelled("the caller went away before the sequence was started")
        self.row = await self._open(state)
        self.is_counted = True

    async def _open(self, state: ImportedState | None) -> int:
        """The row of a new session, in place of the one that lives under the key, if any does.

        What is wrong with the request is known before. Raises Draining, DeadlineExpired, Quota,
        and what SessionOpener.open() raises.
        """
        engine, request, tenant = self._engine, self._request, self.tenant
        with contextlib.suppress(*NOT_SERVED, StateCorrupt):  # it may be replaced all the same
            await engine.lifecycle.bring(self._key, 0, 0)
        now = engine.clock()
        if self.deadline_ns and now.monotonic_ns > self.deadline_ns:
            raise DeadlineExpired("the timeout passed before the sequence was started")
        if engine.is_draining:
            raise Draining("this server is shutting down; start it at another one", retry_s=1.0)
        if tenant.is_limited:
            tenant.check(1, len(self.x), now.monotonic_ns)
        is_live = engine.sessions.find_any(self._key, now) is not None
        opening = OpenRequest(
            key=self._key,
            model=request.model,
            version=request.version,
            ttl_ns=int(engine.config.session_ttl_s * SECOND_NS),
            if_exists=IfExists.RESTART if request.parameters.may_restart else IfExists.FAIL,
            state=state,
            fork_of="",
            sessions_max=tenant.limits.sessions_max,
        )
        row, _ = await engine.lifecycle.open(opening)
        if is_live:
            log.warning(
                "sequence replaced: START came before END",
                model=request.model.name,
                session=session_hash(self._key),
            )
        return row

    # --- END

    async def _end(self, incarnation: int) -> None:
        """Closes the session; where the store does not let it go, its time to live will."""
        try:
            await self._engine.lifecycle.close(self._key, incarnation)
        except ServeError as error:
            log.warning("sequence not ended", reason=error.reason, session=session_hash(self._key))

    async def _end_alone(self) -> None:
        """Answers an END without inputs: it has no step, and a second one is no error."""
        request = self._request
        number = await self._engine.lifecycle.close(self._key, request.parameters.incarnation)
        response = begin_response(request, request.model)
        response.parameters["step"].int64_param = number
        self._responder.answer(response)

    # --- its answer

    def applied(self, step: AppliedStep) -> None:
        if self._responder.is_over:
            self._settle(None)
        else:
            engine, request, wanted = self._engine, self._request, self._wanted
            self._settle(step_response(engine, request, self.row, step, wanted, self._axes))

    def failed(self, error: Exception, model: Model | None) -> None:
        """Ends the request with the error, which the responder counts."""
        assert isinstance(error, ServeError)
        self._settle(error)

    def _settle(self, outcome: Outcome) -> None:
        if self._outcome is not None:
            if not self._outcome.done():
                self._outcome.set_result(outcome)
        elif isinstance(outcome, ServeError):
            self._refuse(outcome)
        elif outcome is not None:
            self._responder.answer(outcome)

    def _refuse(self, error: ServeError) -> None:
        request = self._request
        sequence = request.parameters.sequence
        assert sequence is not None
        self._responder.refuse(sequence_error(error, sequence, request.model.name))
