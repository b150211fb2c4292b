"""A simulated client's sessions: opened, resumed, forked, exported, replaced, closed."""

from __future__ import annotations

import contextlib
from typing import Any

from lstmserve.engine.errors import (
    ServeError,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionLost,
    SessionReplaced,
)
from lstmserve.wire.v1 import lstm_pb2 as pb
from simulation.client import Stepper, open_request
from simulation.conversation import Conversation, RolledBack, SessionOver
from simulation.kernel import ZERO_STATE, state_of
from simulation.loop import now_s, pass_time
from simulation.server import MODELS

SESSIONS_MAX = 4
GONE = (SessionClosed, SessionExpired, SessionLost, SessionReplaced)
LONG_S, SHORT_S = 3600.0, 4.0
FORGETFUL = 0.3  # of the sessions belong to clients that keep no inputs


class Client(Stepper):
    """Makes random actions; after each one the client knows the state of its session."""

    opens = 0

    async def run(self, count: int) -> None:
        """Makes `count` actions."""
        for _ in range(count):
            if not self.open:
                with contextlib.suppress(SessionOver):
                    await self.open_new()
                continue
            talk = self.random.choice(self.open)
            (action,) = self.random.choices(list(ACTIONS), list(ACTIONS.values()))
            try:
                await action(self, talk)
            except RolledBack:
                await self._forget(talk)
            except SessionOver:
                self._end(talk)
            await pass_time(self.random.uniform(0, 0.3))

    def _end(self, talk: Conversation) -> None:
        self.faults.count["sessions expired"] += 1
        if talk in self.open:
            self.open.remove(talk)

    async def _forget(self, talk: Conversation) -> None:
        try:
            await self.forget(talk)
        except SessionOver:
            self._end(talk)

    async def open_new(self) -> None:
        """Opens a session from zeros."""
        talk = self._talk(self.random.choice(MODELS))
        session = await self._opened(talk)
        talk.check_step(session.step)

    async def fork(self, talk: Conversation) -> None:
        """Forks the session."""
        if len(self.open) == SESSIONS_MAX:
            return
        copy = self._talk(talk.model)
        session = await self._opened(copy, fork_of=talk.name, source=talk)
        talk.check_step(session.step)
        copy.begin(session.step, talk.state(session.step))
        copy.opened(session)

    async def carry(self, talk: Conversation) -> None:
        """Exports the session, and imports it under another id."""
        state = await self.check_state(talk)
        if len(self.open) < SESSIONS_MAX:
            copy = self._talk(talk.model)
            h, c = (each.floats for each in state.tensors)
            copy.begin(state.step, state_of(h, c))
            await self._opened(copy, state=state)

    async def restart(self, talk: Conversation) -> None:
        """Begins a new life of the id from zeros, unless the store may bring the old life back."""
        if self.faults.odds.store_older:
            return
        talk.asked_s = now_s()
        talk.begin(0, ZERO_STATE)
        await self._opened(talk, if_exists=pb.IF_EXISTS_RESTART)

    async def close(self, talk: Conversation) -> None:
        """Closes the session; later steps must be refused."""
        request = pb.CloseSessionRequest(session_id=talk.name, incarnation=talk.incarnation)
        response = await self.until_answered(talk, "close", request)
        if isinstance(response, ServeError):
            # An earlier attempt may have closed it; another server does not know that, and finds it
            # lost or expired. Or this is a session whose open was given up, and came late.
            talk.require(isinstance(response, GONE), repr(response))
        else:
            talk.check_step(response.step)
        self.open.remove(talk)
        self.closed.append(talk)

    async def nap(self, talk: Conversation) -> None:
        """Waits, often long enough for a short session to expire."""
        await pass_time(self.random.uniform(0, 1.5 * SHORT_S))

    def _talk(self, model: str) -> Conversation:
        self.opens += 1
        ttl_s = self.random.choice((LONG_S, LONG_S, LONG_S, SHORT_S))
        name = f"{self.name}-{self.opens}"
        talk = Conversation(self.faults, name, model, ttl_s, self.is_behind)
        is_safe = not self.faults.odds.store_older  # else two servers may be wrong in two ways
        talk.is_forgetful = is_safe and self.random.random() < FORGETFUL
        return talk

    async def _opened(
        self, talk: Conversation, *, source: Conversation | None = None, **fields: Any
    ) -> Any:
        """Opens the session, or resumes it if it may be open already. Returns it."""
        request_id = f"{talk.name}-{self.random.getrandbits(32)}"
        request = open_request(talk, request_id=request_id, **fields)
        response = await self.until_answered(talk, "open", request, careful=True)
        if isinstance(response, SessionExists) and "if_exists" not in fields:
            request = open_request(talk, if_exists=pb.IF_EXISTS_RESUME)
            response = await self.until_answered(talk, "open", request, careful=True)
            if talk.may_be_over(talk.seen()):
                raise SessionOver  # this may be another one, opened by an attempt in between
            if not isinstance(response, ServeError):
                is_open = not response.created or self.faults.is_store_older
                talk.require(is_open, "an open session was opened again")
        if isinstance(response, ServeError):
            # A fork may expire before its first answer, and so may its source.
            ended = talk if source is None or talk.may_be_over(talk.seen()) else source
            ended.check_ended(response, ended.seen())
            raise SessionOver
        talk.opened(response.session)
        if talk not in self.open:
            self.open.append(talk)
        return response.session


ACTIONS = {
    Client.step: 10,
    Client.burst: 3,
    Client.step_many: 5,
    Client.check_state: 2,
    Client.fork: 1,
    Client.carry: 1,
    Client.restart: 1,
    Client.resume: 1,
    Client.close: 1,
    Client.nap: 1,
}
