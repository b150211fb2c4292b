"""Every bad step of the catalogue, as raw bytes, on each call that takes steps.

One server for each row: it answers with the documented code and reason, says nothing it should
not, and a good session beside steps on, bit for bit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode

from badsteps import ROWS, Row
from lstmserve.v1 import lstm_pb2 as pb
from refusals import FOREIGN, Refusal, in_band, leaks
from test_catalogue_sessions import CASES, TAKEN, request_of
from wire import Wire, serving

COMPANY = 64
WITH_NAMES = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    """A server with a session of somebody else, and a length_max that is soon reached."""
    async with serving(tmp_path, length_max=64, reply_bytes_max=0) as wire:
        await wire.open(session_id=FOREIGN)
        yield wire


def check(said: Refusal, row: Row, wire: Wire) -> None:
    """The refusal is the row's, and leaks nothing."""
    assert (said.code, said.reason) == (row.code, row.reason), said
    assert said.fields == row.blamed
    assert said.metadata.keys() == row.metadata.keys()
    known = {key: value for key, value in row.metadata.items() if value != "?"}
    assert known.items() <= said.metadata.items()
    assert said.retry_s is None
    leaks(said, wire.folder)


@WITH_NAMES
async def test_step(wire: Wire, row: Row) -> None:
    """A bad Step is refused as documented; its session and its neighbours step on exactly."""
    good, own = await wire.good(), await wire.good(row.model)
    await own.step()
    said = await wire.refused("Step", row.step(own.session))
    check(said, row, wire)
    assert said.pushback is None
    await good.step()
    await own.step(3)
    await own.check_state()


@WITH_NAMES
async def test_step_in_a_stream(wire: Wire, row: Row) -> None:
    """A bad message of a StepStream is refused in band, and the stream goes on."""
    good, own = await wire.good(), await wire.good(row.model)
    stream = wire.stream("StepStream")
    await stream.write(own.request(tag=5).SerializeToString())
    first = pb.StepResponse.FromString(await stream.read())
    await stream.write(row.step(own.session))
    second = pb.StepResponse.FromString(await stream.read())
    own.check(first.y)
    assert first.tag == 5
    assert not second.y
    check(in_band(second.error), row, wire)
    await stream.write(good.request(tag=6).SerializeToString())
    third = pb.StepResponse.FromString(await stream.read())
    good.check(third.y)
    assert (third.tag, third.session_id) == (6, good.id)
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is StatusCode.OK
    await own.check_state()


async def test_the_whole_catalogue_beside_sessions_at_work(wire: Wire) -> None:
    """Every bad step on every call, and every other bad call, while 64 good sessions step: each
    of their replies is the oracle's, and the server is the same one at the end."""
    goods = [await wire.good() for _ in range(COMPANY)]
    await wire.open(session_id=TAKEN)
    strangers = {name: await wire.good(name) for name in ("m", "letters")}
    for stranger in strangers.values():
        await stranger.step()
    is_over, rounds = asyncio.Event(), 0

    async def work() -> None:
        nonlocal rounds
        while not is_over.is_set():
            await asyncio.gather(*(good.step(1 + i % 3) for i, good in enumerate(goods)))
            rounds += 1

    working = asyncio.create_task(work())
    stream = wire.stream("StepStream")
    for row in ROWS:
        content = row.step(strangers[row.model].session)
        check(await wire.refused("Step", content), row, wire)
        await stream.write(content)
        check(in_band(pb.StepResponse.FromString(await stream.read()).error), row, wire)
    for case in CASES:
        said = await wire.refused(case.method, request_of(case))
        assert (said.code, said.reason) == (case.code, case.reason), said
    is_over.set()
    await working
    stream.cancel()
    print(
        f"{len(ROWS)} bad steps, {len(CASES)} other bad calls; {COMPANY} sessions, {rounds} rounds"
    )
    assert rounds > 1
    for each in [*goods, *strangers.values()]:
        await each.step()
        await each.check_state()
    assert not wire.running.done()
