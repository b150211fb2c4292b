"""Translates StepStream: steps of any sessions on one connection, errors in band."""

from __future__ import annotations

from lstmserve.engine.keys import ID_LENGTH_MAX
from lstmserve.engine.schedule.step import Step
from lstmserve.errors import ServeError
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import parse
from lstmserve.server.native.inbox import Inbox
from lstmserve.server.native.steps import Steps
from lstmserve.server.rpc import Context
from lstmserve.server.status import to_status
from lstmserve.server.window import Window, converse
from lstmserve.wire.v1 import lstm_pb2 as pb

METHOD = "StepStream"


class StreamCalls:
    """The handler; one for all calls. Replies come in the order of each session."""

    def __init__(self, steps: Steps, inbox: Inbox, window: int, write_s_max: float) -> None:
        self._steps = steps
        self._inbox = inbox
        self._window = window
        self._write_s_max = write_s_max

    async def step_stream(self, context: Context, tenant: Tenant) -> None:
        """An empty session_id is that of the stream's previous message."""
        stream = _Stream(self._steps, tenant, Window(self._window))

        async def accept(content: bytes) -> None:
            message = _Message(stream, content)
            stream.window.add(message)
            if self._steps.has_store:
                await message.fetch()
            else:
                self._inbox.put(message)

        await converse(context, stream.window, accept, self._write_s_max)


class _Stream:
    """What the messages of one stream have in common."""

    def __init__(self, steps: Steps, tenant: Tenant, window: Window) -> None:
        self.steps = steps
        self.tenant = tenant
        self.window = window
        self.session_id = ""  # of the newest message that was read


class _Message:
    """One message, and the sink of its step."""

    __slots__ = (
        "_content",
        "_is_cancelled",
        "_now",
        "_request",
        "_session_id",
        "_step",
        "_stream",
    )

    def __init__(self, stream: _Stream, content: bytes) -> None:
        self._stream = stream
        self._content = content
        self._now = stream.steps.now()
        self._request: pb.StepRequest | None = None
        self._session_id = ""
        self._step: Step | None = None
        self._is_cancelled = False

    async def fetch(self) -> None:
        """read(), when its session has come from a store."""
        try:
            request = self._open()
            await self._stream.steps.bring(self._stream.tenant, request, self._session_id)
        except ServeError as error:
            self._fail(None, error)
        else:
            self.read()

    def read(self) -> None:
        """As Message.read; when the stream is gone there is nothing to do."""
        stream = self._stream
        if self._is_cancelled:
            return
        try:
            request = self._open()
            self._step = stream.steps.submit(
                stream.tenant, request, self._session_id, self, self._now
            )
        except Exception as error:
            self._fail(None, error)

    def _open(self) -> pb.StepRequest:
        """The request. Raises Malformed."""
        if self._request is None:
            self._request = parse(pb.StepRequest, self._content)
            self._session_id = self._request.session_id or self._stream.session_id
            self._stream.session_id = self._session_id
        return self._request

    def applied(self, step: Step) -> None:
        """As Sink.applied."""
        self._stream.tenant.pending_steps -= 1
        self._stream.steps.count_applied(METHOD, step)
        response = self._stream.steps.response(step, self._open().tag)
        self._answer(response)

    def failed(self, step: Step, error: ServeError) -> None:
        """As Sink.failed."""
        self._stream.tenant.pending_steps -= 1
        self._fail(step, error)

    def _fail(self, step: Step | None, error: Exception) -> None:
        self._stream.steps.count_failed(METHOD, step, error)
        tag = 0 if self._request is None else self._request.tag
        self._answer(pb.StepResponse(tag=tag, error=to_status(error)))

    def _answer(self, response: pb.StepResponse) -> None:
        # An id that is none may be long: no reply is longer than the limit of messages.
        response.session_id = self._session_id[:ID_LENGTH_MAX]
        self._stream.window.answer(self, response.SerializeToString())

    def cancel(self) -> None:
        """The stream is gone."""
        self._is_cancelled = True
        if self._step is not None:
            self._step.is_cancelled = True
