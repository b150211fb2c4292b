"""Translates the calls about models. Decides nothing."""

from __future__ import annotations

from lstmserve.engine import Engine, Model
from lstmserve.server.access.tenants import Tenant
from lstmserve.wire.v1 import lstm_pb2 as pb


class ModelCalls:
    """The handlers; one for all calls."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def list_models(
        self, request: pb.ListModelsRequest, tenant: Tenant
    ) -> pb.ListModelsResponse:
        """Every served version."""
        return pb.ListModelsResponse(models=[self._model(model) for model in self._engine.models])

    async def get_model(self, request: pb.GetModelRequest, tenant: Tenant) -> pb.GetModelResponse:
        """One version, the newest unless it is named."""
        model = self._engine.model(request.model, request.version)
        return pb.GetModelResponse(model=self._model(model))

    def _model(self, model: Model) -> pb.Model:
        spec, config = model.spec, self._engine.config
        return pb.Model(
            name=model.name,
            version=model.version,
            fingerprint=model.fingerprint,
            device=model.device,
            length_max=config.length_max,
            message_bytes_max=config.message_bytes_max or 0,
            spec=pb.ModelSpec(
                input_size=spec.input_size,
                hidden_size=spec.hidden_size,
                num_layers=spec.num_layers,
                proj_size=spec.proj_size,
                bidirectional=spec.bidirectional,
                output_size=spec.output_size,
                num_embeddings=spec.num_embeddings,
            ),
        )
