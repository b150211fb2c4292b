"""The frame around every call: who calls, its bytes, its counts, and an end with a status, always.

What serves a call runs on the event loop's thread. Whatever it raises becomes a status of ours:
the text of a bug does not reach the client.
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
SENT_AT_ONCE_BYTES = 16 << 10  # gRPC sends a shorter reply whether it is read or not
SECOND_NS = 1_000_000_000
LOOKS = 8  # in the time that a stream's reply may wait


class TooSlow(Exception):
    """A call that took longer than it may; what it did is unknown, as with gRPC's own deadline."""


class Talk(Conversation, Protocol):
    """A Conversation that takes the messages of its stream."""

    def receive(self, content: bytes) -> None:
        """The next message."""

    def closed(self) -> None:
        """The stream is over on the wire: nothing of it is sent any more."""


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
    """Not counted."""


class Frame:
    """Of one service's calls on a port. `call_s_max` is for unary calls without a deadline,
    `write_s_max` for replies that are not read; a reply has a row of `row_bytes` or more.
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
        """A method whose calls `receive` takes as they arrive together, and answers each.

        They have a tenant, and a lease of their bytes. `on_refused(error)` is called for one that
        does not come to `receive`.
        """
        return UnaryCalls(self, self._counts(name), name, receive, on_refused)

    def probes(self, name: str, answer: Answer) -> Probes:
        """A method that is answered at once, for any caller and however many bytes wait."""
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
        """The same with messages."""

        async def serve(call: UnaryCall) -> bytes:
            response = await method(parse(kind, call.take()), call.tenant)
            return response.SerializeToString()

        return self.served(name, serve)

    def bidi(self, name: str, begin: Begin, window: int) -> Streams:
        """A method of streams: `begin` makes what talks to one."""
        counts = self._metrics.rpc(name, "bidi_stream", self._service)
        return Streams(self, counts, name, begin, window)

    def _counts(self, name: str) -> RpcMetrics:
        return self._metrics.rpc(name, "unary", self._service)

    def start(self, call: UnaryCall, work: Work, name: str) -> None:
        """Runs work that answers the call in a task, which ends early if the client leaves."""
        task = asyncio.ensure_future(self._guarded(call, work, name))
        task.set_name(f"{self._service}/{name}")
        call.on_gone = lambda: _cancel(task)

    async def _guarded(self, call: UnaryCall, work: Work, name: str) -> None:
        try:
            await work(call)
        except (Exception, asyncio.CancelledError) as error:
            self.abort(call, error, name)  # which a call that is over ignores

    def watch(self, call: UnaryCall) -> None:
        """Ends the call if it lasts too long, unless it has a deadline of its own."""
        if call.deadline_ns is None:
            self._overtime.watch(call)

    def _expire(self, call: UnaryCall) -> None:
        text = f"not done after {self._call_s_max:g} s, the most for a call without a deadline"
        on_gone = call.on_gone
        call.abort(Abort(grpc.StatusCode.DEADLINE_EXCEEDED, text, ()))
        if on_gone is not None:
            on_gone()  # what its step did is unknown

    def reply(self, call: UnaryCall, content: bytes) -> None:
        """Answers. The bytes of a long reply are held until it was sent; if it is not read, its
        call is cut."""
        if len(content) <= SENT_AT_ONCE_BYTES or call.is_over:
            call.reply(content)
            return
        lease = call.lease
        lease.hold()
        lease.resize(len(content))
        call.reply(content, lease.release)
        self._sending.watch(call)

    def abort(self, call: UnaryCall | StreamCall, error: BaseException, name: str) -> None:
        """Ends the call with the error's status; one that is over ignores it."""
        if not call.is_over:
            if isinstance(call, StreamCall):
                call.finish(_abort(error, name, call))
            else:
                call.abort(_abort(error, name, call))
        error.__traceback__ = None  # its frames hold the call and its message


class UnaryCalls:
    """A UnaryMethod that counts its calls and lets them in."""

    def __init__(
        self, frame: Frame, counts: RpcMetrics, name: str, receive: Receive, on_refused: Refused
    ) -> None:
        self._frame = frame
        self._counts = counts
        self._name = name
        self._receive = receive
        self._on_refused = on_refused

    def may_read(self, call: UnaryCall) -> bool:
        """As UnaryMethod.may_read: where the budget is used up a message is not even read."""
        return self._frame.pending.is_vacant and self._frame.door.knows(call)

    def receive(self, calls: list[UnaryCall]) -> None:
        """As UnaryMethod.receive."""
        inside = [call for call in calls if self._is_let_in(call)]
        if inside:
            self._receive(inside)

    def _is_let_in(self, call: UnaryCall) -> bool:
        """Whether it is to be served now; else it has been refused, or its message is read now."""
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
        """Raises BadToken, AdminOnly, Malformed, PendingBytes, Quota."""
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
        """As UnaryMethod.ended."""
        self._count(call)
        self._counts.ended(code, (time.monotonic_ns() - call.arrival_ns) / SECOND_NS)
        if call.lease is not None:
            call.lease.release()

    def _count(self, call: UnaryCall) -> None:
        if not call.is_counted:
            call.is_counted = True
            self._counts.started += 1


class Probes:
    """A UnaryMethod whose calls need no token and no room."""

    def __init__(self, frame: Frame, counts: RpcMetrics, name: str, answer: Answer) -> None:
        self._frame = frame
        self._counts = counts
        self._name = name
        self._answer = answer

    def may_read(self, call: UnaryCall) -> bool:
        """As UnaryMethod.may_read."""
        return True

    def receive(self, calls: list[UnaryCall]) -> None:
        """As UnaryMethod.receive."""
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
        """As UnaryMethod.ended."""
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
        """As StreamMethod.may_read."""
        if stream.conversation is None and not self._frame.door.knows(stream):
            return False
        return self._frame.pending.is_vacant

    def opened(self, stream: StreamCall) -> None:
        """As StreamMethod.opened."""
        self._counts.started += 1
        self.open.add(stream)
        if self._timer is None:
            self._timer = self._loop.call_later(self._frame.write_s_max / LOOKS, self._look)
        try:
            stream.conversation = self._begin(stream, self._frame.door.tenant(stream))
        except Exception as error:
            self._frame.abort(stream, error, self._name)

    def receive(self, messages: list[tuple[StreamCall, bytes]]) -> None:
        """As StreamMethod.receive."""
        messages.reverse()
        while messages:  # one that was read is not held until the others are
            self._receive(*messages.pop())

    def _receive(self, stream: StreamCall, content: bytes) -> None:
        if stream.is_over:
            return
        try:
            stream.conversation.receive(content)  # type: ignore[union-attr]  # a Talk
        except Exception as error:
            self.fail(stream, error)

    def fail(self, stream: StreamCall, error: Exception) -> None:
        """Ends the stream with the error; what it still waits for is cancelled."""
        if not stream.is_over:
            self._frame.abort(stream, error, self._name)
            if stream.conversation is not None:
                stream.conversation.gone()

    def _look(self) -> None:
        """Ends the streams whose replies wait for too long.

        A timer a write would cost as much as an eighth of the message; this one looks now and then.
        """
        seconds, now_ns = self._frame.write_s_max, time.monotonic_ns()
        for stream in list(self.open):
            unread_s = stream.unread_ns(now_ns) / SECOND_NS
            if stream.is_over and unread_s > 2 * seconds:
                stream.cut()  # it does not even read its status
            elif not stream.is_over and unread_s > seconds:
                error = TooSlow(f"no reply was read for {seconds:g} s")
                stream.give_up(_abort(error, self._name, stream))
                if stream.conversation is not None:
                    stream.conversation.gone()
        is_needed = bool(self.open)
        self._timer = self._loop.call_later(seconds / LOOKS, self._look) if is_needed else None

    def ended(self, stream: StreamCall, code: grpc.StatusCode) -> None:
        """As StreamMethod.ended."""
        self._counts.ended(code)

    def closed(self, stream: StreamCall) -> None:
        """As StreamMethod.closed."""
        self.open.discard(stream)
        if stream.conversation is not None:
            stream.conversation.closed()  # type: ignore[attr-defined]  # a Talk


def _is_over(call: UnaryCall) -> bool:
    return call.is_over


def _is_sent(call: UnaryCall) -> bool:
    return call.on_sent is None


def _abort(error: BaseException, name: str, call: UnaryCall | StreamCall) -> Abort:
    """What ends the call of a client that is there."""
    if isinstance(error, TooSlow):
        return Abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(error), ())
    return to_abort(error, **_facts(name, call))


def _facts(name: str, call: UnaryCall | StreamCall) -> dict[str, str]:
    """For the log: the call, and the session (a stream: the group) that its metadata names."""
    ids = [str(value) for key, value in call.invocation_metadata() or () if key == SESSION_KEY]
    return {"method": name, **({"session": session_hash(ids[0])} if ids else {})}


def _cancel(task: asyncio.Future[None]) -> None:
    task.cancel()
