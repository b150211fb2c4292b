"""A simulated client's steps: numbered, repeated, replayed; it judges every answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration

from lstmserve.engine.errors import ServeError, SessionLost
from lstmserve.wire.v1 import lstm_pb2 as pb
from simulation.conversation import (
    REPEAT,
    Conversation,
    RolledBack,
    Seen,
    SessionOver,
    random_rows,
)
from simulation.faults import Faults
from simulation.kernel import ZERO_STATE
from simulation.loop import now_s, pass_time
from simulation.network import Answer, Call, Destination, Network

TIMEOUT_S = 1.0
PATIENCE = 200
BURST = 3
FLUSHED_S = 2.0  # after this time every write is done, or known to be lost


class Stepper:
    """Makes one call at a time, except for bursts. `open` and `closed` are its sessions."""

    def __init__(
        self,
        name: str,
        faults: Faults,
        network: Network,
        servers: Sequence[Destination],
        behind: bool,
    ) -> None:
        self.name = name
        self.faults = faults
        self.random = faults.random
        self._network = network
        self._servers = servers
        self.is_behind = behind
        self.open: list[Conversation] = []
        self.closed: list[Conversation] = []

    async def finish(self) -> None:
        """Checks that every acknowledged step is there, or is sent again."""
        for talk in list(self.open):
            try:
                while (await self.check_state(talk)).step < talk.acked:
                    try:
                        await self._until_applied(talk, talk.acked)
                    except RolledBack:
                        await self.forget(talk)
                    await pass_time(FLUSHED_S)
            except SessionOver:
                self.open.remove(talk)

    async def resume(self, talk: Conversation) -> None:
        """Resumes like a client that was restarted and has only the id."""
        session = await self._resumed(talk)
        if session is not None:
            talk.check_step(session.step)

    async def forget(self, talk: Conversation) -> None:
        """Goes on from what is left, like a client without its inputs that learns of a rollback.

        The next numbers were those of other steps before.
        """
        before, sent = talk.incarnation, talk.sent
        session = await self._resumed(talk)
        if session is not None:
            if session.incarnation == before and sent > session.step:
                raise SessionOver  # steps with these numbers may still be on their way
            self.faults.count["went on with other inputs"] += 1
            talk.forget(session.step)

    async def _resumed(self, talk: Conversation) -> Any:
        """The resumed session, perhaps with another incarnation; None if it is a new one."""
        talk.asked_s = now_s()
        request = open_request(talk, if_exists=pb.IF_EXISTS_RESUME)
        response = await self.until_answered(talk, "open", request, careful=True)
        if isinstance(response, ServeError):
            talk.check_ended(response, talk.seen())
            raise SessionOver
        session = response.session
        is_older = session.incarnation != talk.incarnation and self.faults.is_store_older
        is_new = response.created or is_older or self._is_successor(talk, session)
        if is_new:
            talk.check_ended(SessionLost("a new one was opened"), talk.seen())
            talk.begin(0, ZERO_STATE)
        talk.opened(session)
        if is_older and not response.created:
            raise SessionOver  # a store that went back may have an older life of the id
        return None if is_new else session

    @staticmethod
    def _is_successor(talk: Conversation, session: Any) -> bool:
        """Whether an attempt whose answer was lost may have opened it after the old one's end."""
        is_from_zeros = session.incarnation != talk.incarnation and session.step == 0
        return is_from_zeros and talk.may_be_over(talk.seen())

    async def call(
        self, talk: Conversation, method: str, request: Any, *, careful: bool = False
    ) -> Answer:
        """Makes one attempt. Returns None if no answer comes in time."""
        if self.faults.happens("rerouted"):
            index = self.random.randrange(len(self._servers))
        else:
            index = talk.home
        server = self._servers[index]
        number = request.step if method == "step" else talk.sent
        call = Call(method, request, careful, lambda: talk.acked > number)
        self._network.request(call, server)
        answer: Answer = None
        try:
            async with asyncio.timeout(None if careful else TIMEOUT_S):
                answer = await call.reply
        except TimeoutError:
            self._network.give_up(call, server)
        self.faults.note(talk.name, talk, method, repr(answer))
        if answer is None:
            talk.home = self.random.randrange(len(self._servers))
        if answer is None or isinstance(answer, ServeError):
            await pass_time(self.random.uniform(0.01, 0.2))
        return answer

    async def _until_applied(self, talk: Conversation, last: int, first: int = 0) -> None:
        """Sends steps from `first` on until `last` is known to be applied."""
        number = first or last
        for _ in range(PATIENCE):
            if number > last:
                return
            number = self._judge(talk, number, await self.call(talk, "step", _step(talk, number)))
        talk.require(False, f"no progress at step {number}")

    def _judge(
        self, talk: Conversation, number: int, answer: Answer, seen: Seen | None = None
    ) -> int:
        """Judges an answer. Returns the number to send next."""
        if answer is None:
            return number
        if isinstance(answer, ServeError):
            return talk.judge(number, answer, seen or talk.seen())
        reply: Any = answer
        return talk.applied(number, reply.step, reply.y, reply.durable_step)

    async def step(self, talk: Conversation) -> None:
        await self._until_applied(talk, talk.add_input(random_rows(self.faults)))

    async def burst(self, talk: Conversation) -> None:
        """Sends several steps at once; judges refusals by what it knew when it sent them."""
        seen = talk.seen()
        numbers = [talk.add_input(random_rows(self.faults)) for _ in range(BURST)]
        answers = await asyncio.gather(
            *(self.call(talk, "step", _step(talk, number)) for number in numbers)
        )
        for number, answer in zip(numbers, answers, strict=True):
            self._judge(talk, number, answer, seen)
        await self._until_applied(talk, numbers[-1], numbers[0])

    async def step_many(self, talk: Conversation) -> None:
        """Steps each session of a model once, in one message."""
        talks = [each for each in self.open if each.model == talk.model]
        numbers = [each.add_input(random_rows(self.faults)) for each in talks]
        xs = [each.x(number) for each, number in zip(talks, numbers, strict=True)]
        request = pb.StepManyRequest(
            session_ids=[each.name for each in talks],
            steps=numbers,
            incarnations=[each.incarnation for each in talks],
            lengths=[len(x) // 4 for x in xs],
            x=b"".join(xs),
        )
        answer: Any = await self.call(talk, "many_steps", request)
        answers = answer if isinstance(answer, list) else [answer] * len(talks)
        over, rolled_back = [], []
        for each, number, answer in zip(talks, numbers, answers, strict=True):
            try:
                await self._until_applied(each, number, self._judge(each, number, answer))
            except RolledBack:
                rolled_back.append(each)
            except SessionOver:
                over.append(each)
        for each in rolled_back:
            try:
                await self.forget(each)
            except SessionOver:
                over.append(each)
        self.open = [each for each in self.open if each not in over or each is talk]
        if talk in over:
            raise SessionOver

    async def until_answered(
        self, talk: Conversation, method: str, request: Any, *, careful: bool = False
    ) -> Any:
        """Repeats the call until an answer is no reason to. Returns a response, or an error."""
        for _ in range(PATIENCE):
            answer = await self.call(talk, method, request, careful=careful)
            if answer is not None and not isinstance(answer, REPEAT):
                return answer
        talk.require(False, f"{method} is never answered")
        return None

    async def check_state(self, talk: Conversation) -> Any:
        request = pb.GetStateRequest(session_id=talk.name, incarnation=talk.incarnation)
        response = await self.until_answered(talk, "state", request)
        if isinstance(response, ServeError):
            talk.check_ended(response, talk.seen())
            raise SessionOver
        state = response.state
        h, c = (each.floats for each in state.tensors)
        talk.check_state(h, c, state.step)
        return state


def open_request(talk: Conversation, **fields: Any) -> pb.OpenSessionRequest:
    """The request to open a session with the talk's id and model."""
    ttl = Duration(seconds=int(talk.ttl_s))
    return pb.OpenSessionRequest(model=talk.model, session_id=talk.name, ttl=ttl, **fields)


def _step(talk: Conversation, number: int) -> pb.StepRequest:
    x = talk.x(number)
    return pb.StepRequest(
        session_id=talk.name,
        incarnation=talk.incarnation,
        step=number,
        length=len(x) // 4,
        x=x,
    )
