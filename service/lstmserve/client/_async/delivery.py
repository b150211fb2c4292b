"""Delivers one session's steps to the server: one at a time, and again while that is safe.

The ledger decides what an answer means; nothing here looks into a reply.
"""

from __future__ import annotations

from typing import Protocol

from lstmserve.client._async.connection import AsyncConnection
from lstmserve.client._io.aio import SessionLock
from lstmserve.client.arrays import StepInput
from lstmserve.client.ledger import Ledger, PendingOutput, Recovery
from lstmserve.client.packing import NumberedStep, step_request, step_result
from lstmserve.client.protocol import GET_STATE, OPEN_SESSION, STEP, open_request
from lstmserve.client.retries import Attempts
from lstmserve.client.state import State
from lstmserve.client.status import steps_lost
from lstmserve.errors import LstmServeError, SessionLost
from lstmserve.wire.v1 import lstm_pb2 as wire


class AsyncSendOnce(Protocol):
    """Sends one request once, as a call or on a stream. Raises LstmServeError."""

    async def __call__(self, request: wire.StepRequest, timeout_s: float) -> wire.StepResponse: ...


class AsyncStepDelivery:
    """The deliveries of one session handle. Only the holder of `lock` may use the ledger."""

    def __init__(self, connection: AsyncConnection, ledger: Ledger) -> None:
        self._connection = connection
        self.ledger = ledger
        self.lock = SessionLock()

    async def step(
        self,
        rows: StepInput,
        last_only: bool,
        timeout_s: float | None,
        send: AsyncSendOnce | None = None,
    ) -> PendingOutput:
        """Has the rows applied; the caller takes their y from the result within `with`.

        Unfinished work of an earlier call is completed first; where its input equals this one's,
        it counts as this step. Raises LstmServeError.
        """
        attempts = self._connection.attempts(timeout_s)
        await self.lock.acquire(attempts.left_s)
        try:
            output = self.ledger.begin(rows, last_only)
            await self._finish(attempts, send or self._send)
            return output.claim()
        except LstmServeError as error:
            raise self.ledger.explain(error) from None
        finally:
            self.ledger.end()
            self.lock.release()

    async def _send(self, request: wire.StepRequest, timeout_s: float) -> wire.StepResponse:
        return await self._connection.call_once(STEP, request, request.session_id, timeout_s)

    async def _finish(self, attempts: Attempts, send: AsyncSendOnce) -> None:
        ledger = self.ledger
        while (step := ledger.next()) is not None:
            timeout_s = attempts.timeout_s
            try:
                reply = await send(step_request(ledger.session, step, timeout_s), timeout_s)
            except LstmServeError as error:
                await self._connection.pause(await self.recover(step, error, attempts))
            else:
                ledger.applied(step, step_result(ledger.model, reply))
                attempts.succeeded()

    async def recover(self, step: NumberedStep, error: LstmServeError, attempts: Attempts) -> float:
        """The time to wait before the ledger's next(). Raises `error` when nothing helps."""
        recovery = self.ledger.failed(step, error)
        if recovery is Recovery.NONE:
            raise error
        wait_s = attempts.wait_s(error, is_recovered=recovery is not Recovery.WAIT)
        if recovery is Recovery.REOPEN:
            await self._reopen(attempts)
        return wait_s if recovery is Recovery.WAIT else 0.0

    async def state(self) -> State:
        """The state after the last step that was answered.

        Raises SessionLost or StepsLost where the server lost that state and the log does not reach
        back, and LstmServeError.
        """
        attempts = self._connection.attempts()
        step_count = self.ledger.step_count
        while True:
            try:
                state = await self._get_state()
            except SessionLost as error:
                await self._restore(None, error, attempts)
            else:
                if state.step >= step_count:
                    return state
                await self._restore(state.step, steps_lost(state.step + 1), attempts)

    async def _get_state(self) -> State:
        session = self.ledger.session
        request = wire.GetStateRequest(session_id=session.id, incarnation=session.incarnation)
        reply = await self._connection.call(GET_STATE, request, session.id)
        return State.read(reply.state, self.ledger.model)

    async def _restore(
        self, last_step: int | None, error: LstmServeError, attempts: Attempts
    ) -> None:
        """Sends the steps after `last_step` (None: all) again. Raises `error` if it cannot."""
        await self.lock.acquire(None)
        try:
            recovery = self.ledger.lost(last_step)
            if recovery is Recovery.NONE:
                raise error
            attempts.wait_s(error, is_recovered=True)
            if recovery is Recovery.REOPEN:
                await self._reopen(attempts)
            await self._finish(attempts, self._send)
        finally:
            self.ledger.end()
            self.lock.release()

    async def _reopen(self, attempts: Attempts) -> None:
        session = await self._open(self.ledger.origin, attempts.left_s)
        self.ledger.reopened(session)

    async def restart(self, state: wire.State) -> None:
        """Starts a new incarnation from `state`; the log begins there. Raises LstmServeError."""
        self.ledger.begin_life(await self._open(state, None), state)

    async def _open(self, state: wire.State, timeout_s: float | None) -> wire.Session:
        """Opens a new incarnation of the session's id; without tensors in `state` from the model's
        initial state."""
        before = self.ledger.session
        request = open_request(before.model, before.version, before.id, "restart")
        request.ttl.CopyFrom(before.ttl)
        if state.tensors:
            request.state.CopyFrom(state)
        return (await self._connection.call(OPEN_SESSION, request, before.id, timeout_s)).session
