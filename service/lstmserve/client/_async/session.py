"""One conversation with the server, as users hold it. Keeps no state of the model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Final

import numpy.typing as npt

from lstmserve.client import checks
from lstmserve.client._async.connection import AsyncConnection, AsyncReconnectingStream
from lstmserve.client._async.delivery import AsyncStepDelivery
from lstmserve.client._io.aio import Source, awaitable_context, read_ahead
from lstmserve.client.arrays import Input, Output, output, step_input
from lstmserve.client.ledger import Ledger
from lstmserve.client.packing import join, joinable
from lstmserve.client.protocol import (
    CLOSE_SESSION,
    GET_SESSION,
    OPEN_SESSION,
    STEP_STREAM,
    group,
    open_request,
    sibling_id,
)
from lstmserve.client.records import SessionInfo
from lstmserve.client.state import State, state_tensors
from lstmserve.errors import LstmServeError, SessionLost
from lstmserve.wire.v1 import lstm_pb2 as wire

WINDOW: Final = 32  # steps that a stream reads ahead


class AsyncSession:
    """One client's conversation with a model: the client sends steps, the server keeps the state.

    `session()` of a client makes it. Leaving `with` closes it unless `keep`. Every call raises
    LstmServeError, of which errors.py has a subclass for each thing to handle. Steps run one after
    the other, and each counts once, however often the connection breaks. If a step ended with an
    error whose `applied` is None, the next call completes it; a call with the same x is that step.
    `model_info` has the sizes of its model.
    """

    def __init__(self, connection: AsyncConnection, ledger: Ledger, keep: bool) -> None:
        self._connection = connection
        self._delivery = AsyncStepDelivery(connection, ledger)
        self.model_info = ledger.model
        self._keep = keep
        self._is_closed = False

    @property
    def id(self) -> str:
        """GROUP:REST or plain; unique on the server."""
        return self._delivery.ledger.session.id

    @property
    def model(self) -> str:
        """The model's name."""
        return self.model_info.name

    @property
    def version(self) -> int:
        """The model's version, fixed for the session's life."""
        return self.model_info.version

    @property
    def incarnation(self) -> int:
        """Distinguishes this session from others that had its id; the server checks every call."""
        return self._delivery.ledger.session.incarnation

    @property
    def step_count(self) -> int:
        """The number of the last step that was answered."""
        return self._delivery.ledger.step_count

    @property
    def durable_step(self) -> int:
        """The last step that survives the server's crash; 0 without a store."""
        return self._delivery.ledger.durable_step

    @property
    def missing_rows(self) -> int | None:
        """Rows that the window lacks after the last answered step: so many more until there is a y.

        0 for a model that does not wait for a whole window. None before the first answer of a
        session that was resumed, attached, forked or opened from a state.
        """
        return self._delivery.ledger.missing_rows

    def _is_of(self, connection: AsyncConnection) -> bool:
        """Whether its calls use this connection."""
        return self._connection is connection

    def __repr__(self) -> str:
        return f"<Session {self.id} of {self.model}:{self.version}, step {self.step_count}>"

    async def step(
        self, x: Input, *, return_sequences: bool = True, timeout_s: float | None = None
    ) -> Output:
        """One step: x [I] gives y [O], x [T, I] gives y [T, O]; nothing else is guessed.

        Inputs and outputs of any shape are likewise [*shape] or [T, *shape]. Where a model has
        several inputs, x is a dict by name; where it has several outputs, y is one. With
        `return_sequences` False y is that of the last time step, [O]. All T rows are applied or
        none, unless y is above 64 KiB or x above a message: then they travel as several steps.
        Raises ValueError for any other shape, and LstmServeError.

        A model that waits for a whole window gives no y for the first W - 1 rows of a session: the
        y of one row, or of the last, is None then, and y of T rows has the rows that there are, for
        the last rows of x; `missing_rows` says how many the window lacks.
        """
        rows, timeout_s = step_input(self.model_info, x), checks.timeout(timeout_s)
        last_only = not return_sequences
        with await self._delivery.step(rows, last_only, timeout_s) as pending:
            return output(self.model_info, pending.take(rows.length), rows.single, last_only)

    async def stream(
        self,
        xs: Source[Input],
        *,
        window: int = WINDOW,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Output]:
        """y of each x, in order, x and y as for step(); `xs` is read ahead of the replies.

        The xs read while a step is under way, at most `window`, are sent as the next step;
        `timeout_s` is for each step. Raises what step() raises, for the first step that fails, and
        what `xs` raises, after the replies before it. The xs without a y can be streamed again. The
        caller may leave the loop at any time; if `xs` blocks then, its thread ends when `xs` goes
        on.
        """
        model = self.model_info
        timeout_s, window = checks.timeout(timeout_s), checks.count("window", window, 1)
        stream = AsyncReconnectingStream(self._connection, STEP_STREAM, group(self.id))

        async def send(request: wire.StepRequest, timeout_s: float) -> wire.StepResponse:
            return await stream.post(request, timeout_s).result()

        try:
            async with aclosing(read_ahead(xs, lambda x: step_input(model, x), window)) as batches:
                async for batch in batches:
                    for steps in joinable(model, batch):
                        with await self._delivery.step(
                            join(steps), False, timeout_s, send
                        ) as pending:
                            for each in steps:
                                rows = pending.take(each.length)
                                yield output(model, rows, each.single, last_only=False)
        finally:
            await stream.close()

    async def state(self) -> State:
        """The state after the last answered step, to be looked at, kept or opened elsewhere.

        `h, c = session.state()` for an nn.LSTM; `.tensors` has the states of any model by name, of
        one with a window its last rows.
        """
        return await self._delivery.state()

    async def set_state(self, state: State | Mapping[str, npt.ArrayLike]) -> None:
        """Continues from these states, [*shape] each by name, in a new incarnation of the id.

        The step numbers of this session go on, whatever the number in a State. The call waits for a
        step that is under way and gives up an unfinished one. Raises ValueError for a name or a
        shape.
        """
        given = state.tensors if isinstance(state, State) else state
        tensors = state_tensors(self.model_info, given)
        await self._delivery.lock.acquire(None)
        try:
            await self._delivery.restart(State(tensors, step=self.step_count).write())
        finally:
            self._delivery.lock.release()

    @awaitable_context
    async def fork(self, id: str | None = None) -> AsyncSession:  # noqa: A002  # the contract's name
        """A new session that starts from this one's last applied step; both stay open."""
        session_id = sibling_id(self.id) if id is None else id
        request = open_request(self.model, self.version, session_id)
        request.ttl.CopyFrom(self._delivery.ledger.session.ttl)
        request.fork_of = self.id
        reply = await self._connection.call(OPEN_SESSION, request, request.session_id)
        ledger = Ledger(self.model_info, self._delivery.ledger.replay_steps_max)
        ledger.begin_life(reply.session, origin=None)
        return AsyncSession(self._connection, ledger, keep=False)

    async def info(self) -> SessionInfo:
        """The session as the server sees it now."""
        request = wire.GetSessionRequest(session_id=self.id)
        reply = await self._connection.call(GET_SESSION, request, self.id)
        return SessionInfo.read(reply.session)

    async def close(self) -> None:
        """Ends the session after its waiting steps. A closed or lost session is no error."""
        if not self._is_closed:
            request = wire.CloseSessionRequest(session_id=self.id, incarnation=self.incarnation)
            with suppress(SessionLost):
                await self._connection.call(CLOSE_SESSION, request, self.id)
            self._is_closed = True

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._keep:
            return
        try:
            await self.close()
        except LstmServeError:
            if error is None:  # otherwise the caller needs that error
                raise
