"""The server's completion queue: one poller thread, the calls it accepts, start and stop.

The poller drains the queue and wakes the event loop once for everything that was there. Of a
dialect and of the engine it runs no code, except may_read().
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

import grpc
import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # has no types

from lstmserve.server.transport.arrivals import Arrivals
from lstmserve.server.transport.call import NO_FLAGS, UnaryCall, UnaryMethod, ignore_event
from lstmserve.server.transport.stream import StreamCall, StreamMethod

REQUESTS_OPEN: Final = 64  # calls that gRPC may hand over before the poller asks for more
NOTICE_S: Final = 0.002  # how long a notice waits for an event that wakes the loop anyway
PAST: Final = 0.0
UNKNOWN_METHOD: Final = b"Method not found!"
log = structlog.get_logger()


class QueueServer:
    """One gRPC server. Methods are keyed by their path, "/package.Service/Method"."""

    def __init__(
        self,
        options: Sequence[tuple[str, int]],
        unary: Mapping[str, UnaryMethod],
        streams: Mapping[str, StreamMethod],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._unary = {path.encode(): method for path, method in unary.items()}
        self._streams = {path.encode(): method for path, method in streams.items()}
        self._arrivals = Arrivals()
        self._is_woken = False
        self._queue = cygrpc.CompletionQueue()
        arguments = [(name.encode(), value) for name, value in options]
        self._server = cygrpc.Server(arguments, False)
        self._server.register_completion_queue(self._queue)
        self._is_started = False
        self._is_accepting = False
        self._poller = threading.Thread(target=self._poll, name="grpc-queue", daemon=True)
        self._stopped = asyncio.Event()
        self._stopping: asyncio.Future[None] | None = None

    def bind(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listens on the address. Returns the port, or 0 if the address cannot be had."""
        if credentials is None:
            return int(self._server.add_http2_port(address.encode()))
        return int(self._server.add_http2_port(address.encode(), credentials._credentials))  # type: ignore[attr-defined]  # as grpcio's own server

    def start(self) -> None:
        """Begins to accept calls."""
        self._server.start()
        self._is_started = self._is_accepting = True
        for _ in range(REQUESTS_OPEN):
            self._ask()
        self._poller.start()

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, and cuts the open ones after the grace. It may be called twice."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop(grace_s))
        await asyncio.shield(self._stopping)

    async def _stop(self, grace_s: float) -> None:
        if not self._is_started:
            self.start()  # gRPC cannot shut down a server that was never started
        self._is_accepting = False
        self._server.shutdown(self._queue, self._shutdown_event)
        try:
            await asyncio.wait_for(self._stopped.wait(), grace_s)
        except TimeoutError:
            self._server.cancel_all_calls()
            await self._stopped.wait()
        self._server.destroy()
        self._queue.shutdown()
        await asyncio.to_thread(self._poller.join)
        self._arrivals.deliver()

    # --- on the poller's thread

    def _ask(self) -> None:
        self._server.request_call(self._queue, self._queue, self._request_event)

    def _poll(self) -> None:
        poll, arrivals = self._queue.poll, self._arrivals
        timeout, over = cygrpc.CompletionType.queue_timeout, cygrpc.CompletionType.queue_shutdown
        while True:
            is_noticed = bool(arrivals.notices) and not self._is_woken
            event = poll(time.time() + NOTICE_S if is_noticed else None)
            is_idle = event.completion_type == timeout
            while event.completion_type != timeout:
                if event.completion_type == over:
                    return
                try:
                    event.tag(event)
                except Exception:  # a bug of ours: it must not end the other calls
                    log.exception("the transport failed on an event")
                # A name that still refers to the event would keep its call while the thread waits.
                event = None
                event = poll(PAST)
            event = None
            if not self._is_woken and (arrivals.is_due or (is_idle and arrivals.notices)):
                self._is_woken = True
                with contextlib.suppress(RuntimeError):  # the loop is closed, so no call is left
                    self._loop.call_soon_threadsafe(self._deliver)

    def _request_event(self, event: cygrpc.RequestCallEvent) -> None:
        if self._is_accepting:
            self._ask()
        if not event.success or not event.call_details.method:
            return
        path = event.call_details.method
        if (unary := self._unary.get(path)) is not None:
            UnaryCall(self._arrivals, unary, event)
        elif (stream := self._streams.get(path)) is not None:
            StreamCall(self._arrivals, stream, event)
        else:
            _refuse(event.call)

    def _shutdown_event(self, event: cygrpc.ServerShutdownEvent) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)

    # --- on the event loop's thread

    def _deliver(self) -> None:
        self._is_woken = False
        self._arrivals.deliver()


def _refuse(call: cygrpc.Call) -> None:
    """Ends a call of a method that is not served."""
    unimplemented = cygrpc.StatusCode.unimplemented
    call.start_server_batch(
        (
            cygrpc.SendInitialMetadataOperation(None, NO_FLAGS),
            cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),
            cygrpc.SendStatusFromServerOperation(None, unimplemented, UNKNOWN_METHOD, NO_FLAGS),
        ),
        ignore_event,
    )
