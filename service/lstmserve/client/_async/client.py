"""Owns the connection to one server, or to the router before many. Never retries a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, Self, overload

import grpc
import numpy.typing as npt

from lstmserve.client._aio import Transport, opening
from lstmserve.client._async.catalog import AsyncCatalog
from lstmserve.client._async.many import AsyncGroups
from lstmserve.client._async.session import AsyncSession
from lstmserve.client.arrays import Floats, state_parts
from lstmserve.client.calls import (
    GET_SESSION,
    LIST_SESSIONS,
    OPEN_SESSION,
    PREDICT,
    Address,
    IfExists,
    open_request,
)
from lstmserve.client.ids import Ids
from lstmserve.client.records import ModelInfo, SessionInfo, State
from lstmserve.client.sequences import Sequences
from lstmserve.wire.v1 import lstm_pb2 as wire

_PAGE_SIZE = 1000


class AsyncClient:
    """A client of an lstmserve server at `target`, HOST:PORT.

    `timeout_s` is the longest that any one call takes. `tls` True trusts the system's authorities;
    `token` goes with every call. Sessions whose id the client makes are spread over `groups`
    groups: a router keeps a group on one server, and step_many sends a message a group.
    Connecting happens at the first call. Every call raises LstmServeError.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        token: str | None = None,
        tls: bool | grpc.ChannelCredentials = False,
        timeout_s: float = 10.0,
        groups: int = 1,
    ) -> None:
        self._ids = Ids(groups)
        self._transport = Transport(Address(target, token, tls, timeout_s))
        self._groups = AsyncGroups(self._transport, timeout_s)
        self._catalog = AsyncCatalog(self._transport)

    @opening
    async def session(
        self,
        model: str,
        *,
        version: int | None = None,
        id: str | None = None,  # noqa: A002  # the contract's name
        h0: npt.ArrayLike | None = None,
        c0: npt.ArrayLike | None = None,
        state: State | None = None,
        ttl_s: float | None = None,
        if_exists: IfExists = "fail",
        keep: bool = False,
    ) -> AsyncSession:
        """Opens a session of `model`, the newest version unless one is named.

        It starts from zeros, from h0 [layers, proj_size or hidden_size] and c0 [layers,
        hidden_size] (one alone: the other is zeros), or from `state`. A taken `id` is refused,
        resumed (then no state is used) or restarted. `ttl_s`: idle time after which the server
        forgets it. Leaving `with` closes it, unless `keep`. Raises ValueError for a shape,
        SessionExists, ModelNotFound, ModelMismatch, Overloaded and others.
        """
        request = open_request(model, version or 0, id or self._ids.new(), if_exists)
        if ttl_s is not None:
            request.ttl.FromMilliseconds(round(ttl_s * 1000))
        if h0 is not None or c0 is not None:
            if state is not None:
                raise ValueError("either state, or h0 and c0")
            info = await self._catalog.get(model, version)
            request.version = info.version
            state = State(*state_parts(info, h0, c0))
        if state is not None:
            request.state.CopyFrom(state.write())
        reply = await self._transport.call(OPEN_SESSION, request, request.session_id)
        return await self._opened(reply.session, keep)

    @opening
    async def attach(self, id: str, *, keep: bool = True) -> AsyncSession:  # noqa: A002  # as session
        """The open session of that id, of whatever model. Raises SessionNotFound and others."""
        request = wire.GetSessionRequest(session_id=id)
        reply = await self._transport.call(GET_SESSION, request, id)
        return await self._opened(reply.session, keep)

    async def _opened(self, session: wire.Session, keep: bool) -> AsyncSession:
        model = await self._catalog.get(session.model, session.version)
        return AsyncSession(self._transport, model, session, keep)

    async def step_many(
        self,
        inputs: Mapping[AsyncSession, npt.ArrayLike],
        *,
        return_sequences: bool = True,
        timeout_s: float | None = None,
    ) -> dict[AsyncSession, Floats]:
        """One step of each session, x and y as for Session.step, in few messages.

        Sessions of one model and one group share a message, whatever their lengths; an id that
        you made yourself names its group as GROUP:REST, and without one it travels alone. Raises
        ValueError before anything is sent, StepManyFailed when some or all sessions failed.
        """
        return await self._groups.step(inputs, not return_sequences, timeout_s)

    @overload
    async def predict(
        self,
        model: str,
        inputs: Iterable[npt.ArrayLike],
        *,
        version: int | None = None,
        h0: npt.ArrayLike | None = None,
        c0: npt.ArrayLike | None = None,
        return_sequences: bool = True,
        return_state: Literal[False] = False,
    ) -> list[Floats]: ...

    @overload
    async def predict(
        self,
        model: str,
        inputs: Iterable[npt.ArrayLike],
        *,
        version: int | None = None,
        h0: npt.ArrayLike | None = None,
        c0: npt.ArrayLike | None = None,
        return_sequences: bool = True,
        return_state: Literal[True],
    ) -> tuple[list[Floats], tuple[Floats, Floats]]: ...

    async def predict(
        self,
        model: str,
        inputs: Iterable[npt.ArrayLike],
        *,
        version: int | None = None,
        h0: npt.ArrayLike | None = None,
        c0: npt.ArrayLike | None = None,
        return_sequences: bool = True,
        return_state: bool = False,
    ) -> list[Floats] | tuple[list[Floats], tuple[Floats, Floats]]:
        """y of B whole sequences of any lengths, x and y each as for Session.step; nothing is kept.

        h0 [layers x directions, B, proj_size or hidden_size] and c0 [layers x directions, B,
        hidden_size] default to zeros. With `return_state` also (hn, cn), shaped as h0 and c0.
        Raises ValueError for a shape, ModelNotFound, Overloaded and others.
        """
        info = await self._catalog.get(model, version)
        sequences = Sequences.of(info, inputs, h0, c0)
        last_only = not return_sequences
        requests = sequences.requests(last_only, return_state)
        replies = [await self._transport.call(PREDICT, request) for request in requests]
        ys = sequences.outputs(replies, last_only)
        return (ys, sequences.states(replies)) if return_state else ys

    async def model(self, name: str, *, version: int | None = None) -> ModelInfo:
        """One model, the newest version unless one is named. Raises ModelNotFound and others."""
        return await self._catalog.get(name, version)

    async def models(self) -> list[ModelInfo]:
        """Every served version of every model."""
        return await self._catalog.read_all()

    async def sessions(self, model: str | None = None) -> list[SessionInfo]:
        """The open sessions of this server, or those of one model."""
        found: list[SessionInfo] = []
        request = wire.ListSessionsRequest(page_size=_PAGE_SIZE, model=model or "")
        while True:
            reply = await self._transport.call(LIST_SESSIONS, request)
            found.extend(SessionInfo.read(session) for session in reply.sessions)
            if not reply.next_page_token:
                return found
            request.page_token = reply.next_page_token

    async def close(self) -> None:
        """Ends the connection and every call under way. Sessions live on until their TTL."""
        await self._groups.close()
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
