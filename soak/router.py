"""A router before the fleet, as Envoy would be: one address, sessions hashed, no retries.

It passes on the errors of servers, and UNAVAILABLE if a server does not answer. Unary calls only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from lstmserve.wire.v1 import lstm_pb2 as wire
from soak.calls import Calls, Refused
from soak.conversation import LEAVING
from soak.fleet import Fleet
from soak.timing import pause


class Router(grpc.GenericRpcHandler):
    """Forwards calls, and enters every Step in the ledgers of `calls`."""

    def __init__(self, fleet: Fleet, calls: Calls) -> None:
        self._fleet, self._calls = fleet, calls

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Forwards the call by its x-session-id."""
        name = details.method.rpartition("/")[2]
        key = str(dict(details.invocation_metadata).get("x-session-id", ""))

        async def forward(content: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            try:
                return await self._forward(name, key, content)
            except Refused as error:
                await context.abort(error.code, error.text, error.trailers)
                raise AssertionError("abort() raises") from error

        return grpc.unary_unary_rpc_method_handler(forward)

    async def _forward(self, name: str, key: str, content: bytes) -> bytes:
        while (serving := self._fleet.home(key)) is None:
            await pause(0.02)
        request = getattr(wire, f"{name}Request").FromString(content)
        try:
            if name == "Step":
                reply = await self._calls.step(serving, request)
            else:
                kind = getattr(wire, f"{name}Response")
                reply = await self._calls.call(serving, name, request, kind)
        except Refused as error:
            if error.code is grpc.StatusCode.UNAVAILABLE and error.reason in LEAVING:
                self._fleet.suspect(serving)
            raise
        return bytes(reply.SerializeToString())


@asynccontextmanager
async def router_of(fleet: Fleet, calls: Calls) -> AsyncIterator[str]:
    """Runs a router while the block runs. Yields its target."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Router(fleet, calls),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
