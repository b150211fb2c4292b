"""Steps many sessions at once, with one StepMany stream for each group of sessions.

Never sends a session's step while another of its steps is unanswered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import copy

from lstmserve.client import checks
from lstmserve.client._io.threads import PendingCall, PendingReply
from lstmserve.client._sync.connection import Connection, ReconnectingStream
from lstmserve.client._sync.session import Session
from lstmserve.client.arrays import Input, Output, StepInput, output, step_input
from lstmserve.client.packing import (
    GroupMessage,
    NumberedStep,
    StepResult,
    group_messages,
    step_request,
    step_result,
)
from lstmserve.client.protocol import STEP, STEP_MANY
from lstmserve.errors import LstmServeError, StepManyFailed
from lstmserve.wire.v1 import lstm_pb2 as wire

Sent = PendingReply[wire.StepManyResponse] | PendingCall[wire.StepResponse]
Streams = dict[str, ReconnectingStream[wire.StepManyRequest, wire.StepManyResponse]]


class GroupStreams:
    """The open StepMany streams of one client, by group."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._streams: Streams = {}

    def step(
        self,
        inputs: Mapping[Session, Input],
        last_only: bool,
        timeout_s: float | None,
    ) -> dict[Session, Output]:
        """y of each session's x. Raises ValueError before anything is sent, StepManyFailed after.

        Steps that fail for a while are sent again, alone: a step that was answered is done.
        """
        steps = {
            self._mine(session): step_input(session.model_info, x) for session, x in _pairs(inputs)
        }
        attempts = self._connection.attempts(checks.timeout(timeout_s))
        locked: list[Session] = []
        try:
            for session in sorted(steps, key=lambda session: session.id):  # one order: no deadlock
                session._delivery.lock.acquire(attempts.left_s)
                locked.append(session)
            call = _StepManyCall(self, self._connection, steps, last_only, attempts.left_s)
            return call.run()
        finally:
            for session in locked:
                session._delivery.ledger.end()
                session._delivery.lock.release()

    def _mine(self, session: Session) -> Session:
        if not session._is_of(self._connection):
            raise ValueError(f"session {session.id} is of another client")
        return session

    def send(self, message: GroupMessage[Session], timeout_s: float) -> Sent:
        """Sends a message once."""
        if message.is_single:
            session = message.sessions[0]._delivery.ledger.session
            request = step_request(session, message.steps[0], timeout_s)
            return self._connection.start_call(STEP, request, message.group, timeout_s)
        stream = self._streams.get(message.group)
        if stream is None:
            made = ReconnectingStream(self._connection, STEP_MANY, message.group)
            stream = self._streams.setdefault(message.group, made)
        return stream.post(message.request(timeout_s), timeout_s)

    def close(self) -> None:
        """Ends the streams."""
        for stream in list(self._streams.values()):
            stream.close()


class _StepManyCall:
    """One step_many under way, in rounds: each sends what is due and handles what came of it."""

    def __init__(
        self,
        streams: GroupStreams,
        connection: Connection,
        steps: dict[Session, StepInput],
        last_only: bool,
        timeout_s: float | None,
    ) -> None:
        self._streams = streams
        self._connection = connection
        self._steps = steps
        self._last_only = last_only
        self._attempts = {session: connection.attempts(timeout_s) for session in steps}
        self._errors: dict[Session, LstmServeError] = {}

    def run(self) -> dict[Session, Output]:
        """y of each session. Raises StepManyFailed."""
        outputs = {
            session: session._delivery.ledger.begin(each, self._last_only)
            for session, each in self._steps.items()
        }
        under_way = list(self._steps)
        while due := self._due(under_way):
            self._connection.pause(self._round(due))
            under_way = [session for session, _ in due if session not in self._errors]
        results = {
            session: output(
                session.model_info,
                outputs[session].take(each.length),
                each.single,
                self._last_only,
            )
            for session, each in self._steps.items()
            if session not in self._errors
        }
        if self._errors:
            raise StepManyFailed(results, self._errors)
        return results

    def _due(self, under_way: list[Session]) -> list[tuple[Session, NumberedStep]]:
        steps = [(session, session._delivery.ledger.next()) for session in under_way]
        return [(session, step) for session, step in steps if step is not None]

    def _round(self, due: list[tuple[Session, NumberedStep]]) -> float:
        """Sends every message before it awaits a reply; returns the time until the next round."""
        wait_s = 0.0
        sent: list[tuple[GroupMessage[Session], Sent]] = []
        try:
            for message in group_messages(due):
                timeout_s = self._attempts[message.sessions[0]].timeout_s
                sent.append((message, self._streams.send(message, timeout_s)))
            for message, reply in sent:
                results = _results(message, reply)
                for session, step, result in zip(*message, results, strict=True):
                    if isinstance(result, StepResult):
                        session._delivery.ledger.applied(step, result)
                        self._attempts[session].succeeded()
                    else:
                        wait_s = max(wait_s, self._recover(session, step, result))
        finally:
            for _, reply in sent:
                reply.cancel()
        return wait_s

    def _recover(self, session: Session, step: NumberedStep, error: LstmServeError) -> float:
        try:
            return session._delivery.recover(step, error, self._attempts[session])
        except LstmServeError as last:
            self._errors[session] = session._delivery.ledger.explain(last)
            return 0.0


def _pairs(
    inputs: Mapping[Session, Input],
) -> Iterable[tuple[Session, Input]]:
    """The items. Raises ValueError for other keys than sessions, and for two handles of one."""
    if not isinstance(inputs, Mapping) or not all(isinstance(each, Session) for each in inputs):
        raise ValueError("step_many takes a mapping of sessions to their x")
    counts = Counter(session.id for session in inputs)
    if twice := [each for each, count in counts.items() if count > 1]:
        raise ValueError(
            f"session {twice[0]} is there twice, by two handles: a step each at a time"
        )
    return inputs.items()


def _results(message: GroupMessage[Session], reply: Sent) -> Sequence[StepResult | LstmServeError]:
    try:
        response = reply.result()
    except LstmServeError as error:
        return [copy(error) for _ in message.sessions]  # each session marks its own
    if isinstance(response, wire.StepResponse):
        return [step_result(message.sessions[0].model_info, response)]
    return message.results(response)
