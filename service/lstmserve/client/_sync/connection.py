"""Owns the calls to one server, or to the router before many, and their tries.

What is called here may be repeated: it changes nothing twice.
"""

from __future__ import annotations

from typing import Generic

from lstmserve.client._threads import Exchange, Pending, Reply, Transport, guard
from lstmserve.client.calls import Address, Method, Request, Response
from lstmserve.client.retries import Patience
from lstmserve.errors import LstmServeError


class Connection:
    """Every call raises LstmServeError; after close it is Cancelled."""

    def __init__(self, address: Address, patience: Patience) -> None:
        self._transport = Transport(address)
        self.tries = patience.tries
        self.pause = self._transport.pause

    def call(
        self,
        method: Method[Request, Response],
        request: Request,
        key: str = "",
        timeout_s: float | None = None,
    ) -> Response:
        """A unary call, tried again while that may help; `key` is what a router hashes."""
        tries = self.tries(timeout_s)
        while True:
            try:
                response = self.call_once(method, request, key, tries.timeout_s)
            except LstmServeError as error:
                self.pause(tries.wait_s(error))
            else:
                tries.progress()
                return response

    def call_once(
        self, method: Method[Request, Response], request: Request, key: str, timeout_s: float
    ) -> Response:
        """A unary call, tried once."""
        return self._transport.call(method, request, key, timeout_s)

    def begin(
        self, method: Method[Request, Response], request: Request, key: str, timeout_s: float
    ) -> Pending[Response]:
        """A unary call, tried once, whose reply is asked for later."""
        return self._transport.begin(method, request, key, timeout_s)

    def line(self, method: Method[Request, Response], key: str) -> Line[Request, Response]:
        """A stream to post on."""
        return Line(self._transport, method, key)

    def close(self) -> None:
        """Ends every call that is under way."""
        self._transport.close()


class Line(Generic[Request, Response]):
    """A stream that is opened when it is needed, and anew after it broke. close() it, always."""

    def __init__(self, transport: Transport, method: Method[Request, Response], key: str) -> None:
        self._transport = transport
        self._method = method
        self._key = key
        self._guard = guard()
        self._exchange: Exchange[Request, Response] | None = None

    def post(self, request: Request, timeout_s: float) -> Reply[Response]:
        """Sends a request once."""
        with self._guard:
            if self._exchange is None or self._exchange.has_ended:
                self._exchange = self._transport.exchange(self._method, self._key)
            exchange = self._exchange
        return exchange.post(request, timeout_s)

    def close(self) -> None:
        """Ends the stream; what is unanswered ends as Cancelled."""
        if self._exchange is not None:
            self._exchange.close()
