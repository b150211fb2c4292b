"""Owns the one connection of a client and its unary calls, by grpc. Tries once.

Any thread may call; the twin of _aio.transport.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic

import grpc

from lstmserve.client._threads.exchange import Exchange
from lstmserve.client.calls import Address, Method, Request, Response
from lstmserve.client.status import closed, from_rpc

guard = threading.Lock


class Pending(Generic[Response]):
    """A unary call under way. result() or cancel() ends it, always."""

    def __init__(self, call: Any) -> None:  # grpc's stubs do not name it
        self._call = call

    def result(self) -> Response:
        """The reply. Raises LstmServeError."""
        with _errors():
            response: Response = self._call.result()
            return response

    def cancel(self) -> None:
        """Gives up; nothing happens when it is done."""
        self._call.cancel()


@contextmanager
def _errors(transport: Transport | None = None) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc(error) from None
    except grpc.FutureCancelledError:
        raise closed() from None
    except ValueError:  # grpc's word for a channel that another thread has just closed
        if transport is None or not transport.is_closed:
            raise
        raise closed() from None


class Transport:
    """A connection, made at the first call. After close every call raises Cancelled."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._channel: grpc.Channel = address.open(grpc)
        self._closed = threading.Event()
        # A client that is dropped unclosed would leave its streams' threads behind.
        weakref.finalize(self, self._channel.close).atexit = False

    @property
    def is_closed(self) -> bool:
        """Whether close() was called."""
        return self._closed.is_set()

    def begin(
        self,
        method: Method[Request, Response],
        request: Request,
        key: str,
        timeout_s: float,
    ) -> Pending[Response]:
        """Sends a unary request; `key` is what a router hashes. Raises Cancelled after close."""
        stub = self._stub(method)
        metadata = self._address.metadata(key)
        with _errors(self):
            return Pending(stub.future(request, timeout=timeout_s, metadata=metadata))

    def call(
        self,
        method: Method[Request, Response],
        request: Request,
        key: str,
        timeout_s: float,
    ) -> Response:
        """A unary call, whole: cheaper than begin and result. Raises LstmServeError."""
        stub = self._stub(method)
        with _errors(self):
            return stub(request, timeout=timeout_s, metadata=self._address.metadata(key))

    def _stub(
        self, method: Method[Request, Response]
    ) -> grpc.UnaryUnaryMultiCallable[Request, Response]:
        if self.is_closed:
            raise closed()
        return self._channel.unary_unary(
            method.path, method.request.SerializeToString, method.response.FromString
        )

    def exchange(self, method: Method[Request, Response], key: str) -> Exchange[Request, Response]:
        """Opens a stream. Raises Cancelled after close."""
        if self.is_closed:
            raise closed()
        stub = self._channel.stream_stream(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        metadata = self._address.metadata(key)
        with _errors(self):
            return Exchange(lambda requests: stub(requests, metadata=metadata))

    def pause(self, wait_s: float) -> None:
        """Waits so long. Raises Cancelled as soon as the client is closed."""
        if wait_s and self._closed.wait(wait_s):
            raise closed()

    def close(self) -> None:
        """Ends every call that is under way."""
        self._closed.set()
        self._channel.close()
