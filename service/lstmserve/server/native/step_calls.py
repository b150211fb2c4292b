"""Carries every unary Step: from its message's bytes to its reply's. Decides nothing."""

from __future__ import annotations

from lstmserve.engine import Model
from lstmserve.engine.errors import ServeError
from lstmserve.engine.schedule.block import Block
from lstmserve.engine.schedule.step import Step
from lstmserve.server.codec import parse
from lstmserve.server.inbox import Inbox
from lstmserve.server.native.crowd import Message
from lstmserve.server.native.single import NOTHING, Applied, row_response
from lstmserve.server.native.steps import Steps
from lstmserve.server.rpc import Frame
from lstmserve.server.transport import UnaryCall
from lstmserve.wire.v1 import lstm_pb2 as pb

METHOD = "Step"


class StepCalls:
    """The method, and what the calls of one port have in common."""

    def __init__(self, steps: Steps, inbox: Inbox[Message], frame: Frame) -> None:
        self.steps = steps
        self.frame = frame
        self._inbox = inbox

    def receive(self, calls: list[UnaryCall]) -> None:
        """Calls that arrived together: they are read together."""
        self._inbox.put_all([StepCall(self, call) for call in calls])


class StepCall:
    """A Message, and the sink of its step."""

    method = METHOD

    __slots__ = (
        "_block",
        "_calls",
        "_index",
        "_step",
        "arrival_ns",
        "call",
        "call_deadline_ns",
        "lease",
        "request",
        "session_id",
        "tag",
        "tenant",
    )

    def __init__(self, calls: StepCalls, call: UnaryCall) -> None:
        self._calls = calls
        self.call = call
        self._step: Step | None = None  # where its step is: by itself, or a row of a block
        self._block: Block | None = None
        self._index = 0
        self.arrival_ns = calls.steps.now_ns()
        self.call_deadline_ns = 0
        if call.deadline_ns is not None:  # on the engine's clock
            self.call_deadline_ns = self.arrival_ns + call.deadline_ns - call.arrival_ns
        self.tenant = call.tenant
        self.lease = call.lease
        self.request: pb.StepRequest  # these three once it was read
        self.session_id: str
        self.tag: int
        call.on_gone = self._cancel

    def read(self) -> bool:
        """As Message.read; for a call that has ended there is nothing to do."""
        if self.call.is_over:
            return False
        steps = self._calls.steps
        try:
            self.request = parse(pb.StepRequest, self.call.take())
            self.session_id, self.tag = self.request.session_id, self.request.tag
        except Exception as error:
            self._refuse(error)
            return False
        if steps.has_store and not steps.is_here(self):
            self._calls.frame.start(self.call, self._fetch, METHOD)
            return False
        return True

    async def _fetch(self, call: UnaryCall) -> None:
        """Submits it when its session has come from a store."""
        steps = self._calls.steps
        try:
            await steps.bring(self.tenant, self.request, self.session_id)
        except ServeError as error:
            steps.count_failed(METHOD, error)
            raise
        if not call.is_over:
            call.on_gone = self._cancel
            self.submit()

    def submit(self) -> None:
        """As Single.submit."""
        request, self.request = self.request, NOTHING
        try:
            self._step = self._calls.steps.submit(self, request, self)
        except Exception as error:
            self._refuse(error)
        if self.call.is_over:
            self._step = None

    def placed(self, block: Block, index: int) -> None:
        """As Single.placed."""
        self._block, self._index = block, index
        self.request = NOTHING

    def applied(self, step: Step) -> None:
        """As Sink.applied; a caller that went away is not answered."""
        self.tenant.pending_steps -= 1
        self.lease.release()
        if not self.call.is_over:
            self._calls.steps.count_applied(METHOD, step)
            self._reply(self._calls.steps.response(step, self.tag))

    def failed(self, step: Step, error: ServeError) -> None:
        """As Sink.failed."""
        self.tenant.pending_steps -= 1
        self.lease.release()
        self.fail(error, self._calls.steps.model_of(step))

    def answer(self, applied: Applied) -> None:
        """As Single.answer."""
        if not self.call.is_over:
            self._reply(row_response(self, applied))

    def _reply(self, response: pb.StepResponse) -> None:
        self._step = self._block = None
        self._calls.frame.reply(self.call, response.SerializeToString())

    def fail(self, error: ServeError, model: Model) -> None:
        """As Single.fail."""
        if not self.call.is_over:
            self._calls.steps.count_failed(METHOD, error, model)
            self._abort(error)

    def _refuse(self, error: Exception) -> None:
        self._calls.steps.count_failed(METHOD, error)
        self._abort(error)

    def _abort(self, error: Exception) -> None:
        self._step = self._block = None
        self._calls.frame.abort(self.call, error, METHOD)

    def _cancel(self) -> None:
        """A step that is cancelled before its last slice runs has not happened."""
        self.request = NOTHING
        if self._step is not None:
            self._step.is_cancelled = True
        elif self._block is not None:
            self._block.cancelled.add(self._index)
        self._step = self._block = None
