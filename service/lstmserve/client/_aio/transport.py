"""Owns the one connection of a client and its unary calls, by grpc.aio. Tries once.

Runs on the one event loop that made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import Any, Generic

import grpc
from grpc import aio

from lstmserve.client._aio.exchange import Exchange
from lstmserve.client.calls import Address, Method, Request, Response
from lstmserve.client.status import closed, from_rpc

guard = contextlib.nullcontext  # one loop, and no await inside: nothing to lock


class Pending(Generic[Response]):
    """A unary call under way. result() or cancel() ends it, always."""

    def __init__(self, call: aio.UnaryUnaryCall[Any, Response]) -> None:
        self._call = call

    async def result(self) -> Response:
        """The reply. Raises LstmServeError."""
        try:
            return await self._call
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise closed() from None

    def cancel(self) -> None:
        """Gives up; nothing happens when it is done."""
        self._call.cancel()


class Transport:
    """A connection, made at the first call. After close every call raises Cancelled."""

    def __init__(self, address: Address) -> None:
        """Raises RuntimeError outside of a coroutine."""
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError("AsyncClient belongs to a loop: make it in a coroutine") from None
        self._address = address
        self._channel: aio.Channel = address.open(aio)
        self._closed = asyncio.Event()
        # A client that is dropped unclosed would leave its streams' tasks behind.
        self._drop = weakref.finalize(self, _drop, self._loop, self._channel)
        self._drop.atexit = False

    def begin(
        self,
        method: Method[Request, Response],
        request: Request,
        key: str,
        timeout_s: float,
    ) -> Pending[Response]:
        """Sends a unary request; `key` is what a router hashes. Raises Cancelled after close."""
        self._check()
        stub = self._channel.unary_unary(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        return Pending(stub(request, timeout=timeout_s, metadata=self._address.metadata(key)))

    def _check(self) -> None:
        if self._closed.is_set():
            raise closed()
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("this AsyncClient is of another event loop: make one for each")

    async def call(
        self,
        method: Method[Request, Response],
        request: Request,
        key: str,
        timeout_s: float,
    ) -> Response:
        """A unary call, whole. Raises LstmServeError."""
        return await self.begin(method, request, key, timeout_s).result()

    def exchange(self, method: Method[Request, Response], key: str) -> Exchange[Request, Response]:
        """Opens a stream. Raises Cancelled after close."""
        self._check()
        stub = self._channel.stream_stream(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        metadata = self._address.metadata(key)
        return Exchange(lambda requests: stub(requests, metadata=metadata))

    async def pause(self, wait_s: float) -> None:
        """Waits so long. Raises Cancelled as soon as the client is closed."""
        if not wait_s:
            return
        try:
            async with asyncio.timeout(wait_s):
                await self._closed.wait()
        except TimeoutError:
            return
        raise closed()

    async def close(self) -> None:
        """Ends every call that is under way."""
        self._closed.set()
        self._drop.detach()
        await self._channel.close()


def _drop(loop: asyncio.AbstractEventLoop, channel: aio.Channel) -> None:
    """Closes the channel on its loop; the garbage collector may call from any thread."""

    def close() -> None:
        task = loop.create_task(channel.close(None))
        _closing.add(task)
        task.add_done_callback(_closing.discard)

    if not loop.is_closed():
        loop.call_soon_threadsafe(close)


_closing: set[asyncio.Task[None]] = set()  # a loop keeps no task alive
