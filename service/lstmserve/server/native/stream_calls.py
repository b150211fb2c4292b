"""Translates StepStream: steps of any sessions on one connection, errors in band."""

from __future__ import annotations

from lstmserve.engine import Model
from lstmserve.engine.errors import ServeError
from lstmserve.engine.keys import ID_LENGTH_MAX
from lstmserve.engine.schedule.block import Block
from lstmserve.engine.schedule.step import Step
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import parse
from lstmserve.server.conversation import InTurn
from lstmserve.server.inbox import Inbox
from lstmserve.server.native.crowd import Message
from lstmserve.server.native.single import NOTHING, Applied, row_response
from lstmserve.server.native.steps import Steps
from lstmserve.server.ordered import OrderedWindow
from lstmserve.server.pending_bytes import SHORT_BYTES, Lease, PendingBytes
from lstmserve.server.status import to_status
from lstmserve.server.transport import StreamCall
from lstmserve.wire.v1 import lstm_pb2 as pb

METHOD = "StepStream"


class StreamCalls:
    """The method; one for all streams.

    Replies of one session come in the order of its messages, errors too; those of different
    sessions may overtake one another.
    """

    def __init__(self, steps: Steps, inbox: Inbox[Message], pending: PendingBytes) -> None:
        self.steps = steps
        self.inbox = inbox
        self.pending = pending

    def begin(self, stream: StreamCall, tenant: Tenant) -> _Stream:
        """As Begin."""
        return _Stream(self, stream, tenant)


class _Stream(OrderedWindow["_Message"]):
    """One stream: what its messages have in common."""

    def __init__(self, calls: StreamCalls, stream: StreamCall, tenant: Tenant) -> None:
        super().__init__(stream, calls.pending, tenant)
        self.steps = calls.steps
        self.session_id = ""  # of the newest message that was read
        self.fetching = InTurn(self._end_if_done, self.end_by)
        self._inbox = calls.inbox

    def open(self, content: bytes) -> _Message:
        """As Window.open."""
        return _Message(self, content)

    def accept(self, message: _Message) -> None:
        """As Window.accept; an empty session_id is that of the message before it."""
        self._inbox.put(message)

    def gone(self) -> None:
        """As Window.gone."""
        self.fetching.cancel()
        super().gone()


class _Message:
    """A Message, and the sink of its step."""

    method = METHOD
    call_deadline_ns = 0  # a stream's own deadline ends the stream

    __slots__ = (
        "_block",
        "_content",
        "_index",
        "_is_cancelled",
        "_step",
        "_stream",
        "arrival_ns",
        "lease",
        "number",
        "request",
        "session_id",
        "tag",
        "tenant",
    )

    def __init__(self, stream: _Stream, content: bytes) -> None:
        self._stream = stream
        self._content = content
        self._step: Step | None = None  # where its step is: by itself, or a row of a block
        self._block: Block | None = None
        self._index = 0
        self._is_cancelled = False
        self.tenant = stream.tenant
        self.arrival_ns = stream.steps.now_ns()
        self.lease: Lease  # once it was admitted
        self.request = NOTHING  # until it was read
        self.tag = 0
        self.number = 0  # as it was asked for
        self.session_id = ""

    def size(self) -> int:
        """The bytes to admit it with; a long message is read for that."""
        steps, length = self._stream.steps, len(self._content)
        if (bound := steps.sizes.bound(length)) <= SHORT_BYTES:
            return bound
        try:
            self._parse()
        except ServeError:
            return length  # it is refused when its turn comes
        session_id = self.request.session_id or self._stream.session_id
        return steps.size(self.tenant, self.request, session_id, length)

    def _parse(self) -> None:
        self.request = parse(pb.StepRequest, self._content)
        self.tag, self.number, self._content = self.request.tag, self.request.step, b""

    async def _fetch(self) -> None:
        """Submits it when its session has come from a store."""
        try:
            await self._stream.steps.bring(self.tenant, self.request, self.session_id)
        except ServeError as error:
            self._refuse(error)
        else:
            self.submit()

    def read(self) -> bool:
        """As Message.read; when the stream is gone there is nothing to do."""
        if self._is_cancelled:
            return False
        stream = self._stream
        try:
            if self.request is NOTHING:
                self._parse()
        except ServeError as error:
            # Whose it is it does not say: its answer comes after those of the newest session.
            stream.enter(self, stream.session_id)
            self._refuse(error)
            return False
        self.session_id = stream.session_id = self.request.session_id or stream.session_id
        stream.enter(self, self.session_id)
        if stream.steps.has_store and (stream.fetching.is_busy or not stream.steps.is_here(self)):
            stream.fetching.put(self._fetch)
            return False
        return True

    def submit(self) -> None:
        """As Single.submit."""
        request, self.request = self.request, NOTHING
        try:
            self._step = self._stream.steps.submit(self, request, self)
        except Exception as error:
            self._refuse(error)

    def placed(self, block: Block, index: int) -> None:
        """As Single.placed."""
        self._block, self._index = block, index
        self.request = NOTHING

    def applied(self, step: Step) -> None:
        """As Sink.applied."""
        self.tenant.pending_steps -= 1
        self.lease.release()
        self._stream.steps.count_applied(METHOD, step)
        self._tell(self._stream.steps.response(step, self.tag))

    def failed(self, step: Step, error: ServeError) -> None:
        """As Sink.failed."""
        self.tenant.pending_steps -= 1
        self.lease.release()
        self.fail(error, self._stream.steps.model_of(step))

    def answer(self, applied: Applied) -> None:
        """As Single.answer."""
        self._tell(row_response(self, applied))

    def fail(self, error: ServeError, model: Model) -> None:
        """As Single.fail."""
        self._stream.steps.count_failed(METHOD, error, model)
        self._tell_error(error)

    def _refuse(self, error: Exception) -> None:
        self._stream.steps.count_failed(METHOD, error)
        self._tell_error(error)

    def _tell_error(self, error: Exception) -> None:
        self._tell(pb.StepResponse(tag=self.tag, step=self.number, error=to_status(error)))

    def _tell(self, response: pb.StepResponse) -> None:
        # An id that is none may be long: no reply is longer than the limit of messages.
        response.session_id = self.session_id[:ID_LENGTH_MAX]
        self._stream.answer(self, response.SerializeToString())

    def cancel(self) -> None:
        """The stream is gone."""
        self._is_cancelled = True
        self._content, self.request = b"", NOTHING
        self.lease.release()
        if self._step is not None:
            self._step.is_cancelled = True
        elif self._block is not None:
            self._block.cancelled.add(self._index)
