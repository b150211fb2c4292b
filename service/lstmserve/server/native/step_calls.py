"""Owns every unary Step on its way: from its message's bytes to its reply's. Decides nothing."""

from __future__ import annotations

import asyncio

from lstmserve.engine.schedule.step import Step
from lstmserve.errors import ServeError
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import parse
from lstmserve.server.native.inbox import Inbox
from lstmserve.server.native.steps import Steps
from lstmserve.server.overtime import TooSlow
from lstmserve.server.rpc import Context, Frame
from lstmserve.wire.v1 import lstm_pb2 as pb

METHOD = "Step"


class StepCalls:
    """The handler, and what the calls of one port have in common."""

    def __init__(self, steps: Steps, inbox: Inbox, frame: Frame) -> None:
        self.steps = steps
        self.frame = frame
        self.loop = asyncio.get_running_loop()
        self._inbox = inbox

    async def step(self, content: bytes, context: Context) -> bytes:
        """A step that is cancelled before its last slice runs has not happened."""
        call = StepCall(self, content, context)
        if self.steps.has_store:
            return await self.frame.limited(context, call.fetched())
        if context.time_remaining() is None:
            self.frame.overtime.watch(call)
        self._inbox.put(call)
        return await call.answered()


class StepCall:
    """The sink of its step; `reply` has the response's bytes, or what the call ends with."""

    __slots__ = ("_calls", "_content", "_context", "_now", "_request", "_step", "_tenant", "reply")

    def __init__(self, calls: StepCalls, content: bytes, context: Context) -> None:
        self._calls = calls
        self._content = content
        self._context = context
        self._now = calls.steps.now()
        self._tenant: Tenant  # these two once it is open
        self._request: pb.StepRequest
        self._step: Step | None = None
        self.reply: asyncio.Future[bytes] = calls.loop.create_future()

    async def answered(self) -> bytes:
        """The response. Raises what the call ends with."""
        try:
            return await self.reply
        except asyncio.CancelledError:
            self._cancel()
            raise

    async def fetched(self) -> bytes:
        """The same, of a call that is read when its session has come from a store."""
        steps = self._calls.steps
        try:
            self._open()
            await steps.bring(self._tenant, self._request, self._request.session_id)
        except ServeError as error:
            steps.count_failed(METHOD, None, error)
            raise
        self._submit()
        return await self.answered()

    def read(self) -> None:
        """As Message.read; for a call that has ended there is nothing to do."""
        if self.reply.done():
            return
        try:
            self._open()
        except Exception as error:
            self._refuse(error)
        else:
            self._submit()

    def _open(self) -> None:
        """Who calls, and with what. Raises ServeError."""
        self._tenant = self._calls.frame.door.tenant(self._context)
        self._request = parse(pb.StepRequest, self._content)

    def _submit(self) -> None:
        request = self._request
        try:
            self._step = self._calls.steps.submit(
                self._tenant, request, request.session_id, self, self._now
            )
        except Exception as error:
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        self._calls.steps.count_failed(METHOD, None, error)
        self.reply.set_exception(error)

    def applied(self, step: Step) -> None:
        """As Sink.applied; a caller that went away has a cancelled reply."""
        self._tenant.pending_steps -= 1
        if not self.reply.done():
            steps = self._calls.steps
            steps.count_applied(METHOD, step)
            response = steps.response(step, self._request.tag)
            self.reply.set_result(response.SerializeToString())

    def failed(self, step: Step, error: ServeError) -> None:
        """As Sink.failed."""
        self._tenant.pending_steps -= 1
        if not self.reply.done():
            self._calls.steps.count_failed(METHOD, step, error)
            self.reply.set_exception(error)

    def _cancel(self) -> None:
        if self._step is not None:
            self._step.is_cancelled = True

    @property
    def is_over(self) -> bool:
        """As Watched.is_over."""
        return self.reply.done()

    def expire(self, error: TooSlow) -> None:
        """As Watched.expire; what its step did is unknown."""
        self._cancel()
        self.reply.set_exception(error)
