"""A call with a stream of messages in each direction. Knows no message's meaning.

It reads ahead within two limits. It reads at most `window` messages whose replies the client has
not taken, so that gRPC's flow control stops a client that does not read. And it reads on only while
less than READ_AHEAD_BYTES wait for the loop to admit them.

Two threads touch it. The poller's thread runs the constructor and the methods that end in `_event`,
and so asks for the next message, or sends the next reply, without waiting for the event loop. A
read or a write may start on either thread, so each is claimed first: `list.pop` gives the claim to
one of them. Every count is written by one thread only.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final, Protocol

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # has no types

from lstmserve.server.status import Abort
from lstmserve.server.transport.arrivals import Arrivals
from lstmserve.server.transport.call import ENDED, NO_FLAGS, status_operation

FINISHED: Final = Abort(grpc.StatusCode.OK, "", ())
READ_AHEAD_BYTES: Final = 64 << 10


class StreamMethod(Protocol):
    """Serves a method's streams, on the event loop's thread except for may_read().

    `window` is how many messages may be read whose replies the client has not taken.
    """

    window: int

    def may_read(self, stream: StreamCall) -> bool:
        """Whether the stream's next message may be read before room was made for it.

        It runs on the poller's thread, so it must be short and change nothing.
        """

    def opened(self, stream: StreamCall) -> None:
        """Gives a new stream its conversation, or finishes it."""

    def receive(self, messages: list[tuple[StreamCall, bytes]]) -> None:
        """Takes messages of any streams, those of one stream in order. A stream may be over.

        The list belongs to the method, which calls admitted() for each message.
        """

    def ended(self, stream: StreamCall, code: grpc.StatusCode) -> None:
        """The stream failed, or its client has gone (CANCELLED), or took its end (OK)."""

    def closed(self, stream: StreamCall) -> None:
        """The stream is over on the wire."""


class Conversation(Protocol):
    """Receives what happens to one stream, on the event loop's thread."""

    def half_closed(self) -> None:
        """The client sends no more messages; it still waits for replies."""

    def gone(self) -> None:
        """The client left, or its deadline passed: no reply reaches it any more."""

    def sent(self) -> None:
        """The oldest reply that was written is on its way: the client's flow control took it."""

    def stalled(self) -> None:
        """may_read() said no: the stream reads nothing more until read_on()."""


class StreamCall:
    """One bidirectional call. `conversation` belongs to the method that serves the stream."""

    __slots__ = (
        "_admitted_bytes",
        "_arrivals",
        "_call",
        "_idle_reader",
        "_idle_writer",
        "_is_message_under_way",
        "_is_ok",
        "_is_over",
        "_metadata",
        "_outgoing",
        "_received",
        "_received_bytes",
        "_replied",
        "_sending_since_ns",
        "conversation",
        "method",
    )

    def __init__(
        self, arrivals: Arrivals, method: StreamMethod, event: cygrpc.RequestCallEvent
    ) -> None:
        self._arrivals = arrivals
        self._call = event.call
        self._metadata = event.invocation_metadata
        self._is_over = False
        self._is_ok = False  # it was finished as OK
        self._idle_reader: list[None] = [None]  # empty: it waits for a message, or is stalled
        self._received = 0  # messages that came; only the poller writes this and the next two
        self._received_bytes = 0
        self._replied = 0  # replies that the client's flow control has taken
        self._admitted_bytes = 0  # only the loop writes it
        self._is_message_under_way = False  # the writer's claim is needed for this and the next
        self._sending_since_ns = time.monotonic_ns()
        self._outgoing: deque[bytes | Abort] = deque()
        self._idle_writer: list[None] = []  # empty: the headers are being written
        self.method = method
        self.conversation: Conversation | None = None
        start = self._call.start_server_batch
        start((cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),), self._close_event)
        start((cygrpc.SendInitialMetadataOperation(None, NO_FLAGS),), self._sent_event)
        arrivals.openings.append(self._open)
        self._read_ahead()

    # --- reading

    def _read_ahead(self) -> None:
        """Asks for a message if there is credit and it may be read. On the poller's thread."""
        if not self._claim_reader():
            return
        if self.method.may_read(self):
            self.read_on()
        else:
            self._arrivals.notices.append(self._stall)
            self._arrivals.is_urgent = True

    def _claim_reader(self) -> bool:
        """Claims the reader if there is credit to read with. Returns whether it did."""
        while self._has_credit() and _claim(self._idle_reader):
            if self._has_credit():
                return True
            self._idle_reader.append(None)  # no credit any more: the next grant of it looks again
        return False

    def _has_credit(self) -> bool:
        return (
            self._received - self._replied < self.method.window
            and self._received_bytes - self._admitted_bytes < READ_AHEAD_BYTES
        )

    def read_on(self) -> None:
        """Asks for the next message. The caller has the reader's claim, as after stalled()."""
        operations = (cygrpc.ReceiveMessageOperation(NO_FLAGS),)
        self._call.start_server_batch(operations, self._message_event)

    def admitted(self, size: int) -> None:
        """Notes that a message of `size` bytes has its place, and reads on if there is credit."""
        self._admitted_bytes += size
        if self._idle_reader and self._claim_reader():
            self.read_on()

    def _message_event(self, event: cygrpc.BatchOperationEvent) -> None:
        content = event.batch_operations[0].message()
        if content is None:  # if the stream broke or was cancelled, `gone` follows
            self._arrivals.half_closes.append(self._half_close)
            return  # without giving the claim back: nothing is read any more
        self._received += 1
        self._received_bytes += len(content)
        self._arrivals.messages.append((self.method, (self, content)))
        self._idle_reader.append(None)
        self._read_ahead()

    def _stall(self) -> None:
        if self.conversation is not None and not self._is_over:
            self.conversation.stalled()

    # --- writing

    def write(self, content: bytes) -> None:
        """Sends a message, after those that were written before."""
        if not self._is_over:
            self._put(content)

    def finish(self, abort: Abort = FINISHED) -> None:
        """Ends the call with the status, after every message that was written."""
        if not self._is_over:
            self._is_over = True
            if abort.code is grpc.StatusCode.OK:
                self._is_ok = True  # unless the client has gone, which the end on the wire tells
            else:
                self.method.ended(self, abort.code)
            self._put(abort)

    def give_up(self, abort: Abort) -> None:
        """Ends the call with the status, and drops the messages that are not yet on their way."""
        if not self._is_over:
            self._outgoing.clear()
            self.finish(abort)

    def cut(self) -> None:
        """Resets the stream, and drops replies that the client has not read."""
        self._call.cancel()

    def _put(self, item: bytes | Abort) -> None:
        self._outgoing.append(item)
        if self._idle_writer and _claim(self._idle_writer):
            self._write_next()

    def _write_next(self) -> None:
        """Sends the next item, or gives back the writer's claim, which the caller has."""
        while True:
            try:
                item = self._outgoing.popleft()
            except IndexError:
                self._sending_since_ns = 0
                self._idle_writer.append(None)
                if not self._outgoing or not _claim(self._idle_writer):
                    return
                continue
            self._sending_since_ns = time.monotonic_ns()
            self._is_message_under_way = isinstance(item, bytes)
            if isinstance(item, bytes):
                operation = cygrpc.SendMessageOperation(item, NO_FLAGS)
            else:
                operation = status_operation(item)
            self._call.start_server_batch((operation,), self._sent_event)
            return

    def _sent_event(self, event: cygrpc.BatchOperationEvent) -> None:
        if self._is_message_under_way:
            self._replied += 1
            self._arrivals.notices.append(self._sent)
            if not self.method.may_read(self):  # others may wait for this reply's bytes
                self._arrivals.is_urgent = True
        self._write_next()
        self._read_ahead()

    def _sent(self) -> None:
        if self.conversation is not None:
            self.conversation.sent()

    def unread_ns(self, now_ns: int) -> int:
        """How long the current write has waited for the client to read; 0 without a write."""
        since_ns = self._sending_since_ns
        return now_ns - since_ns if since_ns else 0

    # --- beginning and end

    def _open(self) -> None:
        self.method.opened(self)

    def _close_event(self, event: cygrpc.BatchOperationEvent) -> None:
        self._arrivals.endings.append(
            self._gone if event.batch_operations[0].cancelled() else self._closed
        )

    def _half_close(self) -> None:
        if self.conversation is not None and not self._is_over:
            self.conversation.half_closed()

    def _gone(self) -> None:
        if not self._is_over:
            self._is_over = True
            self.method.ended(self, grpc.StatusCode.CANCELLED)
            if self.conversation is not None:
                self.conversation.gone()
        elif self._is_ok:
            # A connection that breaks may look like a half-close first, and be finished for that.
            self._is_ok = False
            self.method.ended(self, grpc.StatusCode.CANCELLED)
        self._closed()

    def _closed(self) -> None:
        """Forgets gRPC's call, which is over on the wire, too."""
        self._outgoing.clear()
        if self._is_ok:
            self.method.ended(self, grpc.StatusCode.OK)
        self.method.closed(self)
        self.conversation = None
        self._call = ENDED

    @property
    def is_over(self) -> bool:
        """Whether the stream has been finished, or its client has gone."""
        return self._is_over

    def invocation_metadata(self) -> Any:
        """Pairs of a key and its value, str, or bytes where the key ends in -bin."""
        return self._metadata

    def peer(self) -> str:
        """The other end of the connection, such as ipv4:127.0.0.1:50001."""
        return str(self._call.peer().decode())


def _claim(claims: list[None]) -> bool:
    """Whether the caller got the only claim."""
    try:
        claims.pop()
    except IndexError:
        return False
    return True
