"""The service inference.GRPCInferenceService: which function answers which method.

It answers the calls about the server itself. It must not know what a request has in it.
"""

from __future__ import annotations

import functools
from importlib import metadata

from lstmserve.config import Config
from lstmserve.engine import Engine
from lstmserve.engine.errors import NotImplementedYet
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.access.auth import Authenticator
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.kserve.infer import STREAM, UNARY, InferCalls
from lstmserve.server.kserve.models import ModelQueries
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.rpc import Answer, Frame, Methods
from lstmserve.server.transport import UnaryCall

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
EXTENSIONS = ("sequence", "sequence(string_id)", "statistics", "model_configuration")
NO_LOADING = "models are those that its folder had when it started"
NO_SHARED_MEMORY = "tensors travel in the messages"
NO_SETTINGS = "it is set by the server's flags"
NOT_SERVED = {
    "RepositoryModelLoad": NO_LOADING,
    "RepositoryModelUnload": NO_LOADING,
    "SystemSharedMemoryStatus": NO_SHARED_MEMORY,
    "SystemSharedMemoryRegister": NO_SHARED_MEMORY,
    "SystemSharedMemoryUnregister": NO_SHARED_MEMORY,
    "CudaSharedMemoryStatus": NO_SHARED_MEMORY,
    "CudaSharedMemoryRegister": NO_SHARED_MEMORY,
    "CudaSharedMemoryUnregister": NO_SHARED_MEMORY,
    "TraceSetting": NO_SETTINGS,
    "LogSettings": NO_SETTINGS,
}


def methods(
    engine: Engine, metrics: Metrics, config: Config, door: Authenticator, pending: PendingBytes
) -> Methods:
    """The service's methods by name. They parse their messages, so that a bad one gets our
    error."""
    frame = Frame(
        door,
        metrics,
        pending,
        call_s_max=config.call_s_max,
        write_s_max=config.write_s_max,
        service=SERVICE,
    )
    server, models = _ServerQueries(engine), ModelQueries(engine, metrics)
    unaries = (
        ("ModelReady", pb.ModelReadyRequest, models.ready),
        ("ServerMetadata", pb.ServerMetadataRequest, server.metadata),
        ("ModelMetadata", pb.ModelMetadataRequest, models.metadata),
        ("ModelConfig", pb.ModelConfigRequest, models.config),
        ("ModelStatistics", pb.ModelStatisticsRequest, models.statistics),
        ("RepositoryIndex", pb.RepositoryIndexRequest, models.index),
    )
    # Probes need no token: these two say what the health service says to every caller.
    probes: dict[str, Answer] = {"ServerLive": server.live, "ServerReady": server.ready}
    probes |= {name: _refusal(name, why) for name, why in NOT_SERVED.items()}
    infer = InferCalls(engine, metrics, pending)
    receive = functools.partial(infer.receive, frame)
    count_failed = functools.partial(infer.steps.count_failed, UNARY)
    return Methods(
        SERVICE,
        {
            **{name: frame.unary(name, kind, method) for name, kind, method in unaries},
            **{name: frame.probes(name, answer) for name, answer in probes.items()},
            UNARY: frame.calls(UNARY, receive, count_failed),
        },
        {STREAM: frame.bidi(STREAM, infer.begin, config.stream_window)},
    )


class _ServerQueries:
    """Answers whether the server is alive, whether it is ready, and what it is called."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def live(self, call: UnaryCall) -> bytes:
        return pb.ServerLiveResponse(live=True).SerializeToString()

    def ready(self, call: UnaryCall) -> bytes:
        """Whether the server is ready: its port opens when all models are proved, and a drain ends
        that."""
        return pb.ServerReadyResponse(ready=not self._engine.is_draining).SerializeToString()

    async def metadata(
        self, request: pb.ServerMetadataRequest, tenant: Tenant
    ) -> pb.ServerMetadataResponse:
        version = metadata.version("lstmserve")
        return pb.ServerMetadataResponse(name="lstmserve", version=version, extensions=EXTENSIONS)


def _refusal(name: str, why: str) -> Answer:
    def refuse(call: UnaryCall) -> bytes:
        raise NotImplementedYet(f"{name} is not served by lstmserve: {why}")

    return refuse
