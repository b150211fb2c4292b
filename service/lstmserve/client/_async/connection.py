"""Calls that are repeated and streams that are reopened, to one server or the router before many.

Whatever is called here is safe to repeat: it changes nothing twice.
"""

from __future__ import annotations

from typing import Generic

from lstmserve.client._io.aio import PendingReply, TaggedStream, Transport, mutex
from lstmserve.client.channels import Endpoint
from lstmserve.client.protocol import Method, Request, Response
from lstmserve.client.retries import RetryPolicy
from lstmserve.errors import LstmServeError


class AsyncConnection(Transport):
    """A transport that also repeats. Every call raises LstmServeError, after close Cancelled."""

    def __init__(self, endpoint: Endpoint, policy: RetryPolicy) -> None:
        super().__init__(endpoint)
        self.attempts = policy.attempts

    async def call(
        self,
        method: Method[Request, Response],
        request: Request,
        key: str = "",
        timeout_s: float | None = None,
    ) -> Response:
        """A unary call, repeated while that may help; `key` is what a router hashes."""
        attempts = self.attempts(timeout_s)
        while True:
            try:
                response = await self.call_once(method, request, key, attempts.timeout_s)
            except LstmServeError as error:
                await self.pause(attempts.wait_s(error))
            else:
                attempts.succeeded()
                return response


class AsyncReconnectingStream(Generic[Request, Response]):
    """A stream that opens with its first request, and again after it broke. Always close() it."""

    def __init__(self, transport: Transport, method: Method[Request, Response], key: str) -> None:
        self._transport = transport
        self._method = method
        self._key = key
        self._mutex = mutex()
        self._stream: TaggedStream[Request, Response] | None = None

    def post(self, request: Request, timeout_s: float) -> PendingReply[Response]:
        """Sends a request once."""
        with self._mutex:
            if self._stream is None or self._stream.has_ended:
                self._stream = self._transport.open_stream(self._method, self._key)
            stream = self._stream
        return stream.post(request, timeout_s)

    async def close(self) -> None:
        """Ends the stream; unanswered requests end as Cancelled."""
        if self._stream is not None:
            await self._stream.close()
