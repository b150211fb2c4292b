"""A call of one request and one response, from its arrival on the queue to its status.

Two threads touch it. The poller's thread runs the constructor and the methods that end in `_event`;
everything else is for the event loop's thread. A call that has ended, by an answer or by its
client, ignores answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # has no types

from lstmserve.server.status import Abort
from lstmserve.server.transport.arrivals import Arrivals

NO_FLAGS: Final = 0
OK: Final = cygrpc.StatusCode.ok
DEADLINE_S_MAX: Final = 1e12  # a later one means no deadline: gRPC gives 9.2e18 then
SECOND_NS: Final = 1_000_000_000


class UnaryMethod(Protocol):
    """Serves a method's unary calls, on the event loop's thread except for may_read()."""

    def may_read(self, call: UnaryCall) -> bool:
        """Whether the call's message may be read before receive() has seen the call.

        It runs on the poller's thread, so it must be short and change nothing.
        """

    def receive(self, calls: list[UnaryCall]) -> None:
        """Takes calls that arrived together, and answers each once, now or later.

        A call that `is_unread` has no message yet; it is received again after its read().
        """

    def ended(self, call: UnaryCall, code: grpc.StatusCode) -> None:
        """The call was answered, or its client has gone (CANCELLED)."""


class EndedCall:
    """Replaces gRPC's call when it is over, and does nothing.

    gRPC counts a stream against its connection's limit until its call is freed. A timer or a
    reference cycle may keep our call alive, and must not keep gRPC's.
    """

    def start_server_batch(self, operations: object, tag: object) -> None:
        """Does nothing."""

    def cancel(self) -> None:
        """Does nothing."""

    def peer(self) -> bytes:
        """No peer."""
        return b""


ENDED: Final = EndedCall()


def ignore_event(event: cygrpc.BatchOperationEvent) -> None:
    """Ignores the end of an operation that changes nothing."""


def deadline_ns(details: cygrpc.CallDetails) -> int | None:
    """The call's deadline on the monotonic clock; None where the client set none.

    gRPC gives it in wall-clock seconds; a jump of that clock after the arrival must not move it.
    """
    deadline_s = details.deadline
    if deadline_s > DEADLINE_S_MAX:
        return None
    return time.monotonic_ns() + int((deadline_s - time.time()) * SECOND_NS)


class UnaryCall:
    """One unary call. `content` is its message until take(), and None if the client sent none.

    `on_gone` is called once if the client leaves or its deadline passes before an answer. `tenant`,
    `lease` and `is_counted` belong to the method that serves the call.
    """

    __slots__ = (
        "_arrivals",
        "_call",
        "_is_over",
        "_metadata",
        "arrival_ns",
        "content",
        "deadline_ns",
        "is_counted",
        "is_unread",
        "lease",
        "method",
        "on_gone",
        "on_sent",
        "tenant",
    )

    def __init__(
        self, arrivals: Arrivals, method: UnaryMethod, event: cygrpc.RequestCallEvent
    ) -> None:
        self._arrivals = arrivals
        self._call = event.call
        self._metadata = event.invocation_metadata
        self._is_over = False
        self.method = method
        self.arrival_ns = time.monotonic_ns()
        self.deadline_ns = deadline_ns(event.call_details)
        self.content: bytes | None = None
        self.on_gone: Callable[[], None] | None = None
        self.on_sent: Callable[[], None] | None = None
        self.tenant: Any = None
        self.lease: Any = None
        self.is_counted = False
        self.is_unread = True
        operations = (cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),)
        self._call.start_server_batch(operations, self._close_event)
        if method.may_read(self):
            self.read()
        else:
            arrivals.messages.append((method, self))

    def read(self) -> None:
        """Asks gRPC for the message; the method receives the call when the message is there."""
        self.is_unread = False
        operations = (cygrpc.ReceiveMessageOperation(NO_FLAGS),)
        self._call.start_server_batch(operations, self._message_event)

    def _message_event(self, event: cygrpc.BatchOperationEvent) -> None:
        self.content = event.batch_operations[0].message()
        if self.content is None:
            # The client ended its side without a message. If instead the message was too long, or
            # the client has gone, gRPC ends the call too, and that event runs first.
            self._arrivals.half_closes.append(self._half_close)
        else:
            self._arrivals.messages.append((self.method, self))

    def _half_close(self) -> None:
        if not self._is_over:
            self.method.receive([self])

    def _close_event(self, event: cygrpc.BatchOperationEvent) -> None:
        if event.batch_operations[0].cancelled():
            self._arrivals.endings.append(self._gone)

    def _gone(self) -> None:
        if not self._is_over:
            on_gone = self.on_gone
            self._end(grpc.StatusCode.CANCELLED)
            self._call = ENDED
            if on_gone is not None:
                on_gone()

    @property
    def is_over(self) -> bool:
        """Whether an answer can no longer reach the client."""
        return self._is_over

    def take(self) -> bytes:
        """Returns the message, and drops it from the call."""
        content, self.content = self.content, b""
        assert content is not None, "calls without a message are refused before"
        return content

    def invocation_metadata(self) -> Any:
        """Pairs of a key and its value, str, or bytes where the key ends in -bin."""
        return self._metadata

    def peer(self) -> str:
        """The other end of the connection, such as ipv4:127.0.0.1:50001."""
        return str(self._call.peer().decode())

    def reply(self, content: bytes, on_sent: Callable[[], None] | None = None) -> None:
        """Answers with the message, and ends the call as OK.

        `on_sent` is called when gRPC has sent the message, or gives up because the client has gone.
        """
        if self._is_over:
            return
        self.on_sent = on_sent
        self._end(grpc.StatusCode.OK)
        self._call.start_server_batch(
            (
                cygrpc.SendInitialMetadataOperation(None, NO_FLAGS),
                cygrpc.SendMessageOperation(content, NO_FLAGS),
                cygrpc.SendStatusFromServerOperation(None, OK, b"", NO_FLAGS),
            ),
            ignore_event if on_sent is None else self._sent_event,
        )
        if on_sent is None:
            self._call = ENDED

    def _sent_event(self, event: cygrpc.BatchOperationEvent) -> None:
        self._arrivals.endings.append(self._sent)

    def _sent(self) -> None:
        self._call = ENDED
        on_sent, self.on_sent = self.on_sent, None
        if on_sent is not None:
            on_sent()

    def abort(self, abort: Abort) -> None:
        """Ends the call with the status."""
        if self._is_over:
            return
        self._end(abort.code)
        self._call.start_server_batch(
            (cygrpc.SendInitialMetadataOperation(None, NO_FLAGS), status_operation(abort)),
            ignore_event,
        )
        self._call = ENDED

    def cut(self) -> None:
        """Resets the call, and drops a reply that the client has not read."""
        self._call.cancel()

    def _end(self, code: grpc.StatusCode) -> None:
        self._is_over = True
        self.on_gone = None
        self.content = b""
        self.method.ended(self, code)


def status_operation(abort: Abort) -> cygrpc.SendStatusFromServerOperation:
    """The end of a call, with the status' details in the trailing metadata."""
    return cygrpc.SendStatusFromServerOperation(
        abort.trailers or None, abort.code.value[0], abort.details.encode(), NO_FLAGS
    )
