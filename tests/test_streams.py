"""StepStream over the wire: order, inheritance, errors in band, backpressure, clients that die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from grpc import StatusCode

from badsteps import NAN
from lstmserve.v1 import lstm_pb2 as pb
from refusals import in_band
from wire import Stream, Wire, serving

WINDOW = 8


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    """A server with a small window."""
    async with serving(tmp_path, stream_window=WINDOW) as wire:
        yield wire


@pytest.fixture
def stream(wire: Wire) -> Stream:
    """A StepStream."""
    return wire.stream("StepStream")


async def test_every_session_has_its_own_order(wire: Wire, stream: Stream) -> None:
    """Steps of three sessions, long and short, pipelined on one stream, are all exact."""
    sessions = [await wire.good(), await wire.good(), await wire.good("letters")]
    by_id = {each.id: each for each in sessions}
    rng = np.random.default_rng(0)
    sent = []
    for tag in range(60):
        who = sessions[rng.integers(3)]
        sent.append((tag, who))
        request = who.request(int(rng.choice([1, 1, 2, 99])), tag=tag)
        await stream.write(request.SerializeToString())
        if len(sent) >= WINDOW:
            break
    await stream.done_writing()
    seen: dict[str, int] = dict.fromkeys(by_id, 0)
    while (content := await stream.read()) is not grpc.aio.EOF:
        reply = pb.StepResponse.FromString(content)
        own = by_id[reply.session_id]
        own.check(reply.y, reply.step - 1)
        assert reply.step == seen[own.id] + 1
        assert reply.length == len(own.xs[reply.step - 1])
        assert sent[reply.tag][1] is own
        seen[own.id] += 1
    assert sum(seen.values()) == len(sent)
    assert await stream.code() is StatusCode.OK
    for each in sessions:
        await each.step()  # the end of a stream closes no session


async def test_an_empty_id_is_the_last_one(wire: Wire, stream: Stream) -> None:
    """A message without an id means the session of the message before it, even of a refused one."""
    a, b = await wire.good(), await wire.good()
    for own, is_named in ((a, True), (a, False), (b, True), (b, False), (b, False)):
        request = own.request()
        if not is_named:
            request.session_id = ""
        await stream.write(request.SerializeToString())
        reply = pb.StepResponse.FromString(await stream.read())
        own.check(reply.y)
        assert reply.session_id == own.id
    await stream.write(pb.StepRequest(session_id=a.id).SerializeToString())
    assert in_band(pb.StepResponse.FromString(await stream.read()).error).reason == "EMPTY_INPUT"
    request = a.request()
    request.session_id = ""
    await stream.write(request.SerializeToString())
    a.check(pb.StepResponse.FromString(await stream.read()).y)


async def test_the_first_message_needs_an_id(wire: Wire, stream: Stream) -> None:
    """A stream that begins without an id gets an error, and goes on with the next id."""
    a = await wire.good()
    await stream.write(pb.StepRequest(x=[0.0] * 3, tag=3).SerializeToString())
    reply = pb.StepResponse.FromString(await stream.read())
    assert reply.tag == 3
    assert in_band(reply.error).reason == "BAD_SESSION_ID"
    await stream.write(a.request().SerializeToString())
    a.check(pb.StepResponse.FromString(await stream.read()).y)


async def test_last_only_sends_one_row(wire: Wire, stream: Stream) -> None:
    """With last_only a long step's reply is its last row, and the session goes on."""
    a = await wire.good()
    await stream.write(a.request(11, last_only=True).SerializeToString())
    reply = pb.StepResponse.FromString(await stream.read())
    assert reply.length == 1
    assert np.array_equal(np.array(reply.y, np.float32), a.wanted()[-1])
    await a.step()


async def test_a_bad_step_in_a_pipeline_fails_alone(wire: Wire, stream: Stream) -> None:
    """A refused step takes no number, and those before and after it are applied."""
    a = await wire.good()
    bad = pb.StepRequest(session_id=a.id, x=[NAN] * 3, tag=99)
    for content in (a.request(tag=1), bad, a.request(tag=2)):
        await stream.write(content.SerializeToString())
    replies = [pb.StepResponse.FromString(await stream.read()) for _ in range(3)]
    by_tag = {reply.tag: reply for reply in replies}
    assert in_band(by_tag[99].error).reason == "NON_FINITE"
    a.check(by_tag[1].y, 0)
    a.check(by_tag[2].y, 1)
    assert (by_tag[1].step, by_tag[2].step) == (1, 2)
    await a.check_state()


async def test_a_client_that_does_not_read_stops_itself(tmp_path: Path) -> None:
    """The server reads a window of messages ahead, and the rest as replies are read."""
    async with serving(tmp_path, stream_window=WINDOW, slice_rows_max=1000) as wire:
        await flood_and_read(wire, wire.stream("StepStream"))


async def flood_and_read(wire: Wire, stream: Stream) -> None:
    """Sends and reads ten megabytes, more than HTTP/2 buffers."""
    a = await wire.good()
    contents = [a.request(1000).SerializeToString() for _ in range(1000)]
    sent = 0

    async def flood() -> None:
        nonlocal sent
        for content in contents:
            await stream.write(content)
            sent += 1
        await stream.done_writing()

    flooding = asyncio.create_task(flood())
    seen, quiet = -1, 0
    while quiet < 100:
        session = (await wire.call("GetSession", session_id=a.id)).session
        assert session.pending_steps <= WINDOW
        quiet = quiet + 1 if sent == seen else 0
        seen = sent
    print(f"stopped at {sent} of {len(contents)}, {session.step} applied")
    assert session.step < sent < len(contents), "nothing held the client back"
    numbers = []
    while (content := await stream.read()) is not grpc.aio.EOF:
        numbers.append(pb.StepResponse.FromString(content).step)
    await flooding
    assert numbers == list(range(1, len(contents) + 1))
    await a.check_state()


async def test_a_deadline_in_the_queue_is_told(tmp_path: Path) -> None:
    """A step whose timeout_ms passes in the queue is not applied, nor are those after it."""
    async with serving(tmp_path, is_running=False) as wire:
        await deadline_in_the_queue(wire, wire.stream("StepStream"))


async def deadline_in_the_queue(wire: Wire, stream: Stream) -> None:
    """The deadline passes on a server whose engine does not run yet."""
    a = await wire.good()
    for tag, timeout_ms in ((1, 5), (2, 0)):
        request = pb.StepRequest(session_id=a.id, x=[0.0] * 3, timeout_ms=timeout_ms, tag=tag)
        await stream.write(request.SerializeToString())
    await wire.until(lambda: wire.engine.batch_loop.pending_steps == 2)
    wire.clock.ahead_ns += 10**7
    wire.run()
    replies = [pb.StepResponse.FromString(await stream.read()) for _ in range(2)]
    said = [in_band(reply.error) for reply in replies]
    assert [reply.tag for reply in replies] == [1, 2]
    assert [each.reason for each in said] == ["DEADLINE", "PREDECESSOR_FAILED"]
    assert [each.code for each in said] == [StatusCode.DEADLINE_EXCEEDED, StatusCode.ABORTED]
    await a.step()
    await a.check_state()


@pytest.mark.parametrize("moment", range(6))
async def test_a_client_that_dies_leaves_what_was_applied(
    wire: Wire, stream: Stream, moment: int
) -> None:
    """A cancelled stream ends after some of its steps, and the session goes on from there."""
    a, other = await wire.good(), await wire.good()
    for request in [a.request(int(n)) for n in (1, 90, 1, 50, 1)]:
        await stream.write(request.SerializeToString())
    for _ in range(moment):
        await stream.read() if moment == 5 else await asyncio.sleep(0)
    stream.cancel()
    applied = await wire.settled(a.id)
    assert applied <= 5
    print(f"applied {applied}")
    a.xs = a.xs[:applied]
    await a.step()
    await a.check_state()
    await other.step()
