"""Owns the way of one session's steps to the server: one at a time, and again while that is safe.

What the answers mean is the ledger's; nothing here looks into them.
"""

from __future__ import annotations

from typing import Protocol

from lstmserve.client._sync.connection import Connection
from lstmserve.client._threads import Turn
from lstmserve.client.calls import GET_STATE, OPEN_SESSION, STEP, open_request
from lstmserve.client.job import Claim
from lstmserve.client.ledger import Ledger, Remedy
from lstmserve.client.packing import Piece, answer, step_request
from lstmserve.client.records import Rows, State
from lstmserve.client.retries import Tries
from lstmserve.client.status import steps_lost
from lstmserve.errors import LstmServeError, SessionLost
from lstmserve.wire.v1 import lstm_pb2 as wire


class Send(Protocol):
    """Sends one request once, as a call or on a stream; raises LstmServeError."""

    def __call__(self, request: wire.StepRequest, timeout_s: float) -> wire.StepResponse: ...


class Course:
    """Of one session handle. Who holds `turn` may use the ledger, nobody else."""

    def __init__(self, connection: Connection, ledger: Ledger) -> None:
        self._connection = connection
        self.ledger = ledger
        self.turn = Turn()

    def step(
        self,
        rows: Rows,
        last_only: bool,
        timeout_s: float | None,
        send: Send | None = None,
    ) -> Claim:
        """Has it applied: its y can be taken from what is returned, by `with`.

        Raises LstmServeError.

        What an earlier call began is finished first; what of it has this input is this step.
        """
        tries = self._connection.tries(timeout_s)
        self.turn.take(tries.left_s)
        try:
            claim = self.ledger.begin(rows, last_only)
            self._finish(tries, send or self._send)
            return claim.hold()
        except LstmServeError as error:
            raise self.ledger.explain(error) from None
        finally:
            self.ledger.end()
            self.turn.give()

    def _send(self, request: wire.StepRequest, timeout_s: float) -> wire.StepResponse:
        return self._connection.call_once(STEP, request, request.session_id, timeout_s)

    def _finish(self, tries: Tries, send: Send) -> None:
        ledger = self.ledger
        while (piece := ledger.next()) is not None:
            timeout_s = tries.timeout_s
            try:
                reply = send(step_request(ledger.session, piece, timeout_s), timeout_s)
            except LstmServeError as error:
                self._connection.pause(self.mend(piece, error, tries))
            else:
                ledger.applied(piece, *answer(ledger.model, reply))
                tries.progress()

    def mend(self, piece: Piece, error: LstmServeError, tries: Tries) -> float:
        """How long to wait before the ledger's next(). Raises `error` when nothing helps."""
        remedy = self.ledger.failed(piece, error)
        if remedy is Remedy.NONE:
            raise error
        wait_s = tries.wait_s(error, is_mended=remedy is not Remedy.WAIT)
        if remedy is Remedy.REOPEN:
            self._reopen(tries)
        return wait_s if remedy is Remedy.WAIT else 0.0

    def export(self) -> State:
        """The state after the last step that was answered. Raises SessionLost, StepsLost, where

        the server lost that and the log does not have it, and LstmServeError.
        """
        tries = self._connection.tries()
        step_count = self.ledger.step_count
        while True:
            try:
                state = self._get_state()
            except SessionLost as error:
                self._restore(None, error, tries)
            else:
                if state.step >= step_count:
                    return state
                self._restore(state.step, steps_lost(state.step + 1), tries)

    def _get_state(self) -> State:
        session = self.ledger.session
        request = wire.GetStateRequest(session_id=session.id, incarnation=session.incarnation)
        reply = self._connection.call(GET_STATE, request, session.id)
        return State.read(reply.state, self.ledger.model.layers)

    def _restore(self, last_step: int | None, error: LstmServeError, tries: Tries) -> None:
        """Sends again what the server lost after `last_step`; None: all. Raises `error`."""
        self.turn.take(None)
        try:
            remedy = self.ledger.lost(last_step)
            if remedy is Remedy.NONE:
                raise error
            tries.wait_s(error, is_mended=True)
            if remedy is Remedy.REOPEN:
                self._reopen(tries)
            self._finish(tries, self._send)
        finally:
            self.ledger.end()
            self.turn.give()

    def _reopen(self, tries: Tries) -> None:
        session = self._open(self.ledger.origin, tries.left_s)
        self.ledger.reopened(session)

    def restart(self, state: wire.State) -> None:
        """Goes on from `state` in a new life; forgets what was before. Raises LstmServeError."""
        self.ledger.begin_life(self._open(state, None), state)

    def _open(self, state: wire.State, timeout_s: float | None) -> wire.Session:
        """A new life of the session's id; `state` without h is zeros."""
        before = self.ledger.session
        request = open_request(before.model, before.version, before.id, "restart")
        request.ttl.CopyFrom(before.ttl)
        if state.h:
            request.state.CopyFrom(state)
        return (self._connection.call(OPEN_SESSION, request, before.id, timeout_s)).session
