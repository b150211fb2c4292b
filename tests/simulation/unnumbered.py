"""A simulated client without step numbers, like stock Triton clients: it trusts every OK.

It keeps no inputs, and sends no step again. A server must report that acknowledged steps are lost,
before the session goes on from an older state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo

from lstmserve.engine.errors import ServeError, SessionExists
from lstmserve.reasons import REASONS
from lstmserve.wire.v1 import lstm_pb2 as pb
from simulation.belief import Belief
from simulation.client import Stepper
from simulation.conversation import random_rows
from simulation.kernel import state_of
from simulation.loop import pass_time
from simulation.network import Pipeline
from simulation.server import MODELS

SESSIONS_MAX = 2
PIPELINED_MAX = 10
DOUBTS_MAX = 64
LONG_S = 3600
ROLLED_BACK = "STATE_ROLLED_BACK"
GONE = ("SESSION_LOST", "SESSION_NOT_FOUND", "SESSION_REPLACED", "SESSION_CLOSED")


class Unnumbered(Stepper):
    """Its calls are neither lost nor repeated: a server answers them, or dies."""

    opens = 0

    async def run(self, count: int) -> None:
        """Makes `count` actions."""
        self.talks: list[Belief] = []
        for _ in range(count):
            if not self.talks or (len(self.talks) < SESSIONS_MAX and self.random.random() < 0.2):
                await self.open_new()
            talk = self.random.choice(self.talks)
            (action,) = self.random.choices(list(ACTIONS), list(ACTIONS.values()))
            await action(self, talk)
            await pass_time(self.random.uniform(0, 0.3))

    async def finish(self) -> None:
        """Checks every session that is left."""
        for talk in list(self.talks):
            await self.look(talk)

    @property
    def _stays(self) -> bool:
        """Whether its router chooses another server only when a server is gone.

        With a store that is written behind, only such a client is safe without incarnations and
        without opening its session again: a server may not know yet that the session was elsewhere.
        """
        return not self.is_behind or not self.faults.odds.rerouted

    async def open_new(self) -> None:
        """Opens a session from zeros."""
        self.opens += 1
        talk = Belief(self.faults, f"{self.name}-{self.opens}", self.random.choice(MODELS))
        await self._open(talk, pb.IF_EXISTS_RESTART)
        self.talks.append(talk)

    async def restart(self, talk: Belief) -> None:
        """Begins a new life of the id, or of another id if the store may bring the old one back."""
        if self.faults.odds.store_older:
            self.talks.remove(talk)
            await self.open_new()
            return
        talk.begin()
        await self._open(talk, pb.IF_EXISTS_RESTART)

    async def resume(self, talk: Belief) -> None:
        """Resumes the session, and goes on from what is left."""
        session = await self._open(talk, pb.IF_EXISTS_RESUME)
        talk.told(session.step)

    async def _open(self, talk: Belief, if_exists: Any) -> Any:
        request = pb.OpenSessionRequest(
            model=talk.model,
            session_id=talk.name,
            ttl=Duration(seconds=LONG_S),
            if_exists=if_exists,
        )
        response: Any = SessionExists("not asked yet")
        while isinstance(response, SessionExists):  # the answer if the store goes back meanwhile
            response = await self.until_answered(talk, "open", request, careful=True)
        talk.require(not isinstance(response, ServeError), f"opening: {response!r}")
        session = response.session
        is_new = response.created or session.incarnation < talk.incarnation
        if is_new and if_exists == pb.IF_EXISTS_RESUME:
            self._check_gone(talk, "SESSION_LOST")
            talk.begin()
        talk.incarnation = session.incarnation
        return session

    def _check_gone(self, talk: Belief, reason: str) -> None:
        talk.require(reason in GONE and self.faults.is_store_older, f"ended: {reason}")

    async def step(self, talk: Belief) -> None:
        """Makes one step by a call."""
        x = random_rows(self.faults)
        answer: Any = await self.call(talk, "step", self._request(talk, x), careful=True)
        await self._judge(talk, [x], [answer])

    async def pipelined(self, talk: Belief) -> None:
        """Sends many steps on one stream, none of which waits for the reply to another."""
        count = self.random.randint(2, PIPELINED_MAX)
        xs = [random_rows(self.faults) for _ in range(count)]
        request = Pipeline([self._request(talk, x) for x in xs])
        answers: Any = await self.call(talk, "stream", request, careful=True)
        await self._judge(talk, xs, [None] * count if answers is None else answers)

    async def many(self, talk: Belief) -> None:
        """Steps each session of a model and server once, in one message."""
        alike = (talk.model, talk.home)
        talks = [each for each in self.talks if (each.model, each.home) == alike]
        xs = [random_rows(self.faults) for _ in talks]
        request = pb.StepManyRequest(
            session_ids=[each.name for each in talks],
            lengths=[len(x) // 4 for x in xs],
            x=b"".join(xs),
        )
        if not self._is_bare():
            request.incarnations.extend(each.incarnation for each in talks)
        answer: Any = await self.call(talk, "many_steps", request, careful=True)
        answers = answer if isinstance(answer, list) else [answer] * len(talks)
        for each, x, answer in zip(talks, xs, answers, strict=True):
            await self._judge(each, [x], [answer])

    async def look(self, talk: Belief) -> None:
        """Exports the state, which the client must know; to export changes nothing."""
        request = pb.GetStateRequest(session_id=talk.name, incarnation=talk.incarnation)
        response = await self.until_answered(talk, "state", request, careful=True)
        if isinstance(response, ServeError):
            self._over(talk, response.reason)
        else:
            state = response.state
            h, c = (each.floats for each in state.tensors)
            talk.looked(state.step, state_of(h, c))

    def _request(self, talk: Belief, x: bytes) -> pb.StepRequest:
        incarnation = 0 if self._is_bare() else talk.incarnation
        return pb.StepRequest(
            session_id=talk.name, incarnation=incarnation, length=len(x) // 4, x=x
        )

    def _is_bare(self) -> bool:
        return self._stays and self.random.random() < 0.5

    async def _judge(self, talk: Belief, xs: Sequence[bytes], answers: Sequence[Any]) -> None:
        """Judges the answers to steps of one session that were sent together, in their order."""
        rolled_back_to: int | None = None
        for x, answer in zip(xs, answers, strict=True):
            reason, metadata = _refusal(answer)
            if reason == ROLLED_BACK:
                rolled_back_to = int(metadata["step"])
            elif not reason:
                talk.require(rolled_back_to is None, "a step was applied behind a refused one")
                talk.applied(x, answer.step, answer.y)
                talk.floor = max(talk.floor, answer.durable_step)
                self.faults.count["unnumbered steps applied"] += 1
            elif reason in GONE:
                self._over(talk, reason)
                return
            elif REASONS[reason].applied is None:
                talk.doubted(x)
        if rolled_back_to is not None:
            await self._told(talk, rolled_back_to)
        elif talk.is_doubtful:
            await self.look(talk)
        if len(talk) > DOUBTS_MAX:
            await self.resume(talk)

    def _over(self, talk: Belief, reason: str) -> None:
        self._check_gone(talk, reason)
        if talk in self.talks:
            self.talks.remove(talk)

    async def _told(self, talk: Belief, step: int) -> None:
        """Reacts to a rollback.

        The client opens its session again, or numbers the next step, or ignores it and sends more.
        """
        self.faults.count["told of a rollback"] += 1
        self.faults.note(talk.name, "hears of a rollback to", step)
        talk.require(self.is_behind or self.faults.is_store_older, "told without a reason")
        choice = self.random.random()
        if choice < 0.2:
            await self.restart(talk)
        elif choice < 0.4 and self._stays:
            await self._number(talk, step)
        elif choice < 0.7:
            await self.resume(talk)
        else:
            await pass_time(self.random.uniform(0, 3))

    async def _number(self, talk: Belief, step: int) -> None:
        """Makes a numbered step: if it is applied, the client knows what it went on from."""
        x = random_rows(self.faults)
        request = self._request(talk, x)
        request.step, request.incarnation = step + 1, talk.incarnation
        talk.told(step)
        answer: Any = await self.call(talk, "step", request, careful=True)
        reason, _ = _refusal(answer)
        if not reason:
            await self._judge(talk, [x], [answer])
            return
        if REASONS[reason].applied is None:
            talk.doubted(x)
        await self.resume(talk)


def _refusal(answer: Any) -> tuple[str, dict[str, str]]:
    """Reason and metadata of an error; "" if the step was applied."""
    if answer is None:
        return "FENCED", {}  # unknown
    if isinstance(answer, ServeError):
        return answer.reason, dict(answer.metadata)
    if not answer.HasField("error"):
        return "", {}
    info = ErrorInfo()
    for detail in answer.error.details:
        if detail.Unpack(info):
            return info.reason, dict(info.metadata)
    raise AssertionError(f"an error without a reason: {answer.error}")


ACTIONS = {
    Unnumbered.step: 6,
    Unnumbered.pipelined: 6,
    Unnumbered.many: 3,
    Unnumbered.look: 1,
    Unnumbered.resume: 1,
    Unnumbered.restart: 1,
}
