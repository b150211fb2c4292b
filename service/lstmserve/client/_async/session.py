"""Owns one conversation with the server. Keeps no state of the model and never repeats a step."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Final

import numpy.typing as npt

from lstmserve.client import ids
from lstmserve.client._aio import Reply, Source, Transport, opening, pump
from lstmserve.client.arrays import Floats, Rows, outputs, rows, state_parts
from lstmserve.client.calls import (
    CLOSE_SESSION,
    GET_SESSION,
    GET_STATE,
    OPEN_SESSION,
    STEP,
    STEP_STREAM,
    open_request,
)
from lstmserve.client.errors import LstmServeError
from lstmserve.client.packing import step_request
from lstmserve.client.records import ModelInfo, SessionInfo, State
from lstmserve.wire.v1 import lstm_pb2 as wire

WINDOW: Final = 32  # unanswered steps of a stream; servers take 64


class AsyncSession:
    """One client's conversation with a model: steps go in, the server remembers.

    Made by `session()` of a client. Leaving `with` closes it unless `keep`. Every call raises
    LstmServeError, of which errors.py has a subclass for each thing to handle.
    """

    def __init__(
        self, transport: Transport, model: ModelInfo, opened: wire.Session, keep: bool
    ) -> None:
        self._transport = transport
        self.model_info = model
        self.keep = keep
        self._is_closed = False
        self._renew(opened)

    def _renew(self, opened: wire.Session) -> None:
        self._opened = opened
        self.step_count: int = opened.step
        self.durable_step: int = opened.durable_step

    @property
    def id(self) -> str:
        """GROUP:REST or plain; unique on the server."""
        return self._opened.id

    @property
    def model(self) -> str:
        """The model's name."""
        return self._opened.model

    @property
    def version(self) -> int:
        """The model's version, fixed for the session's life."""
        return self._opened.version

    @property
    def incarnation(self) -> int:
        """Which life of the id this is; every call is checked against it."""
        return self._opened.incarnation

    def __repr__(self) -> str:
        return f"<Session {self.id} of {self.model}:{self.version}, step {self.step_count}>"

    async def step(
        self, x: npt.ArrayLike, *, return_sequences: bool = True, timeout_s: float | None = None
    ) -> Floats:
        """One step: x [I] gives y [O], x [T, I] gives y [T, O]; nothing else is guessed.

        A model of tokens takes an integer for x [I] and integers [T] for x [T, I]. With
        `return_sequences` False y is that of the last time step, [O]. All T rows are applied or
        none. Raises ValueError for any other shape, and LstmServeError.
        """
        sent = rows(self.model_info, x)
        request = step_request(self, sent, not return_sequences)
        reply = await self._transport.call(STEP, request, self.id, timeout_s)
        return self._output(sent, reply, not return_sequences)

    async def stream(
        self,
        xs: Source[npt.ArrayLike],
        *,
        window: int = WINDOW,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Floats]:
        """y of each x, in order, each x as for step(); steps are sent ahead of their replies.

        About `window` are unanswered at most; `timeout_s` is for each. Raises what step() raises,
        for the first step that fails, and what `xs` raises, after the replies before it. Steps
        sent after one that the server refused may have been applied: info() tells.
        """
        exchange = self._transport.exchange(STEP_STREAM, ids.group(self.id))

        def send(x: npt.ArrayLike) -> tuple[Rows, Reply[wire.StepResponse]]:
            sent = rows(self.model_info, x)
            return sent, exchange.post(step_request(self, sent, last_only=False), timeout_s)

        try:
            async with aclosing(pump(xs, send, window)) as replies:
                async for sent, reply in replies:
                    yield self._output(sent, await reply.result(), last_only=False)
        finally:
            await exchange.close()

    def _output(self, sent: Rows, reply: wire.StepResponse, last_only: bool) -> Floats:
        self.note(reply.step, reply.durable_step)
        return outputs(self.model_info, reply.y, sent.single, last_only)

    def note(self, step: int, durable_step: int) -> None:
        """Takes up a reply's numbers; replies of several threads may come in any order."""
        self.step_count = max(self.step_count, step)
        self.durable_step = max(self.durable_step, durable_step)

    async def state(self) -> tuple[Floats, Floats]:
        """(h, c) after the last applied step.

        h float32 [layers, proj_size or hidden_size], c float32 [layers, hidden_size].
        """
        state = await self.export()
        return state.h, state.c

    async def export(self) -> State:
        """The state after the last applied step, to be kept or opened elsewhere."""
        request = wire.GetStateRequest(session_id=self.id, incarnation=self.incarnation)
        reply = await self._transport.call(GET_STATE, request, self.id)
        return State.read(reply.state, self.model_info.layers)

    async def set_state(self, h: npt.ArrayLike, c: npt.ArrayLike) -> None:
        """Goes on from this state, shaped as state() gives it: a new incarnation of the same id.

        Steps that wait meanwhile end as SessionReplaced. Raises ValueError for a shape.
        """
        state = State(*state_parts(self.model_info, h, c), step=self.step_count)
        request = open_request(self.model, self.version, self.id, "restart")
        request.ttl.CopyFrom(self._opened.ttl)
        request.state.CopyFrom(state.write())
        reply = await self._transport.call(OPEN_SESSION, request, self.id)
        self._renew(reply.session)

    @opening
    async def fork(self, id: str | None = None) -> AsyncSession:  # noqa: A002  # the contract's name
        """A new session that goes on from this one's last applied step; both live on."""
        request = open_request(self.model, self.version, id or ids.beside(self.id))
        request.ttl.CopyFrom(self._opened.ttl)
        request.fork_of = self.id
        reply = await self._transport.call(OPEN_SESSION, request, request.session_id)
        return AsyncSession(self._transport, self.model_info, reply.session, keep=False)

    async def info(self) -> SessionInfo:
        """The session as the server sees it now."""
        request = wire.GetSessionRequest(session_id=self.id)
        reply = await self._transport.call(GET_SESSION, request, self.id)
        return SessionInfo.read(reply.session)

    async def close(self) -> None:
        """Ends the session, after the steps that wait; twice is fine."""
        if not self._is_closed:
            request = wire.CloseSessionRequest(session_id=self.id, incarnation=self.incarnation)
            await self._transport.call(CLOSE_SESSION, request, self.id)
            self._is_closed = True

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.keep:
            return
        try:
            await self.close()
        except LstmServeError:
            if error is None:  # else that error is the news
                raise
