"""Owns what a client knows of the server's models, and its lists. Versions that it knows stay."""

from __future__ import annotations

from lstmserve.client import checks
from lstmserve.client._sync.connection import Connection
from lstmserve.client.calls import GET_MODEL, LIST_MODELS, LIST_SESSIONS
from lstmserve.client.records import ModelInfo, SessionInfo
from lstmserve.wire.v1 import lstm_pb2 as wire

_PAGE_SIZE = 1000


class Catalog:
    """The models by (name, version). Every call raises LstmServeError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._models: dict[tuple[str, int], ModelInfo] = {}

    def get(self, name: str, version: int | None = None) -> ModelInfo:
        """A model; None is the newest version, asked for each time as it may have changed."""
        number = checks.version(version)
        known = self._models.get((checks.name("model", name), number))
        if known is not None:
            return known
        request = wire.GetModelRequest(model=name, version=number)
        model = ModelInfo.read((self._connection.call(GET_MODEL, request)).model)
        self._models[model.name, model.version] = model
        return model

    def read_all(self) -> list[ModelInfo]:
        """Every served version of every model."""
        reply = self._connection.call(LIST_MODELS, wire.ListModelsRequest())
        return [ModelInfo.read(model) for model in reply.models]

    def read_sessions(self, model: str) -> list[SessionInfo]:
        """The open sessions of one model, or "": of all."""
        found: list[SessionInfo] = []
        asked = checks.name("model", model) if model else ""
        request = wire.ListSessionsRequest(page_size=_PAGE_SIZE, model=asked)
        while True:
            reply = self._connection.call(LIST_SESSIONS, request)
            found.extend(SessionInfo.read(session) for session in reply.sessions)
            if not reply.next_page_token:
                return found
            request.page_token = reply.next_page_token
