"""Translates StepStream: steps of any sessions on one connection, errors in band."""

from __future__ import annotations

from lstmserve.config import Config
from lstmserve.engine.keys import ID_LENGTH_MAX
from lstmserve.engine.schedule.step import Step
from lstmserve.errors import ServeError
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import parse
from lstmserve.server.native.step_calls import StepCalls
from lstmserve.server.rpc import Context
from lstmserve.server.status import to_status
from lstmserve.server.window import Window, converse
from lstmserve.wire.v1 import lstm_pb2 as pb

METHOD = "StepStream"


class StreamCalls:
    """The handler; one for all calls. Replies come in the order of each session."""

    def __init__(self, steps: StepCalls, config: Config) -> None:
        self._steps = steps
        self._config = config

    async def step_stream(self, context: Context, tenant: Tenant) -> None:
        """An empty session_id is that of the stream's previous message."""
        window: Window[_Reply] = Window(self._config.stream_window)
        session_id = ""

        async def accept(content: bytes) -> None:
            nonlocal session_id
            session_id = await self._accept(tenant, content, session_id, window)

        await converse(context, window, accept, self._render, self._config.write_s_max)

    async def _accept(
        self, tenant: Tenant, content: bytes, session_id: str, window: Window[_Reply]
    ) -> str:
        reply = _Reply(window, tenant)
        window.add(reply)
        try:
            request = parse(pb.StepRequest, content)
            reply.tag = request.tag
            session_id = request.session_id or session_id
            # An id that is none may be long: no reply is longer than the limit of messages.
            reply.session_id = session_id[:ID_LENGTH_MAX]
            reply.step = await self._steps.submit(tenant, request, session_id, reply)
        except ServeError as error:
            reply.error = error
            window.answer(reply)
        return session_id

    def _render(self, reply: _Reply) -> bytes:
        step, error = reply.step, reply.error
        if error is None:
            assert step is not None
            self._steps.count_applied(METHOD, step)
            message = self._steps.response(step, reply.tag)
        else:
            self._steps.count_failed(METHOD, step, error)
            message = pb.StepResponse(tag=reply.tag, error=to_status(error))
        message.session_id = reply.session_id
        return message.SerializeToString()


class _Reply:
    """One message's sink."""

    __slots__ = ("_tenant", "_window", "error", "session_id", "step", "tag")

    def __init__(self, window: Window[_Reply], tenant: Tenant) -> None:
        self._window = window
        self._tenant = tenant
        self.tag = 0
        self.session_id = ""
        self.step: Step | None = None  # None: refused at the door
        self.error: ServeError | None = None

    def applied(self, step: Step) -> None:
        self._tenant.pending_steps -= 1
        self.step = step  # one that is answered from the record is, before submit() returns it
        self._window.answer(self)

    def failed(self, step: Step, error: ServeError) -> None:
        self._tenant.pending_steps -= 1
        self.error = error
        self._window.answer(self)

    def cancel(self) -> None:
        """The stream is gone."""
        if self.step is not None:
            self.step.is_cancelled = True
