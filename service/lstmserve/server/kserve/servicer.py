"""The table of calls: which function answers which method of inference.GRPCInferenceService."""

from __future__ import annotations

import functools

from lstmserve.config import Config
from lstmserve.engine import Engine
from lstmserve.engine.errors import NotImplementedYet
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.access.auth import Authenticator
from lstmserve.server.inbox import Inbox
from lstmserve.server.kserve.dialect import Dialect
from lstmserve.server.kserve.infer_calls import InferCalls
from lstmserve.server.kserve.inference import read_all
from lstmserve.server.kserve.model_calls import ModelCalls
from lstmserve.server.kserve.server_calls import ServerCalls
from lstmserve.server.kserve.stream_calls import StreamCalls
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.rpc import Answer, Frame, Methods
from lstmserve.server.transport import UnaryCall

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
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
    """By name, as the native dialect's."""
    frame = Frame(
        door,
        metrics,
        pending,
        call_s_max=config.call_s_max,
        write_s_max=config.write_s_max,
        service=SERVICE,
    )
    dialect = Dialect(engine, metrics)
    inbox = Inbox(engine.batch_loop, functools.partial(read_all, dialect))
    server, models = ServerCalls(engine), ModelCalls(engine, dialect)
    unaries = (
        ("ModelReady", pb.ModelReadyRequest, models.ready),
        ("ServerMetadata", pb.ServerMetadataRequest, server.metadata),
        ("ModelMetadata", pb.ModelMetadataRequest, models.metadata),
        ("ModelConfig", pb.ModelConfigRequest, models.config),
        ("ModelStatistics", pb.ModelStatisticsRequest, models.statistics),
        ("RepositoryIndex", pb.RepositoryIndexRequest, models.index),
    )
    # Probes have no token; these two tell what the health service tells everybody.
    probes: dict[str, Answer] = {"ServerLive": server.live, "ServerReady": server.ready}
    probes |= {name: _refusal(name, why) for name, why in NOT_SERVED.items()}
    unary = InferCalls(dialect, inbox, frame)
    streamed = StreamCalls(dialect, inbox, pending)
    return Methods(
        SERVICE,
        {
            **{name: frame.unary(name, kind, method) for name, kind, method in unaries},
            **{name: frame.probes(name, answer) for name, answer in probes.items()},
            "ModelInfer": frame.calls("ModelInfer", unary.receive, unary.count_failed),
        },
        {"ModelStreamInfer": frame.bidi("ModelStreamInfer", streamed.begin, config.stream_window)},
    )


def _refusal(name: str, why: str) -> Answer:
    def refuse(call: UnaryCall) -> bytes:
        raise NotImplementedYet(f"{name} is not served by lstmserve: {why}")

    return refuse
