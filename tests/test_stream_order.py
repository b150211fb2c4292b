"""The order of replies on a stream: one session's come as its messages went, errors too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from lstmserve.v1 import lstm_pb2 as pb
from refusals import in_band
from wire import Wire, serving

X = [0.5, -1.0, 2.0]
SECOND_NS = 1_000_000_000
Make = Callable[[pb.Session], bytes]


def step(session: pb.Session, **fields: Any) -> bytes:
    """A StepRequest of the session; `fields` replace those of a good one."""
    values = {"session_id": session.id, "incarnation": session.incarnation, "x": X, **fields}
    return pb.StepRequest(**values).SerializeToString()


# A third message that is answered at once, or at another time than those before it.
THIRDS: dict[str, tuple[str, Make]] = {
    "malformed": ("MALFORMED", lambda _: b"\xff\xff\xff"),
    "bad tensor": ("BAD_TENSOR", lambda session: step(session, step=3, x=X[:2])),
    "not finite": ("NON_FINITE", lambda session: step(session, step=3, x=[float("nan")] * 3)),
    "bad number": ("BAD_STEP", lambda session: step(session, step=-3)),
    "duplicate": ("", lambda session: step(session, step=2)),
    "other payload": ("STEP_PAYLOAD_MISMATCH", lambda session: step(session, step=2, x=[1, 1, 1])),
    "gap": ("STEP_GAP", lambda session: step(session, step=9)),
    "replaced": ("SESSION_REPLACED", lambda session: step(session, incarnation=7, step=3)),
    "too long": ("TOO_LONG", lambda session: step(session, step=3, length=10_001)),
}


async def replies(stream: Any, count: int) -> list[pb.StepResponse]:
    """The next replies of a StepStream."""
    return [pb.StepResponse.FromString(await stream.read()) for _ in range(count)]


@pytest.mark.parametrize("kind", list(THIRDS))
async def test_no_reply_overtakes_one_of_its_session(tmp_path: Path, kind: str) -> None:
    """A third message that fails, or repeats, is answered third, with its session and number."""
    reason, make = THIRDS[kind]
    async with serving(tmp_path, is_running=False) as wire:
        session = await wire.open()
        stream = wire.stream("StepStream")
        for number in (1, 2):
            await stream.write(step(session, step=number, tag=number))
        third = make(session)
        await stream.write(third)
        for number in (3, 4, 5):
            await stream.write(step(session, step=number, tag=number + 1))
        await stream.done_writing()
        await wire.until(lambda: wire.engine.batch_loop.pending_steps >= 5)
        wire.run()
        found = await replies(stream, 6)
        assert [reply.tag for reply in found] == [1, 2, 0, 4, 5, 6]
        assert [reply.step for reply in found if reply.tag] == [1, 2, 3, 4, 5]
        if reason:
            asked = pb.StepRequest() if kind == "malformed" else pb.StepRequest.FromString(third)
            assert in_band(found[2].error).reason == reason
            assert (found[2].session_id, found[2].step) == (asked.session_id, asked.step)
        else:
            assert found[2].y == found[1].y
        assert await stream.read() is grpc.aio.EOF


async def test_a_deadline_is_told_in_its_turn(tmp_path: Path) -> None:
    """A step that is too late fails after the steps before it are answered, and later ones
    follow."""
    async with serving(tmp_path, is_running=False) as wire:
        session = await wire.open()
        stream = wire.stream("StepStream")
        for tag, timeout_ms in enumerate((0, 0, 10, 0), 1):
            await stream.write(step(session, tag=tag, timeout_ms=timeout_ms))
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == 4)
        wire.clock.ahead_ns += SECOND_NS
        wire.run()
        assert [reply.tag for reply in await replies(stream, 4)] == [1, 2, 3, 4]
        await stream.done_writing()


async def test_a_drain_refuses_in_order(tmp_path: Path) -> None:
    """A leaving server's refusals are answered after the steps that it took before."""
    async with serving(tmp_path, is_running=False) as wire:
        session = await wire.open()
        stream = wire.stream("StepStream")
        for tag in (1, 2):
            await stream.write(step(session, tag=tag))
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == 2)
        closing = asyncio.create_task(wire.engine.close(5))
        await asyncio.sleep(0)
        await refused_behind(wire, stream, session)
        await closing


async def test_a_full_session_refuses_in_order(tmp_path: Path) -> None:
    """Steps beyond --session-pending-max are refused after those within it are answered."""
    async with serving(tmp_path, is_running=False, session_pending_max=2) as wire:
        session = await wire.open()
        stream = wire.stream("StepStream")
        for tag in (1, 2):
            await stream.write(step(session, tag=tag))
        await refused_behind(wire, stream, session)


async def refused_behind(wire: Wire, stream: Any, session: pb.Session) -> None:
    """Sends two steps more, which are refused at once, and answered after the two before them."""
    for tag in (3, 4):
        await stream.write(step(session, tag=tag))
    await stream.write(step(session, tag=5, session_id="another", x=[]))
    assert (await replies(stream, 1))[0].tag == 5  # all before it are read then
    wire.run()
    found = await replies(stream, 4)
    assert [reply.tag for reply in found] == [1, 2, 3, 4]
    assert [reply.HasField("error") for reply in found] == [False, False, True, True]
    await stream.done_writing()


async def test_other_sessions_may_overtake(tmp_path: Path) -> None:
    """A refusal of one session does not wait for another session's steps."""
    async with serving(tmp_path, is_running=False) as wire:
        waits, fails = await wire.open(), await wire.open()
        stream = wire.stream("StepStream")
        await stream.write(step(waits, tag=1))
        await stream.write(step(fails, tag=2, x=[]))
        (first,) = await replies(stream, 1)
        assert (first.tag, first.session_id) == (2, fails.id)
        wire.run()
        assert [reply.tag for reply in await replies(stream, 1)] == [1]
        await stream.done_writing()


@pytest.mark.parametrize("kind", ["whole", "each", "malformed"])
async def test_a_step_many_of_the_same_sessions_waits_its_turn(tmp_path: Path, kind: str) -> None:
    """A refused StepMany message is answered after those that share a session with it, and no
    others."""
    async with serving(tmp_path, is_running=False) as wire:
        ids = [(await wire.open()).id for _ in range(4)]
        stream = wire.stream("StepMany")

        def message(tag: int, names: list[str], **fields: Any) -> bytes:
            values = {"tag": tag, "session_ids": names, "x": X * len(names), **fields}
            return pb.StepManyRequest(**values).SerializeToString()

        bad = {
            "whole": message(2, ids[1:3], x=X),
            "each": message(2, ids[1:3], incarnations=[7, 7]),
            "malformed": b"\xff\xff\xff",
        }[kind]
        await stream.write(message(1, ids[:2]))
        await stream.write(bad)
        await stream.write(message(3, ids[3:], x=[]))  # it shares no session, so it may overtake

        async def reply() -> pb.StepManyResponse:
            return pb.StepManyResponse.FromString(await stream.read())

        assert (await reply()).tag == 3
        wire.run()
        assert (await reply()).tag == 1
        refused = await reply()
        assert refused.tag == (0 if kind == "malformed" else 2)
        assert refused.errors or refused.HasField("error")
        await stream.done_writing()
