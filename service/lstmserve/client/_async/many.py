"""Owns the steps of many sessions at once, in messages of a stream for each group.

Never sends a session's step while another of its steps is unanswered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import copy

import numpy.typing as npt

from lstmserve.client import checks
from lstmserve.client._aio import Pending, Reply
from lstmserve.client._async.connection import AsyncConnection, AsyncLine
from lstmserve.client._async.session import AsyncSession
from lstmserve.client.calls import STEP, STEP_MANY
from lstmserve.client.packing import Answer, Parcel, Piece, answer, parcels, step_request
from lstmserve.client.records import Floats, Rows, rows, shaped
from lstmserve.errors import LstmServeError, StepManyFailed
from lstmserve.wire.v1 import lstm_pb2 as wire

Sent = Reply[wire.StepManyResponse] | Pending[wire.StepResponse]
Lines = dict[str, AsyncLine[wire.StepManyRequest, wire.StepManyResponse]]


class AsyncGroups:
    """The open StepMany streams of one client, by group."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._lines: Lines = {}

    async def step(
        self,
        inputs: Mapping[AsyncSession, npt.ArrayLike],
        last_only: bool,
        timeout_s: float | None,
    ) -> dict[AsyncSession, Floats]:
        """y of each session's x. Raises ValueError before anything is sent, StepManyFailed after.

        Those that fail for a while are sent again; the others keep what they have.
        """
        steps = {self._mine(session): rows(session.model_info, x) for session, x in _pairs(inputs)}
        tries = self._connection.tries(checks.timeout(timeout_s))
        taken: list[AsyncSession] = []
        try:
            for session in sorted(steps, key=lambda session: session.id):  # nobody waits crosswise
                await session._course.turn.take(tries.left_s)
                taken.append(session)
            call = _Call(self, self._connection, steps, last_only, tries.left_s)
            return await call.run()
        finally:
            for session in taken:
                session._course.ledger.end()
                session._course.turn.give()

    def _mine(self, session: AsyncSession) -> AsyncSession:
        if not session._is_of(self._connection):
            raise ValueError(f"session {session.id} is of another client")
        return session

    def send(self, parcel: Parcel[AsyncSession], timeout_s: float) -> Sent:
        """Sends a message once."""
        if parcel.is_alone:
            session = parcel.sessions[0]._course.ledger.session
            request = step_request(session, parcel.pieces[0], timeout_s)
            return self._connection.begin(STEP, request, parcel.group, timeout_s)
        line = self._lines.get(parcel.group)
        if line is None:
            made = self._connection.line(STEP_MANY, parcel.group)
            line = self._lines.setdefault(parcel.group, made)
        return line.post(parcel.request(timeout_s), timeout_s)

    async def close(self) -> None:
        """Ends the streams."""
        for line in list(self._lines.values()):
            await line.close()


class _Call:
    """One step_many under way, in rounds: a message of what is due, and what came of it."""

    def __init__(
        self,
        groups: AsyncGroups,
        connection: AsyncConnection,
        steps: dict[AsyncSession, Rows],
        last_only: bool,
        timeout_s: float | None,
    ) -> None:
        self._groups = groups
        self._connection = connection
        self._steps = steps
        self._last_only = last_only
        self._tries = {session: connection.tries(timeout_s) for session in steps}
        self._errors: dict[AsyncSession, LstmServeError] = {}

    async def run(self) -> dict[AsyncSession, Floats]:
        """y of each session. Raises StepManyFailed."""
        claims = {
            session: session._course.ledger.begin(each, self._last_only)
            for session, each in self._steps.items()
        }
        under_way = list(self._steps)
        while due := self._due(under_way):
            await self._connection.pause(await self._round(due))
            under_way = [session for session, _ in due if session not in self._errors]
        results = {
            session: shaped(claims[session].take(each.length), each.single, self._last_only)
            for session, each in self._steps.items()
            if session not in self._errors
        }
        if self._errors:
            raise StepManyFailed(results, self._errors)
        return results

    def _due(self, under_way: list[AsyncSession]) -> list[tuple[AsyncSession, Piece]]:
        asked = [(session, session._course.ledger.next()) for session in under_way]
        return [(session, piece) for session, piece in asked if piece is not None]

    async def _round(self, due: list[tuple[AsyncSession, Piece]]) -> float:
        """Sends all of it before the first reply is waited for; returns how long to wait then."""
        wait_s = 0.0
        sent: list[tuple[Parcel[AsyncSession], Sent]] = []
        try:
            for parcel in parcels(due):
                timeout_s = self._tries[parcel.sessions[0]].timeout_s
                entry = parcel, self._groups.send(parcel, timeout_s)
                sent.append(entry)
            for parcel, reply in sent:
                results = await _results(parcel, reply)
                for session, piece, result in zip(*parcel, results, strict=True):
                    if isinstance(result, Answer):
                        session._course.ledger.applied(piece, *result)
                        self._tries[session].progress()
                    else:
                        wait_s = max(wait_s, await self._mend(session, piece, result))
        finally:
            for _, reply in sent:
                reply.cancel()
        return wait_s

    async def _mend(self, session: AsyncSession, piece: Piece, error: LstmServeError) -> float:
        try:
            return await session._course.mend(piece, error, self._tries[session])
        except LstmServeError as last:
            self._errors[session] = session._course.ledger.explain(last)
            return 0.0


def _pairs(
    inputs: Mapping[AsyncSession, npt.ArrayLike],
) -> Iterable[tuple[AsyncSession, npt.ArrayLike]]:
    """The items. Raises ValueError for what are no sessions, and for two handles of one."""
    if not isinstance(inputs, Mapping) or not all(
        isinstance(each, AsyncSession) for each in inputs
    ):
        raise ValueError("step_many takes a mapping of sessions to their x")
    counts = Counter(session.id for session in inputs)
    if twice := [each for each, count in counts.items() if count > 1]:
        raise ValueError(
            f"session {twice[0]} is there twice, by two handles: a step each at a time"
        )
    return inputs.items()


async def _results(parcel: Parcel[AsyncSession], reply: Sent) -> Sequence[Answer | LstmServeError]:
    try:
        message = await reply.result()
    except LstmServeError as error:
        return [copy(error) for _ in parcel.sessions]  # each session marks its own
    if isinstance(message, wire.StepResponse):
        return [answer(parcel.sessions[0].model_info, message)]
    return parcel.unpack(message)
