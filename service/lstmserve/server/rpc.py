"""The frame of every call: finds the tenant, counts bytes and calls, and ends it with a status.

Calls are served on the event loop's thread. Any error becomes a status of ours, so that the text of
a bug never reaches the client. It knows neither sessions nor a dialect's messages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

import grpc
from google.protobuf.message import Message

from lstmserve.engine.errors import Malformed
from lstmserve.server.access.auth import Authenticator
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import Request, parse
from lstmserve.server.observe.counters import RpcMetrics
from lstmserve.server.observe.logs import session_hash
from lstmserve.server.observe.metrics import SERVICE, Metrics
from lstmserve.server.overtime import Overtime
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.status import Abort, to_abort
from lstmserve.server.transport import (
    Conversation,
    StreamCall,
    StreamMethod,
    UnaryCall,
    UnaryMethod,
)

SESSION_KEY = "x-session-id"
SENT_AT_ONCE_BYTES = 16 << 10  # gRPC sends a shorter reply even if the client does not read
SECOND_NS = 1_000_000_000
LOOKS = 8  # how often streams are looked at in the time that a reply may wait


class TooSlow(Exception):
    """A call took too long; whether it had an effect is unknown, as with gRPC's own deadline."""


class Talk(Conversation, Protocol):
    """A Conversation that takes the messages of its stream."""

    def receive(self, content: bytes) -> None:
        """Takes the next message."""

    def closed(self) -> None:
        """The stream is over on the wire: no reply of it will be sent."""


Receive = Callable[[list[UnaryCall]], None]
Answer = Callable[[UnaryCall], bytes]
Work = Callable[[UnaryCall], Awaitable[None]]
Serve = Callable[[UnaryCall], Awaitable[bytes]]
Unary = Callable[[Any, Tenant], Awaitable[Message]]
Begin = Callable[[StreamCall, Tenant], Talk]
Refused = Callable[[Exception], None]


class Methods(NamedTuple):
    """A service's methods by name."""

    service: str
    unary: Mapping[str, UnaryMethod]
    streams: Mapping[str, StreamMethod]


def ignore(error: Exception) -> None:
    """Does nothing: the error is not counted."""


class Frame:
    """The frame of one service's calls on a port.

    A unary call without a deadline may last `call_s_max`, and a reply may wait `write_s_max` for
    its client to read. A reply has at least one row of `row_bytes`.
    """

    def __init__(
        self,
        door: Authenticator,
        metrics: Metrics,
        pending: PendingBytes,
        *,
        call_s_max: float,
        write_s_max: float,
        row_bytes: int = 0,
        service: str = SERVICE,
    ) -> None:
        self.door = door
        self.pending = pending
        self.write_s_max = write_s_max
        self.row_bytes = row_bytes
        self._call_s_max = call_s_max
        self._metrics = metrics
        self._service = service
        self._overtime: Overtime[UnaryCall] = Overtime(call_s_max, _is_over, self._expire)
        self._sending: Overtime[UnaryCall] = Overtime(write_s_max, _is_sent, UnaryCall.cut)

    def calls(self, name: str, receive: Receive, on_refused: Refused = ignore) -> UnaryCalls:
        """A method whose `receive` takes the calls that arrived together, and answers each.

        Each has a tenant, and a lease of its bytes. `on_refused(error)` is called for a call that
        is refused before `receive`.
        """
        return UnaryCalls(self, self._counts(name), name, receive, on_refused)

    def probes(self, name: str, answer: Answer) -> Probes:
        """A method that answers at once, for any caller, however many bytes wait."""
        return Probes(self, self._counts(name), name, answer)

    def served(self, name: str, serve: Serve) -> UnaryCalls:
        """A method each of whose calls is served by a task."""

        async def work(call: UnaryCall) -> None:
            self.reply(call, await serve(call))

        def receive(calls: list[UnaryCall]) -> None:
            for call in calls:
                self.start(call, work, name)

        return self.calls(name, receive)

    def unary(self, name: str, kind: type[Request], method: Unary) -> UnaryCalls:
        """A method each of whose calls is served by a task, from message to message."""

        async def serve(call: UnaryCall) -> bytes:
            response = await method(parse(kind, call.take()), call.tenant)
            return response.SerializeToString()

        return self.served(name, serve)

    def bidi(self, name: str, begin: Begin, window: int) -> Streams:
        """A method of streams; `begin` makes the Talk of each."""
        counts = self._metrics.rpc(name, "bidi_stream", self._service)
        return Streams(self, counts, name, begin, window)

    def _counts(self, name: str) -> RpcMetrics:
        return self._metrics.rpc(name, "unary", self._service)

    def start(self, call: UnaryCall, work: Work, name: str) -> None:
        """Answers the call by `work` in a task, which is cancelled if the client leaves."""
        task = asyncio.ensure_future(self._guarded(call, work, name))
        task.set_name(f"{self._service}/{name}")
        call.on_gone = lambda: _cancel(task)

    async def _guarded(self, call: UnaryCall, work: Work, name: str) -> None:
        try:
            await work(call)
        except (Exception, asyncio.CancelledError) as error:
            self.abort(call, error, name)  # no effect on a call that is over

    def watch(self, call: UnaryCall) -> None:
        """Ends the call if it lasts too long, unless it has a deadline of its own."""
        if call.deadline_ns is None:
            self._overtime.watch(call)

    def _expire(self, call: UnaryCall) -> None:
        text = f"not done after {self._call_s_max:g} s, the most for a call without a deadline"
        on_gone = call.on_gone
        call.abort(Abort(grpc.StatusCode.DEADLINE_EXCEEDED, text, ()))
        if on_gone is not None:
            on_gone()  # its step may still run, and its client cannot know

    def reply(self, call: UnaryCall, content: bytes) -> None:
        """Answers the call. A long reply holds its bytes until it is sent.

        The call is cut if the client does not read a long reply within write_s_max.
        """
        if len(content) <= SENT_AT_ONCE_BYTES or call.is_over:
            call.reply(content)
            return
        lease = call.lease
        lease.hold()
        lease.resize(len(content))
        call.reply(content, lease.release)
        self._sending.watch(call)

    def abort(self, call: UnaryCall | StreamCall, error: BaseException, name: str) -> None:
        """Ends the call with the error's status, unless it is over."""
        if not call.is_over:
            if isinstance(call, StreamCall):
                call.finish(_abort(error, name, call))
            else:
                call.abort(_abort(error, name, call))
        error.__traceback__ = None  # its frames hold the call and its message


class UnaryCalls:
    """A UnaryMethod that counts its calls, and checks their tenant and their bytes."""

    def __init__(
        self, frame: Frame, counts: RpcMetrics, name: str, receive: Receive, on_refused: Refused
    ) -> None:
        self._frame = frame
        self._counts = counts
        self._name = name
        self._receive = receive
        self._on_refused = on_refused

    def may_read(self, call: UnaryCall) -> bool:
        """Whether its tenant is known, and the budget has room; else the message stays unread."""
        return self._frame.pending.is_vacant and self._frame.door.knows(call)

    def receive(self, calls: list[UnaryCall]) -> None:
        inside = [call for call in calls if self._is_let_in(call)]
        if inside:
            self._receive(inside)

    def _is_let_in(self, call: UnaryCall) -> bool:
        """Whether to serve the call now. If not, it was refused, or its message is being read."""
        self._count(call)
        if call.is_over:
            return False
        try:
            return self._let_in(call)
        except Exception as error:
            self._on_refused(error)
            self._frame.abort(call, error, self._name)
            return False

    def _let_in(self, call: UnaryCall) -> bool:
        """Whether the call's message is here and has its lease; if it is unread, asks for it.

        Raises BadToken, AdminOnly, Malformed, PendingBytesFull, Quota.
        """
        frame = self._frame
        if call.tenant is None:
            call.tenant = frame.door.tenant(call)
        account = call.tenant.account
        if call.is_unread:
            frame.pending.check(account, 1)
            call.read()
            return False
        if call.content is None:
            raise Malformed("the call has no message")
        call.lease = frame.pending.enter(account, len(call.content) + frame.row_bytes)
        frame.watch(call)
        return True

    def ended(self, call: UnaryCall, code: grpc.StatusCode) -> None:
        """Counts the end, and releases the call's bytes."""
        self._count(call)
        self._counts.ended(code, (time.monotonic_ns() - call.arrival_ns) / SECOND_NS)
        if call.lease is not None:
            call.lease.release()

    def _count(self, call: UnaryCall) -> None:
        if not call.is_counted:
            call.is_counted = True
            self._counts.started += 1


class Probes:
    """A UnaryMethod whose calls need no token and no lease."""

    def __init__(self, frame: Frame, counts: RpcMetrics, name: str, answer: Answer) -> None:
        self._frame = frame
        self._counts = counts
        self._name = name
        self._answer = answer

    def may_read(self, call: UnaryCall) -> bool:
        return True

    def receive(self, calls: list[UnaryCall]) -> None:
        """Answers each call at once."""
        for call in calls:
            self._counts.started += 1
            call.is_counted = True
            try:
                if call.content is None:
                    raise Malformed("the call has no message")
                call.reply(self._answer(call))
            except Exception as error:
                self._frame.abort(call, error, self._name)

    def ended(self, call: UnaryCall, code: grpc.StatusCode) -> None:
        self._counts.started += not call.is_counted
        self._counts.ended(code, (time.monotonic_ns() - call.arrival_ns) / SECOND_NS)


class Streams:
    """A StreamMethod that counts its streams, and ends those whose replies are not read."""

    def __init__(
        self, frame: Frame, counts: RpcMetrics, name: str, begin: Begin, window: int
    ) -> None:
        self.window = window
        self.open: set[StreamCall] = set()
        self._frame = frame
        self._counts = counts
        self._name = name
        self._begin = begin
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def may_read(self, stream: StreamCall) -> bool:
        if stream.conversation is None and not self._frame.door.knows(stream):
            return False
        return self._frame.pending.is_vacant

    def opened(self, stream: StreamCall) -> None:
        self._counts.started += 1
        self.open.add(stream)
        if self._timer is None:
            self._timer = self._loop.call_later(self._frame.write_s_max / LOOKS, self._look)
        try:
            stream.conversation = self._begin(stream, self._frame.door.tenant(stream))
        except Exception as error:
            self._frame.abort(stream, error, self._name)

    def receive(self, messages: list[tuple[StreamCall, bytes]]) -> None:
        messages.reverse()
        while messages:  # each is dropped before the next one is received
            self._receive(*messages.pop())

    def _receive(self, stream: StreamCall, content: bytes) -> None:
        if stream.is_over:
            return
        try:
            stream.conversation.receive(content)  # type: ignore[union-attr]  # a Talk
        except Exception as error:
            self.fail(stream, error)

    def fail(self, stream: StreamCall, error: Exception) -> None:
        """Ends the stream with the error, and cancels the messages that wait for a reply."""
        if not stream.is_over:
            self._frame.abort(stream, error, self._name)
            if stream.conversation is not None:
                stream.conversation.gone()

    def _look(self) -> None:
        """Ends the streams whose replies have waited too long for their clients.

        A timer for each write would cost an eighth of a message, so one timer looks at all streams.
        """
        seconds, now_ns = self._frame.write_s_max, time.monotonic_ns()
        for stream in list(self.open):
            unread_s = stream.unread_ns(now_ns) / SECOND_NS
            if stream.is_over and unread_s > 2 * seconds:
                stream.cut()  # the client does not even read the status
            elif not stream.is_over and unread_s > seconds:
                error = TooSlow(f"no reply was read for {seconds:g} s")
                stream.give_up(_abort(error, self._name, stream))
                if stream.conversation is not None:
                    stream.conversation.gone()
        is_needed = bool(self.open)
        self._timer = self._loop.call_later(seconds / LOOKS, self._look) if is_needed else None

    def ended(self, stream: StreamCall, code: grpc.StatusCode) -> None:
        self._counts.ended(code)

    def closed(self, stream: StreamCall) -> None:
        self.open.discard(stream)
        if stream.conversation is not None:
            stream.conversation.closed()  # type: ignore[attr-defined]  # a Talk


def _is_over(call: UnaryCall) -> bool:
    return call.is_over


def _is_sent(call: UnaryCall) -> bool:
    return call.on_sent is None


def _abort(error: BaseException, name: str, call: UnaryCall | StreamCall) -> Abort:
    """The status for the error. It logs a bug of ours."""
    if isinstance(error, TooSlow):
        return Abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(error), ())
    return to_abort(error, **_facts(name, call))


def _facts(name: str, call: UnaryCall | StreamCall) -> dict[str, str]:
    """The log's facts: the method, and the session or group of sessions in the metadata."""
    ids = [str(value) for key, value in call.invocation_metadata() or () if key == SESSION_KEY]
    return {"method": name, **({"session": session_hash(ids[0])} if ids else {})}


def _cancel(task: asyncio.Future[None]) -> None:
    task.cancel()
