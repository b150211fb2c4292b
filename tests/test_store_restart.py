"""RESTART of a session that is stepped without pause: it succeeds, and every step's answer is
true."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from gated import Gate, Trouble, failed, gated
from lstmserve.engine.errors import StoreTimeout, StoreUnavailable
from lstmserve.store import Store, Write, WriteOutcome, version_of
from lstmserve.v1 import lstm_pb2 as pb
from refusals import in_band, refusal
from wire import Wire

RESTART = pb.IF_EXISTS_RESTART
HOURS = {"store_mode": "behind", "behind_s_max": 3600}
TOGETHER = 8
RESTARTS = 12
LONG = 300  # time steps: several slices
PASSES = 300
TRUTHS = {"FENCED", "PREDECESSOR_FAILED"}  # of a step that was not applied and may be repeated


def away() -> StoreUnavailable:
    """The error of a store that is away."""
    return StoreUnavailable("away")


def lost() -> StoreTimeout:
    """The error of a store that does not answer."""
    return StoreTimeout("lost")


class Beginnings:
    """A store that can hold up, refuse or not answer a write that replaces a life."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.count = 0
        self.going = asyncio.Event()
        self.going.set()
        self.before: Trouble | None = None  # raised in place of the write
        self.after: Trouble | None = None  # raised though it was written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def put(self, writes: Sequence[Write]) -> list[WriteOutcome]:
        if not any(map(is_beginning, writes)):
            return await self._store.put(writes)
        self.count += 1
        await self.going.wait()
        if self.before is not None:
            return failed(self.before, writes)
        written = await self._store.put(writes)
        if self.after is not None:
            return failed(self.after, writes)
        return written


def is_beginning(write: Write) -> bool:
    """Whether the write replaces one life by another."""
    if write.expected is None or write.content is None:
        return False
    return version_of(write.content).incarnation != write.expected.incarnation


@contextlib.asynccontextmanager
async def storing(folder: Path, **settings: Any) -> AsyncIterator[tuple[Wire, Gate, Beginnings]]:
    """A server, and its store."""
    async with gated(folder, slice_rows_max=64, **settings) as (wire, gate):
        gate.behind = beginnings = Beginnings(gate.behind)
        yield wire, gate, beginnings


class Stepping:
    """One life of a session, and calls that step it without pause until it is over."""

    def __init__(self, wire: Wire, session: pb.Session, *, is_named: bool = True) -> None:
        self.wire = wire
        self.session = session
        self.named = {"incarnation": session.incarnation} if is_named else {}
        self.replies: dict[int, tuple[list[float], pb.StepResponse]] = {}
        self.repeated: list[str] = []
        self.ends: list[str] = []
        self.is_over = False
        self.calls = [asyncio.create_task(self._step(seed)) for seed in range(TOGETHER)]

    async def _step(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        length = LONG if seed == 0 else 1
        while not self.is_over:
            x = rng.standard_normal(3 * length, np.float32).tolist()
            fields = {"session_id": self.session.id, "x": x, "length": length, **self.named}
            try:
                reply = await self.wire.call("Step", **fields)
            except grpc.aio.AioRpcError as error:
                said = refusal(error).reason
                if said not in TRUTHS:
                    self.ends.append(said)
                    return
                self.repeated.append(said)
                continue
            assert reply.step not in self.replies, "two steps of one number"
            self.replies[reply.step] = x, reply

    async def under_way(self) -> None:
        """Waits until some of its steps are answered."""
        wanted = len(self.replies) + 2 * TOGETHER
        await self.wire.until(lambda: len(self.replies) >= wanted or len(self.ends) > 0)

    async def end(self) -> list[str]:
        """The reasons with which the calls ended, except those that were asked to end.

        Every answer must be the oracle's.
        """
        await asyncio.gather(*self.calls)
        assert sorted(self.replies) == list(range(1, len(self.replies) + 1))
        found = [self.replies[number] for number in sorted(self.replies)]
        x = np.concatenate([np.array(x, np.float32) for x, _ in found]).reshape(-1, 3)
        y, _, _ = self.wire.oracles["m"].run(x)
        assert np.array_equal(np.concatenate([reply.y for _, reply in found]), y.reshape(-1))
        return self.ends


def restart(session_id: str) -> pb.OpenSessionRequest:
    """The request to restart that session."""
    return pb.OpenSessionRequest(model="m", session_id=session_id, if_exists=RESTART)


async def restarted(wire: Wire, session_id: str) -> pb.Session:
    """Restarts the session. Returns the new life."""
    opened = await wire.call("OpenSession", restart(session_id))
    assert opened.created
    assert opened.session.step == 0
    return opened.session


async def passes() -> None:
    """Lets everything happen that can."""
    for _ in range(PASSES):
        await asyncio.sleep(0)


@pytest.mark.parametrize("mode", ["through", "behind"])
async def test_it_succeeds_at_once(tmp_path: Path, mode: str) -> None:
    """It succeeds again and again, and steps of the old life get SESSION_REPLACED, once it is
    true."""
    async with storing(tmp_path, store_mode=mode) as (wire, gate, beginnings):
        session = await wire.open()
        for i in range(RESTARTS):
            stepping = Stepping(wire, session)
            await stepping.under_way()
            if i % 2:
                beginnings.going.clear()
            call = asyncio.create_task(restarted(wire, session.id))
            if i % 2:
                await wire.until(lambda: beginnings.count == i + 1)  # noqa: B023 -- awaited
                await passes()
                assert stepping.ends == []
                beginnings.going.set()
            session = await call
            assert await stepping.end() == ["SESSION_REPLACED"] * TOGETHER
            assert stepping.repeated == []
        assert await gate.version(session.id) == (session.incarnation, 0, 0)


@pytest.mark.parametrize("mode", ["through", "behind"])
@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("trouble", [away, lost])
async def test_one_that_fails_replaces_nobody(
    tmp_path: Path, mode: str, is_named: bool, trouble: Trouble
) -> None:
    """No step gets SESSION_REPLACED, and none is acknowledged by the new life, which failed: the
    old life goes on."""
    async with storing(tmp_path, store_mode=mode) as (wire, _, beginnings):
        session = await wire.open()
        stepping = Stepping(wire, session, is_named=is_named)
        beginnings.before = trouble
        for i in range(RESTARTS // 2):
            await stepping.under_way()
            beginnings.going.clear()
            content = restart(session.id).SerializeToString()
            call = asyncio.create_task(wire.refused("OpenSession", content))
            await wire.until(lambda: beginnings.count == i + 1)  # noqa: B023 -- awaited
            await passes()
            beginnings.going.set()
            assert (await call).reason == trouble().reason
        await stepping.under_way()
        stepping.is_over = True
        assert await stepping.end() == []
        assert stepping.repeated
        state = (await wire.call("GetState", session_id=session.id)).state
        assert state.step == len(stepping.replies)


@pytest.mark.parametrize("mode", ["through", "behind"])
async def test_one_whose_answer_was_lost_is_told_as_it_is(tmp_path: Path, mode: str) -> None:
    """The restart was stored, so waiting steps must be repeated, and then get SESSION_REPLACED."""
    async with storing(tmp_path, store_mode=mode) as (wire, gate, beginnings):
        session = await wire.open()
        stepping = Stepping(wire, session)
        await stepping.under_way()
        beginnings.after = lost
        beginnings.going.clear()
        content = restart(session.id).SerializeToString()
        call = asyncio.create_task(wire.refused("OpenSession", content))
        await wire.until(lambda: beginnings.count == 1)
        await passes()  # until steps wait for the restart
        beginnings.going.set()
        assert (await call).reason == "STORE_TIMEOUT"
        assert await stepping.end() == ["SESSION_REPLACED"] * TOGETHER
        assert stepping.repeated
        stored = await gate.version(session.id)
        assert stored is not None
        assert (stored.incarnation > session.incarnation, stored.step) == (True, 0)


@pytest.mark.parametrize("mode", ["through", "behind"])
@pytest.mark.parametrize("trouble", [None, away])
async def test_steps_of_a_new_life_wait_for_it(
    tmp_path: Path, mode: str, trouble: Trouble | None
) -> None:
    """Steps that name no incarnation may step the new life before the store has it."""
    async with storing(tmp_path, store_mode=mode) as (wire, _, beginnings):
        session = await wire.good()
        await session.step()
        beginnings.going.clear()
        beginnings.before = trouble
        call = asyncio.create_task(wire.call("OpenSession", restart(session.id)))
        await wire.until(lambda: beginnings.count == 1)
        stream = wire.stream("StepMany")
        x = session.rows().reshape(-1)
        request = pb.StepManyRequest(session_ids=[session.id], x=x)
        await stream.write(request.SerializeToString())
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == 1)
        await passes()
        assert wire.engine.batch_loop.pending_steps == 1
        beginnings.going.set()
        reply = pb.StepManyResponse.FromString(await stream.read())
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        if trouble is None:
            session.session = (await call).session
            del session.xs[0]
            assert reply.steps == [1]
            session.check(reply.y)
        else:
            with pytest.raises(grpc.aio.AioRpcError):
                await call
            assert in_band(reply.errors[0].status).reason == "FENCED"
            session.xs.pop()
        await session.step()
        await session.check_state()


async def test_a_neighbour_in_a_message_does_not_stand_still(tmp_path: Path) -> None:
    """Of a StepMany message one session is being replaced, and the other one is stepped
    meanwhile."""
    async with storing(tmp_path, **HOURS) as (wire, gate, _):
        replaced, other = await wire.good(), await wire.good()
        await replaced.step()
        row = wire.engine.table.find(f"/{other.id}")
        x = [0.5, -1.0, 2.0] * 2
        stream = wire.stream("StepMany")
        with gate.held():
            count = len(gate.puts)
            call = asyncio.create_task(restarted(wire, replaced.id))
            await wire.until(lambda: len(gate.puts) > count)
            request = pb.StepManyRequest(session_ids=[replaced.id, other.id], x=x)
            await stream.write(request.SerializeToString())
            await wire.until(lambda: wire.engine.table.step[row] == 1)
            assert wire.engine.batch_loop.pending_steps == 1
        await call
        reply = pb.StepManyResponse.FromString(await stream.read())
        assert [error.index for error in reply.errors] == [0]
        assert in_band(reply.errors[0].status).reason == "SESSION_REPLACED"
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF


async def test_a_shutdown_does_not_wait_for_those_that_stand_still(tmp_path: Path) -> None:
    """When the server's time is over, the steps that wait end with its last refusal."""
    async with storing(tmp_path, **HOURS) as (wire, gate, _):
        session = await wire.good()
        await session.step()
        with gate.held():
            count = len(gate.puts)
            call = asyncio.create_task(restarted(wire, session.id))
            await wire.until(lambda: len(gate.puts) > count)
            step = asyncio.create_task(wire.refused("Step", session.request().SerializeToString()))
            await wire.until(lambda: wire.engine.batch_loop.pending_steps == 1)
            ending = asyncio.create_task(wire.engine.close(0.01))
            assert (await step).reason == "DRAINING"
        await asyncio.gather(ending, call)
