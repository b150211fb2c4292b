"""Every bad step of the catalogue, as raw bytes, on each call that takes steps.

Each row has a server of its own. It answers with the documented code and reason, reveals nothing
else, and a good session beside it steps on, bit for bit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode

from badsteps import ROWS, Row
from lstmserve.v1 import lstm_pb2 as pb
from refusals import FOREIGN, Refusal, in_band, leaks
from wire import Wire, serving

WITH_NAMES = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    """A server with a session of another tenant, and a length_max that is soon reached."""
    async with serving(tmp_path, length_max=64, reply_bytes_max=0) as wire:
        await wire.open(session_id=FOREIGN)
        yield wire


def check(said: Refusal, row: Row, wire: Wire) -> None:
    """Asserts that the refusal is the row's, and leaks nothing."""
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
