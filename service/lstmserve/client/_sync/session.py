"""Owns one conversation with the server. Keeps no state of the model."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, suppress
from types import TracebackType
from typing import Final

import numpy.typing as npt

from lstmserve.client import checks, ids
from lstmserve.client._sync.connection import Connection
from lstmserve.client._sync.course import Course
from lstmserve.client._threads import Source, opening, pump
from lstmserve.client.calls import (
    CLOSE_SESSION,
    GET_SESSION,
    OPEN_SESSION,
    STEP_STREAM,
    open_request,
)
from lstmserve.client.ledger import Ledger
from lstmserve.client.packing import joined, merge
from lstmserve.client.records import Floats, SessionInfo, State, rows, shaped, state_parts
from lstmserve.errors import LstmServeError, SessionLost
from lstmserve.wire.v1 import lstm_pb2 as wire

WINDOW: Final = 32  # steps that a stream reads ahead


class Session:
    """One client's conversation with a model: steps go in, the server remembers.

    Made by `session()` of a client. Leaving `with` closes it unless `keep`. Every call raises
    LstmServeError, of which errors.py has a subclass for each thing to handle. Steps go one after
    the other; each counts once, however often the connection breaks. A step that ended with an
    error whose `applied` is None is finished by the next one: which is the same if its x is.
    `model_info` has the sizes of its model.
    """

    def __init__(self, connection: Connection, ledger: Ledger, keep: bool) -> None:
        self._connection = connection
        self._course = Course(connection, ledger)
        self.model_info = ledger.model
        self._keep = keep
        self._is_closed = False

    @property
    def id(self) -> str:
        """GROUP:REST or plain; unique on the server."""
        return self._course.ledger.session.id

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
        """Which life of the id this is; every call is checked against it."""
        return self._course.ledger.session.incarnation

    @property
    def step_count(self) -> int:
        """The number of the last step that was answered."""
        return self._course.ledger.step_count

    @property
    def durable_step(self) -> int:
        """The last step that survives the server's crash; 0 without a store."""
        return self._course.ledger.durable_step

    def _is_of(self, connection: Connection) -> bool:
        """Whether its calls go by this one."""
        return self._connection is connection

    def __repr__(self) -> str:
        return f"<Session {self.id} of {self.model}:{self.version}, step {self.step_count}>"

    def step(
        self, x: npt.ArrayLike, *, return_sequences: bool = True, timeout_s: float | None = None
    ) -> Floats:
        """One step: x [I] gives y [O], x [T, I] gives y [T, O]; nothing else is guessed.

        A model of tokens takes an integer for x [I] and integers [T] for x [T, I]. With
        `return_sequences` False y is that of the last time step, [O]. All T rows are applied or
        none, unless y is above 64 KiB or x above a message: then they travel as several steps.
        Raises ValueError for any other shape, and LstmServeError.
        """
        given, timeout_s = rows(self.model_info, x), checks.timeout(timeout_s)
        last_only = not return_sequences
        with self._course.step(given, last_only, timeout_s) as claim:
            return shaped(claim.take(given.length), given.single, last_only)

    def stream(
        self,
        xs: Source[npt.ArrayLike],
        *,
        window: int = WINDOW,
        timeout_s: float | None = None,
    ) -> Generator[Floats]:
        """y of each x, in order, each x as for step(); `xs` is read ahead of the replies.

        What has been read while a step was under way, up to `window` of xs, goes as the next one;
        `timeout_s` is for each. Raises what step() raises, for the first step that fails, and what
        `xs` raises, after the replies before it. The xs without a y can be streamed again. The
        caller may leave the loop at any time; an `xs` that blocks then holds its thread until it
        goes on.
        """
        model = self.model_info
        timeout_s, window = checks.timeout(timeout_s), checks.count("window", window, 1)
        line = self._connection.line(STEP_STREAM, ids.group(self.id))

        def send(request: wire.StepRequest, timeout_s: float) -> wire.StepResponse:
            return line.post(request, timeout_s).result()

        try:
            with closing(pump(xs, lambda x: rows(model, x), window)) as batches:
                for batch in batches:
                    for steps in merge(model, batch):
                        with self._course.step(joined(steps), False, timeout_s, send) as claim:
                            for each in steps:
                                yield shaped(claim.take(each.length), each.single, last_only=False)
        finally:
            line.close()

    def state(self) -> tuple[Floats, Floats]:
        """(h, c) after the last applied step.

        h float32 [layers, proj_size or hidden_size], c float32 [layers, hidden_size].
        """
        state = self.export()
        return state.h, state.c

    def export(self) -> State:
        """The state after the last answered step, to be kept or opened elsewhere."""
        return self._course.export()

    def set_state(self, h: npt.ArrayLike, c: npt.ArrayLike) -> None:
        """Goes on from this state, shaped as state() gives it: a new incarnation of the same id.

        It waits for the step that is under way; one that is unfinished is given up. Raises
        ValueError for a shape.
        """
        h, c = state_parts(self.model_info, h, c)
        self._course.turn.take(None)
        try:
            state = State(h, c, step=self.step_count).write()
            self._course.restart(state)
        finally:
            self._course.turn.give()

    @opening
    def fork(self, id: str | None = None) -> Session:  # noqa: A002  # the contract's name
        """A new session that goes on from this one's last applied step; both live on."""
        request = open_request(self.model, self.version, ids.beside(self.id) if id is None else id)
        request.ttl.CopyFrom(self._course.ledger.session.ttl)
        request.fork_of = self.id
        reply = self._connection.call(OPEN_SESSION, request, request.session_id)
        ledger = Ledger(self.model_info, self._course.ledger.replay_steps_max)
        ledger.begin_life(reply.session, origin=None)
        return Session(self._connection, ledger, keep=False)

    def info(self) -> SessionInfo:
        """The session as the server sees it now."""
        request = wire.GetSessionRequest(session_id=self.id)
        reply = self._connection.call(GET_SESSION, request, self.id)
        return SessionInfo.read(reply.session)

    def close(self) -> None:
        """Ends the session, after the steps that wait; twice is fine, and so is a lost one."""
        if not self._is_closed:
            request = wire.CloseSessionRequest(session_id=self.id, incarnation=self.incarnation)
            with suppress(SessionLost):
                self._connection.call(CLOSE_SESSION, request, self.id)
            self._is_closed = True

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._keep:
            return
        try:
            self.close()
        except LstmServeError:
            if error is None:  # else that error is the news
                raise
