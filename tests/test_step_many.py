"""StepMany over the wire: every layout, replies bit for bit, order, busy sessions, limits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode

from lstmserve.tokens import Limits
from lstmserve.v1 import lstm_pb2 as pb
from refusals import in_band
from wire import Good, Stream, Wire, serving

LENGTHS = [1, 3, 40, 1, 7]


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    """A server with small slices and room for 400 steps."""
    async with serving(tmp_path, slice_rows_max=16, pending_steps_max=400) as wire:
        yield wire


@pytest.fixture
def stream(wire: Wire) -> Stream:
    """A StepMany stream."""
    return wire.stream("StepMany")


def message(sessions: Sequence[Good], lengths: Sequence[int], **fields: Any) -> pb.StepManyRequest:
    """The next step of each session as a message, with these numbers of rows."""
    rows = np.concatenate([s.rows(n) for s, n in zip(sessions, lengths, strict=True)]).reshape(-1)
    kind = "tokens" if sessions[0].spec.num_embeddings else "x"
    values = {"session_ids": [s.id for s in sessions], "lengths": lengths, kind: rows, **fields}
    return pb.StepManyRequest(**values)


async def ask(stream: Stream, request: pb.StepManyRequest) -> pb.StepManyResponse:
    """Sends the message. Returns the stream's next answer."""
    await stream.write(request.SerializeToString())
    return pb.StepManyResponse.FromString(await stream.read())


def check(
    response: pb.StepManyResponse, sessions: Sequence[Good], lengths: Sequence[int], step: int = -1
) -> None:
    """Asserts that each session's rows of y are those of its step (by its place in `xs`)."""
    assert not response.HasField("error")
    assert not response.errors
    assert list(response.lengths or [1] * len(sessions)) == list(lengths)
    y = np.array(response.y, np.float32).reshape(sum(lengths), -1)
    start = 0
    for session, length in zip(sessions, lengths, strict=True):
        wanted = session.wanted(step)[-length:]
        assert np.array_equal(y[start : start + length], wanted)
        start += length
    assert list(response.steps) == [s.number(step) for s in sessions]


@pytest.mark.parametrize("model", ["m", "letters"])
@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("lengths", [[1] * 5, LENGTHS], ids=["one row each", "ragged"])
async def test_every_layout(
    wire: Wire, stream: Stream, model: str, last_only: bool, lengths: list[int]
) -> None:
    """With rows or tokens, ragged or not, all rows or the last, each session gets its own y,
    exactly."""
    sessions = [await wire.good(model) for _ in lengths]
    for _ in range(3):
        response = await ask(stream, message(sessions, lengths, last_only=last_only))
        check(response, sessions, [1] * 5 if last_only else lengths)
    for session in sessions:
        await session.check_state()


async def test_lengths_may_be_left_out(wire: Wire, stream: Stream) -> None:
    """Without lengths every session has one row, and the reply has no lengths, either."""
    sessions = [await wire.good() for _ in range(3)]
    request = message(sessions, [1, 1, 1])
    request.ClearField("lengths")
    response = await ask(stream, request)
    assert not response.lengths
    check(response, sessions, [1, 1, 1])


async def test_ids_may_be_left_out(wire: Wire, stream: Stream) -> None:
    """A message without ids belongs to the sessions of the one before it, even of a refused one."""
    sessions = [await wire.good() for _ in range(3)]
    bad = pb.StepManyRequest(session_ids=[s.id for s in sessions], x=[0.0])
    assert in_band((await ask(stream, bad)).error).reason == "BAD_TENSOR"
    for lengths in ([1, 1, 1], [2, 1, 20]):
        request = message(sessions, lengths)
        request.ClearField("session_ids")
        check(await ask(stream, request), sessions, lengths)


async def test_256_sessions_at_once(wire: Wire, stream: Stream) -> None:
    """A message of 256 sessions is one batch, and every session has its own reply."""
    sessions = [await wire.good() for _ in range(256)]
    for lengths in ([1] * 256, [1 + i % 3 for i in range(256)]):
        check(await ask(stream, message(sessions, lengths)), sessions, lengths)


async def test_messages_of_the_same_sessions_keep_their_order(wire: Wire, stream: Stream) -> None:
    """Pipelined messages of busy sessions run one after the other, also long steps."""
    sessions = [await wire.good() for _ in range(4)]
    plans = [[1, 1, 1, 1], [50, 1, 1, 2], [1, 1, 30, 1], [1, 1, 1, 1]]
    for tag, lengths in enumerate(plans):
        await stream.write(message(sessions, lengths, tag=tag).SerializeToString())
    for tag, lengths in enumerate(plans):
        response = pb.StepManyResponse.FromString(await stream.read())
        assert response.tag == tag
        check(response, sessions, lengths, tag)


async def test_disjoint_messages_may_overtake(wire: Wire, stream: Stream) -> None:
    """A short message of other sessions is answered before a long one, and tags tell them apart."""
    slow, quick = [await wire.good()], [await wire.good()]
    await stream.write(message(slow, [5000], tag=1).SerializeToString())
    await stream.write(message(quick, [1], tag=2).SerializeToString())
    first, second = [pb.StepManyResponse.FromString(await stream.read()) for _ in range(2)]
    assert (first.tag, second.tag) == (2, 1)
    check(first, quick, [1])
    check(second, slow, [5000])


async def test_steps_of_other_calls_are_waited_for(tmp_path: Path) -> None:
    """Sessions that are busy with a Step or a StepStream have their turn within the message."""
    async with serving(tmp_path, is_running=False) as wire:
        sessions = [await wire.good() for _ in range(3)]
        single = wire.stream("StepStream")
        await single.write(sessions[1].request(20).SerializeToString())
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == 1)
        stream = wire.stream("StepMany")
        await stream.write(message(sessions, [1, 1, 1]).SerializeToString())
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == 4)
        wire.run()
        check(pb.StepManyResponse.FromString(await stream.read()), sessions, [1, 1, 1])
        sessions[1].check(pb.StepResponse.FromString(await single.read()).y, 0)


async def test_a_deadline_fails_the_sessions_that_wait(tmp_path: Path) -> None:
    """If timeout_ms passes in the queue every session has DEADLINE, and no step is applied."""
    async with serving(tmp_path, is_running=False) as wire:
        sessions = [await wire.good() for _ in range(3)]
        stream = wire.stream("StepMany")
        await stream.write(message(sessions, [1, 2, 1], timeout_ms=5).SerializeToString())
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == 3)
        wire.clock.ahead_ns += 10**7
        wire.run()
        response = pb.StepManyResponse.FromString(await stream.read())
        assert [in_band(e.status).reason for e in response.errors] == ["DEADLINE"] * 3
        assert {in_band(e.status).code for e in response.errors} == {StatusCode.DEADLINE_EXCEEDED}
        assert np.isnan(response.y).all()
        for session in sessions:
            session.xs.clear()
            await session.step()


async def test_a_full_queue_refuses_the_message_whole(tmp_path: Path) -> None:
    """At pending_steps_max a message is accepted, and with one session more it is refused with a
    delay."""
    async with serving(tmp_path, is_running=False, pending_steps_max=4) as wire:
        sessions = [await wire.good() for _ in range(5)]
        stream = wire.stream("StepMany")
        await stream.write(message(sessions[:4], [1] * 4, tag=1).SerializeToString())
        late = pb.StepManyRequest(session_ids=[sessions[4].id], x=[0.0] * 3, tag=2)
        response = await ask(stream, late)
        said = in_band(response.error)
        assert response.tag == 2
        assert (said.code, said.reason) == (StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert said.retry_s is not None
        wire.run()
        check(pb.StepManyResponse.FromString(await stream.read()), sessions[:4], [1] * 4)
        await sessions[4].step()


async def test_what_the_queue_refused_is_not_counted(tmp_path: Path) -> None:
    """A message that finds no room takes nothing of its tenant's limit, however often it comes."""
    settings = {"is_running": False, "pending_steps_max": 4, "limits": Limits(pending_steps_max=6)}
    async with serving(tmp_path, **settings) as wire:
        sessions = [await wire.good() for _ in range(5)]
        stream = wire.stream("StepMany")
        await stream.write(message(sessions[:3], [1] * 3).SerializeToString())
        ids = [session.id for session in sessions[3:]]
        for _ in range(3):
            response = await ask(stream, pb.StepManyRequest(session_ids=ids, x=[0.0] * 6))
            assert in_band(response.error).reason == "OVERLOADED"
        wire.run()
        check(pb.StepManyResponse.FromString(await stream.read()), sessions[:3], [1] * 3)
        check(await ask(stream, message(sessions[1:], [1] * 4)), sessions[1:], [1] * 4)
