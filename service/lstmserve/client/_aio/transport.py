"""Owns the connections of a client and its unary calls, by grpc.aio. Tries once.

Runs on the one event loop that made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import Any, Generic

import grpc
from grpc import aio

from lstmserve.client._aio.exchange import Exchange, Start
from lstmserve.client.calls import Address, Method, Request, Response
from lstmserve.client.lanes import Lane, Lanes, refused
from lstmserve.client.status import closed

guard = contextlib.nullcontext  # one loop, and no await inside: nothing to lock


class Pending(Generic[Response]):
    """A unary call under way. result() or cancel() ends it, always."""

    def __init__(self, call: aio.UnaryUnaryCall[Any, Response], lane: Lane[aio.Channel]) -> None:
        self._call = call
        self._lane = lane

    async def result(self) -> Response:
        """The reply. Raises LstmServeError."""
        try:
            return await self._call
        except grpc.RpcError as error:
            raise refused(error, self._lane) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise closed() from None

    def cancel(self) -> None:
        """Gives up; nothing happens when it is done."""
        self._call.cancel()


class Transport:
    """Connections, made at the first call. After close every call raises Cancelled."""

    def __init__(self, address: Address) -> None:
        """Raises RuntimeError outside of a coroutine."""
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError("AsyncClient belongs to a loop: make it in a coroutine") from None
        self._address = address
        self._lanes: Lanes[aio.Channel] = Lanes(lambda: address.open(aio))
        self._closed = asyncio.Event()
        # A client that is dropped unclosed would leave its streams' tasks behind.
        self._drop = weakref.finalize(self, _drop, self._loop, self._lanes)
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
        lane = self._lanes.first
        stub = lane.channel.unary_unary(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        metadata = self._address.metadata(key)
        return Pending(stub(request, timeout=timeout_s, metadata=metadata), lane)

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
        metadata = self._address.metadata(key)

        def start(channel: aio.Channel) -> Start:
            stub = channel.stream_stream(
                method.path, method.request.SerializeToString, method.response.FromString
            )
            return lambda requests: stub(requests, metadata=metadata)

        return Exchange(self._lanes, start)

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
        await asyncio.gather(*(channel.close() for channel in self._lanes.close()))


def _drop(loop: asyncio.AbstractEventLoop, lanes: Lanes[aio.Channel]) -> None:
    """Closes the channels on their loop; the garbage collector may call from any thread."""

    def close() -> None:
        for channel in lanes.close():
            task = loop.create_task(channel.close(None))
            _closing.add(task)
            task.add_done_callback(_closing.discard)

    if not loop.is_closed():
        loop.call_soon_threadsafe(close)


_closing: set[asyncio.Task[None]] = set()  # a loop keeps no task alive
