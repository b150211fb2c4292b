"""Owns the connections of a client and its unary calls, by grpc. Tries once.

Any thread may call; the twin of _aio.transport.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic

import grpc

from lstmserve.client._threads.exchange import Exchange, Start
from lstmserve.client.calls import Address, Method, Request, Response
from lstmserve.client.lanes import Lane, Lanes, refused
from lstmserve.client.status import closed

guard = threading.Lock


class Pending(Generic[Response]):
    """A unary call under way. result() or cancel() ends it, always."""

    def __init__(self, call: Any, transport: Transport) -> None:  # grpc's stubs do not name it
        self._call = call
        self._transport = transport

    def result(self) -> Response:
        """The reply. Raises LstmServeError."""
        with _errors(self._transport):
            response: Response = self._call.result()
            return response

    def cancel(self) -> None:
        """Gives up; nothing happens when it is done."""
        self._call.cancel()


@contextmanager
def _errors(transport: Transport) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise refused(error, transport.lane) from None
    except grpc.FutureCancelledError:
        raise closed() from None
    except ValueError:  # grpc's word for a channel that another thread has just closed
        if not transport.is_closed:
            raise
        raise closed() from None


class Transport:
    """Connections, made at the first call. After close every call raises Cancelled."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._lanes: Lanes[grpc.Channel] = Lanes(lambda: address.open(grpc))
        self._closed = threading.Event()
        # A client that is dropped unclosed would leave its streams' threads behind.
        weakref.finalize(self, _drop, self._lanes).atexit = False

    @property
    def is_closed(self) -> bool:
        """Whether close() was called."""
        return self._closed.is_set()

    @property
    def lane(self) -> Lane[grpc.Channel]:
        """The connection of the unary calls."""
        return self._lanes.first

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
            return Pending(stub.future(request, timeout=timeout_s, metadata=metadata), self)

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
        return self.lane.channel.unary_unary(
            method.path, method.request.SerializeToString, method.response.FromString
        )

    def exchange(self, method: Method[Request, Response], key: str) -> Exchange[Request, Response]:
        """Opens a stream. Raises Cancelled after close."""
        if self.is_closed:
            raise closed()
        metadata = self._address.metadata(key)

        def start(channel: grpc.Channel) -> Start:
            stub = channel.stream_stream(
                method.path, method.request.SerializeToString, method.response.FromString
            )
            return lambda requests: stub(requests, metadata=metadata)

        with _errors(self):
            return Exchange(self._lanes, start)

    def pause(self, wait_s: float) -> None:
        """Waits so long. Raises Cancelled as soon as the client is closed."""
        if wait_s and self._closed.wait(wait_s):
            raise closed()

    def close(self) -> None:
        """Ends every call that is under way."""
        self._closed.set()
        for channel in self._lanes.close():
            channel.close()


def _drop(lanes: Lanes[grpc.Channel]) -> None:
    for channel in lanes.close():
        channel.close()
