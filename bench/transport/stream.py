"""A call with a stream of messages in each direction. Knows no message's meaning.

Reading has a credit: at most `window` messages are read whose replies the client has not taken, so
a client that does not read stops itself by gRPC's flow control. One write is under way at a time.

Two threads touch it. The poller thread runs the methods that end in `_event`, and so asks for the
next message, or sends the next reply, without waiting for the event loop. A write may start on
either thread, so it is claimed first: `list.pop` gives the claim to one of them.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # has no types

from bench.transport.call import NO_FLAGS, status_operation
from lstmserve.server.status import Abort

if TYPE_CHECKING:
    from bench.transport.queue import Arrivals, StreamMethod

FINISHED = Abort(grpc.StatusCode.OK, "", ())


class Conversation(Protocol):
    """What a stream tells its owner, on the event loop's thread."""

    def half_closed(self) -> None:
        """The client sends no more messages; it still waits for replies."""

    def gone(self) -> None:
        """The client left, or its deadline passed: no reply reaches it any more."""


class StreamCall:
    """One bidirectional call. `conversation` belongs to whoever serves the stream."""

    __slots__ = (
        "_arrivals",
        "_call",
        "_idle_writer",
        "_is_message_under_way",
        "_is_over",
        "_is_reading",
        "_metadata",
        "_outgoing",
        "_received",
        "_replied",
        "_sending_since_ns",
        "conversation",
        "method",
    )

    def __init__(
        self, arrivals: Arrivals, method: StreamMethod, event: cygrpc.RequestCallEvent
    ) -> None:
        """On the poller thread: sends the headers and asks for the first message."""
        self._arrivals = arrivals
        self._call = event.call
        self._metadata = event.invocation_metadata
        self._is_over = False
        # The poller thread alone reads and writes these three.
        self._received = 0  # messages that were asked for
        self._replied = 0  # replies that the client's flow control has taken
        self._is_reading = False
        self._is_message_under_way = False
        self._outgoing: deque[bytes | Abort] = deque()
        self._idle_writer: list[None] = []  # empty: the headers are being written
        self._sending_since_ns = time.monotonic_ns()
        self.method = method
        self.conversation: Conversation
        start = self._call.start_server_batch
        start((cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),), self._close_event)
        start((cygrpc.SendInitialMetadataOperation(None, NO_FLAGS),), self._sent_event)
        arrivals.openings.append(self._open)
        self._read_next()

    # --- reading, on the poller thread

    def _read_next(self) -> None:
        """Asks for a message, if the credit allows it and no other is asked for."""
        if not self._is_reading and self._received - self._replied < self.method.window:
            self._is_reading = True
            self._received += 1
            operations = (cygrpc.ReceiveMessageOperation(NO_FLAGS),)
            self._call.start_server_batch(operations, self._message_event)

    def _message_event(self, event: cygrpc.BatchOperationEvent) -> None:
        content = event.batch_operations[0].message()
        if content is None:  # a broken or cancelled stream too: then `gone` follows
            self._arrivals.half_closes.append(self._half_close)  # and nothing is read any more
            return
        self._is_reading = False
        self._arrivals.messages.append((self.method, (self, content)))
        self._read_next()

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
        if self._idle_writer and self._claim(self._idle_writer):
            self._write_next()

    def _write_next(self) -> None:
        """With the writer's claim: sends the next item, or leaves the claim for the next put."""
        while True:
            try:
                item = self._outgoing.popleft()
            except IndexError:
                self._sending_since_ns = 0
                self._idle_writer.append(None)
                if not self._outgoing or not self._claim(self._idle_writer):
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
        self._write_next()
        self._read_next()

    def unread_ns(self, now_ns: int) -> int:
        """For how long the write under way has waited for the client to read; 0: there is none."""
        since_ns = self._sending_since_ns
        return now_ns - since_ns if since_ns else 0

    @staticmethod
    def _claim(claims: list[None]) -> bool:
        try:
            claims.pop()
        except IndexError:
            return False
        return True

    # --- beginning and end

    def _open(self) -> None:
        self.method.opened(self)

    def _close_event(self, event: cygrpc.BatchOperationEvent) -> None:
        self._arrivals.endings.append(
            self._gone if event.batch_operations[0].cancelled() else self._closed
        )

    def _half_close(self) -> None:
        if not self._is_over:
            self.conversation.half_closed()

    def _gone(self) -> None:
        if not self._is_over:
            self._is_over = True
            self.method.ended(self, grpc.StatusCode.CANCELLED)
            self.conversation.gone()
        self._closed()

    def _closed(self) -> None:
        """The call is over on the wire, too."""
        self._outgoing.clear()
        self.method.closed(self)

    @property
    def is_over(self) -> bool:
        """Whether the stream has been finished, or its client has gone."""
        return self._is_over

    def invocation_metadata(self) -> Any:
        """Pairs of a key and its value, str, or bytes where the key ends in -bin."""
        return self._metadata
