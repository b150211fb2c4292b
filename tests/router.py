"""A router for tests: it forwards every call to a server, and notes what a router would read."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from zoo import Zoo

STREAMS = ("StepStream", "StepMany")


class Router(grpc.GenericRpcHandler):
    """Knows no message, only bytes."""

    def __init__(self, target: str, threads: int = 8) -> None:
        self._channel = grpc.insecure_channel(target)
        self._server = grpc.server(ThreadPoolExecutor(threads))
        self._server.add_generic_rpc_handlers((self,))
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self.target = f"127.0.0.1:{port}"
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Notes the call, and forwards it without a change."""
        name = details.method.rpartition("/")[2]
        self.calls.append((name, dict(details.invocation_metadata)))
        if name in STREAMS:
            forward = self._channel.stream_stream(details.method)
            return grpc.stream_stream_rpc_method_handler(lambda requests, _: forward(requests))
        forward = self._channel.unary_unary(details.method)
        return grpc.unary_unary_rpc_method_handler(lambda request, _: forward(request))

    def keys(self) -> list[tuple[str, str | None]]:
        """The calls since the last time, each with the key that a router hashes."""
        calls, self.calls = self.calls, []
        return [(name, metadata.get("x-session-id")) for name, metadata in calls]

    def stop(self) -> None:
        """Stops the router."""
        self._server.stop(None).wait()
        self._channel.close()


@pytest.fixture
def router(zoo: Zoo) -> Iterator[Router]:
    """A router before the zoo's server."""
    router = Router(zoo.target)
    yield router
    router.stop()
