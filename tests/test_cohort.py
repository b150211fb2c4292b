"""A stream that names its sessions once, while they close, restart, expire and open again.

What it remembers of them between two messages must never be outdated.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from gated import Gate, gated
from lstmserve.engine.scheduling import ordering, settle
from lstmserve.v1 import lstm_pb2 as pb
from refusals import in_band, refusal
from wire import Good, Stream, Wire, serving

SECOND_NS = 10**9
TTLS_S = (10, 10_000)
PAUSES_S = (4, 4, 12)
OPS = 250


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    """A server that remembers for a day how sessions ended."""
    async with serving(tmp_path, tombstone_s=86_400) as wire:
        yield wire


async def ask(stream: Stream, **fields: Any) -> pb.StepManyResponse:
    """The answer to a message."""
    await stream.write(pb.StepManyRequest(**fields).SerializeToString())
    return pb.StepManyResponse.FromString(await stream.read())


def reasons(response: pb.StepManyResponse) -> dict[int, str]:
    """The reasons of the sessions that were not stepped."""
    return {error.index: in_band(error.status).reason for error in response.errors}


@dataclass
class Id:
    """What a session id stands for, by the rules of the contract."""

    name: str
    good: Good | None = None  # while it is open, or expired and no client has learned of it
    ttl_s: int = 0
    used_s: int = 0
    endings: dict[int, str] = field(default_factory=dict)  # by incarnation: how the last one ended
    told: int = 0  # the incarnation that a client last got

    def look(self, now_s: int) -> Good | None:
        """The session, unless it has expired."""
        if self.good is not None and self.used_s + self.ttl_s <= now_s:
            self.end("SESSION_EXPIRED")
        return self.good

    def end(self, reason: str) -> None:
        """Notes how it ended."""
        assert self.good is not None
        self.endings = {self.good.session.incarnation: reason}
        self.good = None

    def verdict(self, told: int, number: int | None, now_s: int) -> str:
        """The reason of the error that a step gets; "" for none."""
        if number is not None and not told:
            return "BAD_STEP"
        good = self.look(now_s)
        if good is not None:
            return "" if told in (0, good.session.incarnation) else "SESSION_REPLACED"
        if not told:
            return next(iter(self.endings.values()), "SESSION_NOT_FOUND")
        return self.endings.get(told, "SESSION_LOST")


class Lives:
    """Ids, and two streams that name some of them, each in its own order."""

    def __init__(self, wire: Wire, seed: int) -> None:
        self.wire = wire
        self.rng = np.random.default_rng(seed)
        self.ids = [Id(f"s{i}") for i in range(6)]
        self.cohorts = [self.ids, [self.ids[i] for i in (5, 0, 3)]]
        self.streams = [wire.stream("StepMany", timeout=300) for _ in self.cohorts]
        self.are_named = [False, False]
        self.counts: Counter[str] = Counter()

    @property
    def now_s(self) -> int:
        """The test's clock."""
        return self.wire.clock.ahead_ns // SECOND_NS

    async def open(self, each: Id) -> None:
        """Opens the id again, in place of what is there."""
        if each.look(self.now_s) is not None:
            each.end("replaced")
            each.endings.clear()
        each.ttl_s = int(self.rng.choice(TTLS_S))
        session = await self.wire.open(
            session_id=each.name, if_exists=2, ttl=Duration(seconds=each.ttl_s)
        )
        each.good, each.used_s, each.endings = Good(self.wire, "m", session), self.now_s, {}
        if self.rng.random() < 0.5:
            each.told = session.incarnation

    async def close(self, each: Id) -> None:
        """Closes the session if it is open."""
        if each.look(self.now_s) is not None:
            await self.wire.call("CloseSession", session_id=each.name)
            each.end("SESSION_CLOSED")

    async def step(self, each: Id) -> None:
        """Steps the session by another call: the stream does not learn of it."""
        good = each.look(self.now_s)
        if good is not None:
            await good.step()
            each.used_s = self.now_s

    def asked(self, members: Sequence[Id]) -> tuple[list[pb.StepRequest], list[str]]:
        """A step of each, in one of the forms there are, and what each must be answered."""
        rng = self.rng
        form = rng.choice(["bare", "told", "true", "numbered", "mixed"])
        if form == "true":
            for each in members:
                each.told = each.told if each.good is None else each.good.session.incarnation
        is_numbered = form == "numbered" or (form == "mixed" and rng.random() < 0.5)
        steps, verdicts = [], []
        for each in members:
            good = each.look(self.now_s)
            is_bare = form == "bare" or (form == "mixed" and rng.random() < 0.3)
            step = pb.StepRequest(session_id=each.name, x=[1.0] * 3)
            step.incarnation = 0 if is_bare else each.told
            if is_numbered:
                step.step = 1 if good is None else len(good.xs) + 1
            verdict = each.verdict(step.incarnation, step.step or None, self.now_s)
            if not verdict and rng.random() < 0.05:
                verdict = "NON_FINITE"
                step.x[1] = np.nan
            elif not verdict:
                assert good is not None
                step.x[:] = good.rows().reshape(-1)
                each.used_s = self.now_s
            steps.append(step)
            verdicts.append(verdict)
        return steps, verdicts

    async def message(self, which: int) -> None:
        """Sends a message to one of the streams; every session's answer must be what the rules
        say."""
        members = self.cohorts[which]
        steps, verdicts = self.asked(members)
        request = pb.StepManyRequest(x=[value for step in steps for value in step.x])
        if any(step.incarnation for step in steps):
            request.incarnations.extend(step.incarnation for step in steps)
        if steps[0].HasField("step"):
            request.steps.extend(step.step for step in steps)
        if not self.are_named[which] or self.rng.random() < 0.1:
            request.session_ids.extend(each.name for each in members)
            self.are_named[which] = True
        stream = self.streams[which]
        await stream.write(request.SerializeToString())
        response = pb.StepManyResponse.FromString(await stream.read())
        y = np.array(response.y, np.float32).reshape(-1, 2)
        self.check(reasons(response), list(response.steps), y, members, verdicts)

    async def together(self) -> None:
        """Sends the steps as calls that arrive together."""
        steps, verdicts = self.asked(self.ids)
        sent = [self.wire.send("Step", step.SerializeToString()) for step in steps]
        said, numbers = {}, [0] * len(sent)
        y = np.full((len(sent), 2), np.nan, np.float32)
        for i, reply in enumerate(await asyncio.gather(*sent, return_exceptions=True)):
            if isinstance(reply, grpc.aio.AioRpcError):
                said[i] = refusal(reply).reason
            else:
                assert isinstance(reply, bytes), reply
                response = pb.StepResponse.FromString(reply)
                numbers[i], y[i] = response.step, response.y
        self.check(said, numbers, y, self.ids, verdicts)

    def check(
        self,
        said: dict[int, str],
        numbers: list[int],
        y: Any,
        members: Sequence[Id],
        verdicts: Sequence[str],
    ) -> None:
        """Compares the answers with the verdicts."""
        for i, each in enumerate(members):
            # If an older life expired, the answer depends on whether it was swept yet.
            if verdicts[i] == "SESSION_LOST" and "SESSION_EXPIRED" in each.endings.values():
                assert said.pop(i) in ("SESSION_LOST", "SESSION_REPLACED")
                said[i] = "SESSION_LOST"
        assert said == {i: verdict for i, verdict in enumerate(verdicts) if verdict}
        self.counts.update(verdict or "applied" for verdict in verdicts)
        self.counts["whole"] += not any(verdicts)
        for i, (each, verdict) in enumerate(zip(members, verdicts, strict=True)):
            if verdict:
                assert numbers[i] == 0
                assert not y.size or np.isnan(y[i]).all()
            else:
                assert each.good is not None
                assert numbers[i] == len(each.good.xs)
                each.good.check(y[i])

    async def anything(self) -> None:
        """Does one of the things that may happen."""
        each = self.ids[self.rng.integers(len(self.ids))]
        chance = self.rng.random()
        if chance < 0.06:
            await self.close(each)
        elif chance < 0.25:
            gone = [one for one in self.ids if one.look(self.now_s) is None]
            for one in gone or [each]:
                await self.open(one)
        elif chance < 0.3:
            self.wire.clock.ahead_ns += int(self.rng.choice(PAUSES_S)) * SECOND_NS
        elif chance < 0.4:
            await self.step(each)
        elif chance < 0.6:
            await self.together()
        else:
            await self.message(int(self.rng.integers(2)))


@pytest.mark.parametrize("seed", range(4))
async def test_any_order_of_lives(wire: Wire, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After random opens, closes, restarts, pauses and steps between messages and calls, every
    answer is right."""
    monkeypatch.setattr(ordering, "COLUMNS_FROM", 1)
    monkeypatch.setattr(settle, "COLUMNS_FROM", 1)
    lives = Lives(wire, seed)
    for each in lives.ids[1:]:
        await lives.open(each)
    for _ in range(OPS):
        await lives.anything()
    print(lives.counts)
    for stream in lives.streams:
        await stream.done_writing()
    wanted = {"NON_FINITE", "BAD_STEP", "SESSION_REPLACED", "SESSION_CLOSED", "SESSION_EXPIRED"}
    assert wanted <= lives.counts.keys()
    assert lives.counts["whole"] > OPS // 10
    for each in lives.ids:
        if (good := each.look(lives.now_s)) is not None and good.xs:
            await good.check_state()


async def test_a_new_life_has_a_time_of_its_own(wire: Wire) -> None:
    """A session that was restarted with a short ttl expires by that one."""
    goods, stream = [await wire.good() for _ in range(3)], wire.stream("StepMany")

    async def step() -> pb.StepManyResponse:
        x = np.concatenate([good.rows().reshape(-1) for good in goods])
        return await ask(stream, session_ids=[] if goods[0].xs[1:] else ids, x=x)

    ids = [good.id for good in goods]
    assert reasons(await step()) == {}
    ttl = Duration(seconds=TTLS_S[0])
    goods[1] = Good(wire, "m", await wire.open(session_id=ids[1], if_exists=2, ttl=ttl))
    for pause_s in (0, *(TTLS_S[0] - 2 for _ in range(3))):  # each step renews the time
        wire.clock.ahead_ns += pause_s * SECOND_NS
        response = await step()
        assert reasons(response) == {}
        for good, y in zip(goods, np.split(np.array(response.y, np.float32), 3), strict=True):
            good.check(y)
    wire.clock.ahead_ns += (TTLS_S[0] + 2) * SECOND_NS
    assert reasons(await step()) == {1: "SESSION_EXPIRED"}
    for i in (0, 2):
        await goods[i].check_state()


@pytest.mark.parametrize("is_many", [True, False], ids=["StepMany", "Step"])
@pytest.mark.parametrize("is_numbered", [True, False], ids=["numbered", "bare"])
async def test_sessions_that_leave_while_they_wait(
    tmp_path: Path, is_many: bool, is_numbered: bool
) -> None:
    """Of a waiting block one session is closed, one restarted and one moved: the closed one runs
    first, the others are REPLACED and FENCED, and the rest runs as if nothing had happened."""
    async with serving(tmp_path, is_running=False) as wire:
        goods = [await wire.good() for _ in range(8)]
        steps = [good.request() for good in goods]
        for good, each in zip(goods, steps, strict=True):
            if is_numbered:
                each.step, each.incarnation = 1, good.session.incarnation
        stream = wire.stream("StepMany")
        message = pb.StepManyRequest(
            session_ids=[good.id for good in goods],
            steps=[each.step for each in steps] if is_numbered else [],
            incarnations=[each.incarnation for each in steps] if is_numbered else [],
            x=np.concatenate([good.xs[0].reshape(-1) for good in goods]),
        )
        if is_many:
            await stream.write(message.SerializeToString())
            calls = []
        else:
            sent = [each.SerializeToString() for each in steps]
            calls = [asyncio.create_task(wire.send("Step", each)) for each in sent]
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == len(goods))
        closing = asyncio.create_task(wire.call("CloseSession", session_id=goods[2].id))
        await wire.until(lambda: wire.engine.table.leaving == 1)
        anew = Good(wire, "m", await wire.open(session_id=goods[5].id, if_exists=2))
        row = wire.engine.table.find(f"/{goods[6].id}")
        assert row is not None
        wire.engine.sessions.detach(row, "moved")
        assert wire.engine.table.leaving == 3
        behind = wire.stream("StepMany")
        nexts = [anew if i == 5 else goods[i] for i in (0, 1, 2, 3, 4, 5, 7)]
        xs = [np.ones(3) if i == 2 else good.rows().reshape(-1) for i, good in enumerate(nexts)]
        request = pb.StepManyRequest(session_ids=[good.id for good in nexts], x=np.concatenate(xs))
        await behind.write(request.SerializeToString())
        await wire.until(
            lambda: wire.engine.batch_loop.pending_steps == len(goods) + len(nexts) - 1
        )
        wire.run()
        lost = {5: "SESSION_REPLACED", 6: "FENCED"}
        if is_many:
            response = pb.StepManyResponse.FromString(await stream.read())
            assert reasons(response) == lost
            assert list(response.steps) == [1, 1, 1, 1, 1, 0, 0, 1]
            for i, y in enumerate(np.array(response.y, np.float32).reshape(8, -1)):
                goods[i].check(y, 0) if i not in lost else np.testing.assert_equal(y, np.nan)
        else:
            replies = await asyncio.gather(*calls, return_exceptions=True)
            for i, (good, reply) in enumerate(zip(goods, replies, strict=True)):
                if isinstance(reply, bytes):
                    good.check(pb.StepResponse.FromString(reply).y, 0)
                else:
                    assert isinstance(reply, grpc.aio.AioRpcError)
                    assert refusal(reply).reason == lost[i]
        assert (await closing).step == 1
        response = pb.StepManyResponse.FromString(await behind.read())
        assert reasons(response) == {2: "SESSION_CLOSED"}
        assert wire.engine.table.leaving == 0
        y = np.array(response.y, np.float32).reshape(len(nexts), -1)
        assert np.isnan(y[2]).all()
        for i in (0, 1, 3, 4, 5, 6):
            nexts[i].check(y[i])
            await nexts[i].step()
            await nexts[i].check_state()


@pytest.mark.parametrize("pool_bytes", [4 << 20, 3 * 8192], ids=["room for all", "a small pool"])
async def test_sessions_that_move_between_servers(tmp_path: Path, pool_bytes: int) -> None:
    """Two servers of one store are sent the same sessions in turn: one that has moved is FENCED or
    comes back, and no output is another session's."""
    rng, fenced = np.random.default_rng(4), 0
    small = {"batch_sessions_max": 8, "long_steps_max": 8, "batch_cells_max": 64}
    settings: dict[str, Any] = {**small, "pool_bytes": pool_bytes}
    async with (
        gated(tmp_path, **settings) as (one, gate),
        serving(tmp_path / "models", store=Gate(gate.behind), **settings) as other,
    ):
        goods = [await one.good() for _ in range(6)]
        incarnations = [good.session.incarnation for good in goods]
        servers = [one, other]
        streams = [server.stream("StepMany", timeout=300) for server in servers]
        are_named = [False, False]
        for _ in range(60):
            which = int(rng.integers(2))
            form = rng.choice(["bare", "told", "numbered"])
            request = pb.StepManyRequest(
                session_ids=[] if are_named[which] else [good.id for good in goods],
                x=np.concatenate([good.rows().reshape(-1) for good in goods]),
                incarnations=[] if form == "bare" else incarnations,
                steps=[len(good.xs) for good in goods] if form == "numbered" else [],
            )
            are_named[which] = True
            await streams[which].write(request.SerializeToString())
            response = pb.StepManyResponse.FromString(await streams[which].read())
            said = reasons(response)
            assert set(said.values()) <= {"FENCED"}
            fenced += len(said)
            y = np.array(response.y, np.float32).reshape(len(goods), -1)
            for i, good in enumerate(goods):
                if i in said:
                    good.xs.pop()
                    assert np.isnan(y[i]).all()
                else:
                    assert response.steps[i] == len(good.xs)
                    good.check(y[i])
        assert fenced
        for good in goods:
            good.wire = servers[int(rng.integers(2))]
            await good.check_state()
        for stream in streams:
            await stream.done_writing()
