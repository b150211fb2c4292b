"""Translates the calls about models: what they take and give, and their statistics."""

from __future__ import annotations

from lstmserve.engine import Engine, Model
from lstmserve.engine.errors import ModelNotFound, ModelNotHereYet, ModelRetired
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.kserve.asking import read_version
from lstmserve.server.kserve.dialect import Dialect
from lstmserve.server.kserve.model_config import PLATFORM, model_config
from lstmserve.server.kserve.reading import input_name, shown_shapes
from lstmserve.server.kserve.statistics import model_statistics

READY = "READY"


class ModelCalls:
    """The handlers; one for all calls."""

    def __init__(self, engine: Engine, dialect: Dialect) -> None:
        self._engine = engine
        self._dialect = dialect

    async def ready(self, request: pb.ModelReadyRequest, tenant: Tenant) -> pb.ModelReadyResponse:
        """Every model is ready from the start; one that is not served is not."""
        try:
            self._model(request.name, request.version)
        except (ModelNotFound, ModelRetired, ModelNotHereYet):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=not self._engine.is_draining)

    async def metadata(
        self, request: pb.ModelMetadataRequest, tenant: Tenant
    ) -> pb.ModelMetadataResponse:
        """Inputs and outputs that a request has without being asked; -1 is any length."""
        model = self._model(request.name, request.version)
        spec = model.spec
        shapes = shown_shapes(spec)
        given, wanted = (
            pb.ModelMetadataResponse.TensorMetadata(
                name=input_name(spec),
                datatype="INT64" if spec.num_embeddings else "FP32",
                shape=(-1, *shapes[0]),
            ),
            pb.ModelMetadataResponse.TensorMetadata(
                name="y", datatype="FP32", shape=(-1, *shapes[1])
            ),
        )
        versions = sorted(each.version for each in self._engine.models if each.name == model.name)
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=map(str, versions),
            platform=PLATFORM,
            inputs=[given],
            outputs=[wanted],
        )

    async def config(
        self, request: pb.ModelConfigRequest, tenant: Tenant
    ) -> pb.ModelConfigResponse:
        """As Triton would have it in config.pbtxt; nobody wrote it."""
        model = self._model(request.name, request.version)
        return pb.ModelConfigResponse(config=model_config(model, self._engine.config))

    async def statistics(
        self, request: pb.ModelStatisticsRequest, tenant: Tenant
    ) -> pb.ModelStatisticsResponse:
        """Of the versions asked for, over all dialects, since the start."""
        if request.name:
            self._model(request.name, request.version)
        version = read_version(request.version)
        found = [
            model
            for model in self._engine.models
            if request.name in ("", model.name) and version in (0, model.version)
        ]
        return pb.ModelStatisticsResponse(
            model_stats=[model_statistics(each, self._dialect.counters(each)) for each in found]
        )

    async def index(
        self, request: pb.RepositoryIndexRequest, tenant: Tenant
    ) -> pb.RepositoryIndexResponse:
        """Every version that is served; all of them are ready."""
        kind = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(
            models=[
                kind(name=model.name, version=str(model.version), state=READY)
                for model in self._engine.models
            ]
        )

    def _model(self, name: str, version: str) -> Model:
        return self._engine.model(name, read_version(version))
