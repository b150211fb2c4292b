"""Translates the calls about the server: is it alive, ready, and what does it speak."""

from __future__ import annotations

from importlib import metadata

from lstmserve.engine import Engine
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.transport import UnaryCall

EXTENSIONS = ("sequence", "sequence(string_id)", "statistics", "model_configuration")


class ServerCalls:
    """The handlers; one for all calls."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def live(self, call: UnaryCall) -> bytes:
        """Who answers lives."""
        return pb.ServerLiveResponse(live=True).SerializeToString()

    def ready(self, call: UnaryCall) -> bytes:
        """The port opens when all models are proved; a server that drains is not ready."""
        return pb.ServerReadyResponse(ready=not self._engine.is_draining).SerializeToString()

    async def metadata(
        self, request: pb.ServerMetadataRequest, tenant: Tenant
    ) -> pb.ServerMetadataResponse:
        """Name, release and extensions."""
        version = metadata.version("lstmserve")
        return pb.ServerMetadataResponse(name="lstmserve", version=version, extensions=EXTENSIONS)
