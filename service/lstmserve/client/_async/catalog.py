"""Owns what a client knows of the server's models. Forgets nothing it was told: versions stay."""

from __future__ import annotations

from lstmserve.client._aio import Transport
from lstmserve.client.calls import GET_MODEL, LIST_MODELS
from lstmserve.client.records import ModelInfo
from lstmserve.wire.v1 import lstm_pb2 as wire


class AsyncCatalog:
    """The models by (name, version). Every call raises LstmServeError."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._models: dict[tuple[str, int], ModelInfo] = {}

    async def get(self, name: str, version: int | None = None) -> ModelInfo:
        """A model; None is the newest version, asked for each time as it may have changed."""
        known = self._models.get((name, version or 0))
        if known is not None:
            return known
        request = wire.GetModelRequest(model=name, version=version or 0)
        model = ModelInfo.read((await self._transport.call(GET_MODEL, request)).model)
        self._models[model.name, model.version] = model
        return model

    async def read_all(self) -> list[ModelInfo]:
        """Every served version of every model."""
        reply = await self._transport.call(LIST_MODELS, wire.ListModelsRequest())
        return [ModelInfo.read(model) for model in reply.models]
