"""Owns every unary Step on its way: from its message's bytes to its reply's. Decides nothing."""

from __future__ import annotations

import asyncio

from lstmserve.engine import Model
from lstmserve.engine.errors import ServeError
from lstmserve.engine.schedule.block import Block
from lstmserve.engine.schedule.step import Step
from lstmserve.server.codec import parse
from lstmserve.server.inbox import Inbox
from lstmserve.server.native.crowd import Message
from lstmserve.server.native.single import NOTHING, row_response
from lstmserve.server.native.steps import Steps
from lstmserve.server.overtime import TooSlow
from lstmserve.server.rpc import Frame, Incoming
from lstmserve.wire.v1 import lstm_pb2 as pb

METHOD = "Step"


class StepCalls:
    """The handler, and what the calls of one port have in common."""

    def __init__(self, steps: Steps, inbox: Inbox[Message], frame: Frame) -> None:
        self.steps = steps
        self.frame = frame
        self.loop = asyncio.get_running_loop()
        self._inbox = inbox

    async def step(self, incoming: Incoming) -> bytes:
        """The whole call. Raises what it ends with."""
        call = StepCall(self, incoming)
        if self.steps.has_store:
            return await self.frame.limited(incoming.context, call.fetched())
        if incoming.context.time_remaining() is None:
            self.frame.overtime.watch(call)
        self._inbox.put(call)
        return await call.answered()


class StepCall:
    """A Message, and the sink of its step; `reply` has the response, or what the call ends with."""

    method = METHOD

    __slots__ = (
        "_block",
        "_calls",
        "_incoming",
        "_index",
        "_step",
        "arrival_ns",
        "lease",
        "reply",
        "request",
        "session_id",
        "tag",
        "tenant",
    )

    def __init__(self, calls: StepCalls, incoming: Incoming) -> None:
        self._calls = calls
        self._incoming = incoming
        self._step: Step | None = None  # where its step is: by itself, or a row of a block
        self._block: Block | None = None
        self._index = 0
        self.arrival_ns = calls.steps.now_ns()
        self.tenant = incoming.tenant
        self.lease = incoming.lease
        self.request: pb.StepRequest  # these three once it was read
        self.session_id: str
        self.tag: int
        self.reply: asyncio.Future[bytes] = calls.loop.create_future()

    async def answered(self) -> bytes:
        """The response. Raises what the call ends with."""
        try:
            return await self.reply
        except asyncio.CancelledError:
            self._cancel()
            raise
        finally:
            self._step = self._block = None
            self._incoming.take()  # frames and timers may still hold this
            self.request = NOTHING

    async def fetched(self) -> bytes:
        """The same, of a call that is submitted when its session has come from a store."""
        steps = self._calls.steps
        try:
            self._open()
            await steps.bring(self.tenant, self.request, self.session_id)
        except ServeError as error:
            steps.count_failed(METHOD, error)
            raise
        self.submit()
        return await self.answered()

    def read(self) -> bool:
        """As Message.read; for a call that has ended there is nothing to do."""
        if self.reply.done():
            return False
        try:
            self._open()
        except Exception as error:
            self._refuse(error)
            return False
        return True

    def _open(self) -> None:
        """What the message says. Raises Malformed."""
        self.request = parse(pb.StepRequest, self._incoming.take())
        self.session_id, self.tag = self.request.session_id, self.request.tag

    def submit(self) -> None:
        """As Single.submit."""
        request, self.request = self.request, NOTHING
        try:
            self._step = self._calls.steps.submit(
                self.tenant, request, self.session_id, self, self.arrival_ns, self.lease
            )
        except Exception as error:
            self._refuse(error)
        if self.reply.done():
            self._step = None

    def placed(self, block: Block, index: int) -> None:
        """As Single.placed."""
        self._block, self._index = block, index
        self.request = NOTHING

    def applied(self, step: Step) -> None:
        """As Sink.applied; a caller that went away has a cancelled reply."""
        self.tenant.pending_steps -= 1
        self.lease.release()
        if not self.reply.done():
            self._calls.steps.count_applied(METHOD, step)
            response = self._calls.steps.response(step, self.tag)
            self.reply.set_result(response.SerializeToString())

    def failed(self, step: Step, error: ServeError) -> None:
        """As Sink.failed."""
        self.tenant.pending_steps -= 1
        self.lease.release()
        self.fail(error, self._calls.steps.model_of(step))

    def answer(self, number: int, y: bytes, start_ns: int, compute_ns: int) -> None:
        """As Single.answer."""
        if not self.reply.done():
            response = row_response(self, number, y, start_ns, compute_ns)
            self.reply.set_result(response.SerializeToString())

    def fail(self, error: ServeError, model: Model) -> None:
        """As Single.fail."""
        if not self.reply.done():
            self._calls.steps.count_failed(METHOD, error, model)
            self.reply.set_exception(error)

    def _refuse(self, error: Exception) -> None:
        self._calls.steps.count_failed(METHOD, error)
        if isinstance(error, ServeError):  # its frames hold this call, which holds it
            error = error.with_traceback(None)
        self.reply.set_exception(error)

    def _cancel(self) -> None:
        """A step that is cancelled before its last slice runs has not happened."""
        if self._step is not None:
            self._step.is_cancelled = True
        elif self._block is not None:
            self._block.cancelled.add(self._index)

    @property
    def is_over(self) -> bool:
        """As Watched.is_over."""
        return self.reply.done()

    def expire(self, error: TooSlow) -> None:
        """As Watched.expire; what its step did is unknown."""
        self._cancel()
        self.reply.set_exception(error)
