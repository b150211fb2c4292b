"""A call with a stream of messages in each direction. Knows no message's meaning.

Reading ahead has a credit. At most `window` messages are read whose replies the client has not
taken, so a client that does not read stops itself by gRPC's flow control. And messages of at most
READ_AHEAD_BYTES are read that the loop has not admitted: after a longer one the stream waits.

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
    """Who serves a method's streams, on the event loop's thread but for one function.

    `window` is the credit of messages.
    """

    window: int

    def may_read(self, stream: StreamCall) -> bool:
        """Whether the stream's next message may be read before anyone has made room for it.

        On the poller's thread, so it must be short and change nothing.
        """

    def opened(self, stream: StreamCall) -> None:
        """A stream began: sets its conversation, or finishes it."""

    def receive(self, messages: list[tuple[StreamCall, bytes]]) -> None:
        """Messages of any streams, in the order of each; some of streams that are over.

        The list is the method's, who takes them out of it, and calls admitted() for each.
        """

    def ended(self, stream: StreamCall, code: grpc.StatusCode) -> None:
        """The stream was finished, or its client has gone (CANCELLED)."""

    def closed(self, stream: StreamCall) -> None:
        """The stream is over on the wire."""


class Conversation(Protocol):
    """What a stream tells its owner, on the event loop's thread."""

    def half_closed(self) -> None:
        """The client sends no more messages; it still waits for replies."""

    def gone(self) -> None:
        """The client left, or its deadline passed: no reply reaches it any more."""

    def sent(self) -> None:
        """The oldest reply that was written is on its way: the client's flow control took it."""

    def stalled(self) -> None:
        """may_read() said no: the stream is not read before its read_on()."""


class StreamCall:
    """One bidirectional call. `conversation` belongs to whoever serves the stream."""

    __slots__ = (
        "_admitted_bytes",
        "_arrivals",
        "_call",
        "_idle_reader",
        "_idle_writer",
        "_is_message_under_way",
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
        self._idle_reader: list[None] = [None]  # empty: a message is asked for, or it is stalled
        self._received = 0  # messages that came; of the poller, as the next two
        self._received_bytes = 0
        self._replied = 0  # replies that the client's flow control has taken
        self._admitted_bytes = 0  # of the loop
        self._is_message_under_way = False  # of who has the writer's claim, as the next
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
        """On the poller's thread: asks for a message, unless it may not be read or one is due."""
        if not self._claim_reader():
            return
        if self.method.may_read(self):
            self.read_on()
        else:
            self._arrivals.notices.append(self._stall)
            self._arrivals.is_urgent = True

    def _claim_reader(self) -> bool:
        """Claims it, if there is credit to read with."""
        while self._has_credit() and _claim(self._idle_reader):
            if self._has_credit():
                return True
            self._idle_reader.append(None)  # used up meanwhile: whoever gives more looks again
        return False

    def _has_credit(self) -> bool:
        return (
            self._received - self._replied < self.method.window
            and self._received_bytes - self._admitted_bytes < READ_AHEAD_BYTES
        )

    def read_on(self) -> None:
        """Asks for the next message, with the reader's claim: after Conversation.stalled()."""
        operations = (cygrpc.ReceiveMessageOperation(NO_FLAGS),)
        self._call.start_server_batch(operations, self._message_event)

    def admitted(self, size: int) -> None:
        """A message of so many bytes has its place, and there is room for the next one."""
        self._admitted_bytes += size
        if self._idle_reader and self._claim_reader():
            self.read_on()

    def _message_event(self, event: cygrpc.BatchOperationEvent) -> None:
        content = event.batch_operations[0].message()
        if content is None:  # a broken or cancelled stream too: then `gone` follows
            self._arrivals.half_closes.append(self._half_close)  # and nothing is read any more
            return
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
        """Sends a message after those before it."""
        if not self._is_over:
            self._put(content)

    def finish(self, abort: Abort = FINISHED) -> None:
        """Ends the call with the status, after every message that was written."""
        if not self._is_over:
            self._is_over = True
            self.method.ended(self, abort.code)
            self._put(abort)

    def give_up(self, abort: Abort) -> None:
        """Ends the call with the status, in place of the messages that are not yet on their way."""
        if not self._is_over:
            self._outgoing.clear()
            self.finish(abort)

    def cut(self) -> None:
        """Resets the stream: what was written and not read is dropped."""
        self._call.cancel()

    def _put(self, item: bytes | Abort) -> None:
        self._outgoing.append(item)
        if self._idle_writer and _claim(self._idle_writer):
            self._write_next()

    def _write_next(self) -> None:
        """With the writer's claim: sends the next item, or leaves the claim for the next put."""
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
        """For how long the write under way has waited for the client to read; 0: there is none."""
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
        self._closed()

    def _closed(self) -> None:
        """The call is over on the wire, too."""
        self._outgoing.clear()
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
