"""The client of one server, or of the router before many. Opens sessions and lists models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, Self, overload

import grpc
import numpy.typing as npt

from lstmserve.client import checks
from lstmserve.client._io.threads import awaitable_context
from lstmserve.client._sync.connection import Connection
from lstmserve.client._sync.session import Session
from lstmserve.client._sync.step_many import GroupStreams
from lstmserve.client.arrays import Array, Input, Output
from lstmserve.client.channels import Endpoint
from lstmserve.client.ledger import Ledger
from lstmserve.client.packing import PredictInput
from lstmserve.client.protocol import (
    CLOSE_SESSION,
    GET_MODEL,
    GET_SESSION,
    GET_STATE,
    LIST_MODELS,
    LIST_SESSIONS,
    OPEN_SESSION,
    PREDICT,
    IfExists,
    SessionIds,
    get_request,
    open_request,
)
from lstmserve.client.records import ModelInfo, SessionInfo
from lstmserve.client.retries import RetryPolicy
from lstmserve.client.state import State, state_tensors
from lstmserve.wire.v1 import lstm_pb2 as wire

_PAGE_SIZE = 1000


class Client:
    """A client of an lstmserve server at `target`, HOST:PORT.

    `timeout_s` limits one attempt at a call; a call that is safe to repeat is tried again until
    `retry_s_max` after its first failure (0: never; 2 s if no server has ever answered). `tls` True
    trusts the system's authorities; every call carries `token`. Sessions whose id the client makes
    are spread over `groups` groups: a router keeps a group on one server, and step_many sends one
    message for each group. The first call connects. Every call raises LstmServeError, and
    ValueError for an impossible argument.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        token: str | None = None,
        tls: bool | grpc.ChannelCredentials = False,
        timeout_s: float = 10.0,
        retry_s_max: float = 60.0,
        groups: int = 1,
    ) -> None:
        self._ids = SessionIds(groups)
        policy = RetryPolicy(timeout_s, retry_s_max)
        self._connection = Connection(Endpoint(target, token, tls), policy)
        self._group_streams = GroupStreams(self._connection)
        self._models: dict[tuple[str, int], ModelInfo] = {}  # a version never changes

    @awaitable_context
    def session(
        self,
        model: str,
        *,
        version: int | None = None,
        id: str | None = None,  # noqa: A002  # the contract's name
        state: State | Mapping[str, npt.ArrayLike] | None = None,
        ttl_s: float | None = None,
        if_exists: IfExists = "fail",
        keep: bool = False,
        replay_steps_max: int = 0,
    ) -> Session:
        """Opens a session of `model`, the newest version unless one is named.

        It starts from the model's initial state (zeros for an nn.LSTM), or from `state`: a State,
        or all of the model's states [*shape] by name. A taken `id` is refused,
        resumed (without using the state) or restarted. `ttl_s`: idle time after which the server
        forgets it. Leaving `with` closes it, unless `keep`. The session keeps up to
        `replay_steps_max` of its last steps, and sends them again to a server that lost them.
        Raises SessionExists, ModelNotFound, Overloaded and others.
        """
        if id is None:  # new, so that restarting it opens it, however often it is sent
            id, if_exists = self._ids.new(), "restart"  # noqa: A001  # the contract's name
        replay_steps_max = checks.count("replay_steps_max", replay_steps_max, 0)
        request = open_request(model, version, id, if_exists, ttl_s)
        if isinstance(state, Mapping):
            info = self.model(model, version=version)
            request.version = info.version
            state = State(state_tensors(info, state))
        if state is not None:
            request.state.CopyFrom(checks.instance("state", state, State).write())
        reply = self._connection.call(OPEN_SESSION, request, request.session_id)
        origin = request.state if reply.created else None
        return self._opened(reply.session, origin, keep, replay_steps_max)

    @awaitable_context
    def attach(self, id: str, *, keep: bool = True) -> Session:  # noqa: A002  # as session
        """The open session of that id, of any model. Raises SessionNotFound and others."""
        reply = self._connection.call(GET_SESSION, get_request(id), id)
        return self._opened(reply.session, None, keep, replay_steps_max=0)

    def _opened(
        self, session: wire.Session, origin: wire.State | None, keep: bool, replay_steps_max: int
    ) -> Session:
        ledger = Ledger(self.model(session.model, version=session.version), replay_steps_max)
        ledger.begin_life(session, origin)
        return Session(self._connection, ledger, keep)

    def step_many(
        self,
        inputs: Mapping[Session, Input],
        *,
        return_sequences: bool = True,
        timeout_s: float | None = None,
    ) -> dict[Session, Output]:
        """One step of each session, x and y as for Session.step, in few messages.

        Sessions of one model and one group share a message, whatever their lengths. An id of your
        own names its group as GROUP:REST; a session without a group travels alone. Raises
        ValueError before anything is sent, StepManyFailed when all have ended and some failed.
        """
        return self._group_streams.step(inputs, not return_sequences, timeout_s)

    @overload
    def predict(
        self,
        model: str,
        inputs: Iterable[Input],
        *,
        version: int | None = None,
        initial: Mapping[str, npt.ArrayLike] | None = None,
        return_sequences: bool = True,
        return_state: Literal[False] = False,
    ) -> list[Output]: ...

    @overload
    def predict(
        self,
        model: str,
        inputs: Iterable[Input],
        *,
        version: int | None = None,
        initial: Mapping[str, npt.ArrayLike] | None = None,
        return_sequences: bool = True,
        return_state: Literal[True],
    ) -> tuple[list[Output], dict[str, Array]]: ...

    def predict(
        self,
        model: str,
        inputs: Iterable[Input],
        *,
        version: int | None = None,
        initial: Mapping[str, npt.ArrayLike] | None = None,
        return_sequences: bool = True,
        return_state: bool = False,
    ) -> list[Output] | tuple[list[Output], dict[str, Array]]:
        """y of B whole sequences of any lengths, each as for Session.step; no state is kept.

        Each is as T steps of a new session: a model that waits for a whole window gives no y for
        the first rows. A model without states reads each sequence whole, and gives as many rows of
        y as its network computes: T, fewer, or 1.

        `initial` are the states [B, *shape] by name that they start from, by default the model's
        initial state. With `return_state` the result also has the final states, likewise by name.
        Raises ModelNotFound, Overloaded and others.
        """
        sequences = PredictInput.of(self.model(model, version=version), inputs, initial)
        last_only = not return_sequences
        requests = sequences.requests(last_only, return_state)
        replies = [self._connection.call(PREDICT, request) for request in requests]
        ys = sequences.outputs(replies, last_only)
        return (ys, sequences.finals(replies)) if return_state else ys

    def model(self, name: str, *, version: int | None = None) -> ModelInfo:
        """One model, the newest version unless one is named. Raises ModelNotFound and others."""
        number = checks.version(version)
        known = self._models.get((checks.name("model", name), number))
        if known is not None:
            return known
        request = wire.GetModelRequest(model=name, version=number)
        model = ModelInfo.read((self._connection.call(GET_MODEL, request)).model)
        self._models[model.name, model.version] = model
        return model

    def models(self) -> list[ModelInfo]:
        """Every served version of every model."""
        reply = self._connection.call(LIST_MODELS, wire.ListModelsRequest())
        return [ModelInfo.read(model) for model in reply.models]

    def sessions(self, model: str | None = None) -> list[SessionInfo]:
        """The open sessions of this server, or those of one model."""
        found: list[SessionInfo] = []
        asked = checks.name("model", model) if model else ""
        request = wire.ListSessionsRequest(page_size=_PAGE_SIZE, model=asked)
        while True:
            reply = self._connection.call(LIST_SESSIONS, request)
            found.extend(SessionInfo.read(session) for session in reply.sessions)
            if not reply.next_page_token:
                return found
            request.page_token = reply.next_page_token

    def info(self, id: str) -> SessionInfo:  # noqa: A002  # as session
        """The session of that id, even if the server no longer serves its model."""
        reply = self._connection.call(GET_SESSION, get_request(id), id)
        return SessionInfo.read(reply.session)

    def export(self, id: str) -> bytes:  # noqa: A002  # as session
        """The state of that session, as State.to_bytes() writes it, even if its model is gone."""
        request = wire.GetStateRequest(session_id=checks.session_id(id))
        reply = self._connection.call(GET_STATE, request, id)
        return reply.state.SerializeToString()

    def close_session(self, id: str) -> None:  # noqa: A002  # as session
        """Ends that session after its waiting steps, even if its model is gone; twice is no error.

        Raises SessionNotFound and others.
        """
        request = wire.CloseSessionRequest(session_id=checks.session_id(id))
        self._connection.call(CLOSE_SESSION, request, id)

    def close(self) -> None:
        """Ends the connection and every call under way. Sessions stay open until their TTL."""
        self._group_streams.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
