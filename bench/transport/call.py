"""A call of one request and one response, from its arrival on the queue to its status.

Two threads touch it. The poller thread runs the methods that end in `_event`; everything else is
for the event loop's thread. A call that has ended, by an answer or by its client, ignores answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # has no types

from lstmserve.server.status import Abort

if TYPE_CHECKING:
    from bench.transport.queue import Arrivals, UnaryMethod

NO_FLAGS: Final = 0
OK: Final = cygrpc.StatusCode.ok
DEADLINE_S_MAX: Final = 1e12  # a deadline later than this is none: gRPC's own has 9.2e18
SECOND_NS: Final = 1_000_000_000


def ignore_event(event: cygrpc.BatchOperationEvent) -> None:
    """For operations whose end changes nothing."""


def deadline_ns(details: cygrpc.CallDetails) -> int | None:
    """The call's deadline on the monotonic clock; None where the client set none.

    gRPC gives wall-clock seconds, so a clock that jumps later must not move it.
    """
    deadline_s = details.deadline
    if deadline_s > DEADLINE_S_MAX:
        return None
    return time.monotonic_ns() + int((deadline_s - time.time()) * SECOND_NS)


class UnaryCall:
    """One unary call. `content` is its message, until it is taken.

    `on_gone` is called once if the client leaves or its deadline passes before an answer.
    """

    __slots__ = (
        "_arrivals",
        "_call",
        "_is_over",
        "_metadata",
        "arrival_ns",
        "content",
        "deadline_ns",
        "method",
        "on_gone",
    )

    def __init__(
        self, arrivals: Arrivals, method: UnaryMethod, event: cygrpc.RequestCallEvent
    ) -> None:
        """On the poller thread: asks for the message, and for the call's end."""
        self._arrivals = arrivals
        self._call = event.call
        self._metadata = event.invocation_metadata
        self._is_over = False
        self.method = method
        self.arrival_ns = time.monotonic_ns()
        self.deadline_ns = deadline_ns(event.call_details)
        self.content: bytes | None = None
        self.on_gone: Callable[[], None] | None = None
        start = self._call.start_server_batch
        start((cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),), self._close_event)
        start((cygrpc.ReceiveMessageOperation(NO_FLAGS),), self._message_event)

    def _message_event(self, event: cygrpc.BatchOperationEvent) -> None:
        """None: the client ended its side without a message, or the message was too long."""
        self.content = event.batch_operations[0].message()
        self._arrivals.messages.append((self.method, self))

    def _close_event(self, event: cygrpc.BatchOperationEvent) -> None:
        if event.batch_operations[0].cancelled():
            self._arrivals.endings.append(self._gone)

    def _gone(self) -> None:
        if not self._is_over:
            self._is_over = True
            self.method.ended(self, grpc.StatusCode.CANCELLED)
            on_gone, self.on_gone = self.on_gone, None
            if on_gone is not None:
                on_gone()

    @property
    def is_over(self) -> bool:
        """Whether an answer can no longer reach the client."""
        return self._is_over

    def take(self) -> bytes:
        """The message, which the call then holds no more."""
        content, self.content = self.content, b""
        assert content is not None, "calls without a message are refused before"
        return content

    def invocation_metadata(self) -> Any:
        """Pairs of a key and its value, str, or bytes where the key ends in -bin."""
        return self._metadata

    def reply(self, content: bytes) -> None:
        """Answers with the message, and ends the call as OK."""
        if self._is_over:
            return
        self._end(grpc.StatusCode.OK)
        self._call.start_server_batch(
            (
                cygrpc.SendInitialMetadataOperation(None, NO_FLAGS),
                cygrpc.SendMessageOperation(content, NO_FLAGS),
                cygrpc.SendStatusFromServerOperation(None, OK, b"", NO_FLAGS),
            ),
            ignore_event,
        )

    def abort(self, abort: Abort) -> None:
        """Ends the call with the status."""
        if self._is_over:
            return
        self._end(abort.code)
        self._call.start_server_batch(
            (cygrpc.SendInitialMetadataOperation(None, NO_FLAGS), status_operation(abort)),
            ignore_event,
        )

    def _end(self, code: grpc.StatusCode) -> None:
        self._is_over = True
        self.on_gone = None
        self.method.ended(self, code)


def status_operation(abort: Abort) -> cygrpc.SendStatusFromServerOperation:
    """The end of a call, with the status' details in the trailing metadata."""
    return cygrpc.SendStatusFromServerOperation(
        abort.trailers or None, abort.code.value[0], abort.details.encode(), NO_FLAGS
    )
