"""The whole catalogue of bad content on every call, while good sessions step.

The good sessions step in every way there is, and some share messages with bad ones: none of their
outputs may differ from the oracle's.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import test_catalogue_predict as predict
from badmessages import BAD_SESSIONS, GARBAGE, WHOLE, among
from badsteps import ROWS
from lstmserve.v1 import lstm_pb2 as pb
from refusals import FOREIGN, in_band, leaks
from test_catalogue import check
from test_catalogue_sessions import CASES, TAKEN, request_of
from wire import Good, Stream, Wire, serving, tensors

COMPANY = 64
PREDICTS = 2
LONG = {"timeout": 300.0}  # the machine may be busy
Work = Callable[[], Awaitable[None]]


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    """A server with limits that are soon reached, and a session of another tenant."""
    limits = {"length_max": 64, "pending_steps_max": 300, "predict_rows_max": 400}
    async with serving(tmp_path, reply_bytes_max=0, **limits) as wire:
        await wire.open(session_id=FOREIGN)
        yield wire


def by_step(goods: Sequence[Good]) -> Work:
    """Sends a Step of each session at once."""

    async def step() -> None:
        await asyncio.gather(*(good.step(1 + i % 2) for i, good in enumerate(goods)))

    return step


def by_stream(wire: Wire, goods: Sequence[Good]) -> Work:
    """Sends a message of each session on one StepStream, before any reply is read, in any order."""
    stream, named = wire.stream("StepStream", **LONG), {good.id: good for good in goods}

    async def step() -> None:
        for good in goods:
            await stream.write(good.request().SerializeToString())
        waiting = dict(named)
        while waiting:
            response = pb.StepResponse.FromString(await stream.read())
            good = waiting.pop(response.session_id)
            assert response.step == good.number(), response
            good.check(response.y)

    return step


def next_of(goods: Sequence[Good], *, is_named: bool, is_numbered: bool) -> pb.StepManyRequest:
    """The next steps of the sessions as one message."""
    x = np.concatenate([good.rows().reshape(-1) for good in goods])
    request = pb.StepManyRequest(x=x)
    if is_named:
        request.session_ids.extend(good.id for good in goods)
    if is_numbered:
        request.steps.extend(good.number() for good in goods)
        request.incarnations.extend(good.session.incarnation for good in goods)
    return request


def check_all(response: pb.StepManyResponse, goods: Sequence[Good]) -> None:
    """Asserts that the reply to next_of() is right."""
    assert not response.HasField("error"), response.error
    assert not response.errors
    assert list(response.steps) == [good.number() for good in goods]
    y = np.array(response.y, np.float32).reshape(len(goods), -1)
    for good, each in zip(goods, y, strict=True):
        good.check(each)


def by_messages(wire: Wire, goods: Sequence[Good]) -> Work:
    """Sends messages of all sessions on one StepMany, in turn with and without ids and numbers."""
    stream, counter = wire.stream("StepMany", **LONG), itertools.count()

    async def step() -> None:
        round_ = next(counter)
        request = next_of(goods, is_named=round_ % 4 == 0, is_numbered=round_ % 3 > 0)
        check_all(await ask(stream, request.SerializeToString()), goods)

    return step


def by_predict(wire: Wire) -> Work:
    """Sends Predicts with different lengths and states."""
    rng = np.random.default_rng(8)

    async def one() -> None:
        lengths = rng.integers(1, 9, 3)
        x = rng.standard_normal((lengths.sum(), 3), np.float32)
        h0, c0 = rng.standard_normal((2, 2, 3, 8), np.float32)
        initial = tensors(h=np.swapaxes(h0, 0, 1), c=np.swapaxes(c0, 0, 1))
        response = await wire.call(
            "Predict", model="m", lengths=lengths, x=x.reshape(-1), initial=initial
        )
        y = np.array(response.y, np.float32).reshape(len(x), -1)
        ends = np.cumsum(lengths)
        for i, (rows, got) in enumerate(zip(np.split(x, ends), np.split(y, ends), strict=True)):
            if len(rows):
                assert np.array_equal(got, wire.oracles["m"].run(rows, h0[:, i], c0[:, i])[0])

    async def step() -> None:
        await asyncio.gather(*(one() for _ in range(PREDICTS)))

    return step


async def ask(stream: Stream, content: bytes) -> pb.StepManyResponse:
    """The answer to one message."""
    await stream.write(content)
    return pb.StepManyResponse.FromString(await stream.read())


class Hostile:
    """Sends the catalogue; `mates` are good sessions that share the bad messages."""

    def __init__(self, wire: Wire, strangers: dict[str, Good], mates: Sequence[Good]) -> None:
        self.wire = wire
        self.strangers = strangers
        self.mates = mates
        self.count = 0

    async def steps(self) -> None:
        """Sends every bad step as a Step and on a StepStream."""
        stream = self.wire.stream("StepStream", **LONG)
        for row in ROWS:
            content = row.step(self.strangers[row.model].session)
            check(await self.wire.refused("Step", content), row, self.wire)
            await stream.write(content)
            said = in_band(pb.StepResponse.FromString(await stream.read()).error)
            check(said, row, self.wire)
            self.count += 2
        stream.cancel()

    async def other_calls(self) -> None:
        """Sends the bad calls about sessions and models, and the bad Predicts."""
        for each in CASES:
            said = await self.wire.refused(each.method, request_of(each))
            assert (said.code, said.reason) == (each.code, each.reason), said
            leaks(said, self.wire.folder)
        for case in predict.CASES:
            said = await self.wire.refused("Predict", predict.request_of(case))
            predict.check(said, case, self.wire)
        self.count += len(CASES) + len(predict.CASES)

    async def sessions_of_messages(self) -> None:
        """Sends every bad session among the mates, in every place."""
        stream = self.wire.stream("StepMany", **LONG)
        own = self.strangers["m"].session
        for row, place in itertools.product(BAD_SESSIONS, range(len(self.mates) + 1)):
            lengths = [1 + (i + place) % 2 for i in range(len(self.mates))] if place else []
            sent = among(row, own, self.mates, place, lengths)
            response = await ask(stream, sent.request.SerializeToString())
            check(in_band(sent.check(response)), row, self.wire)
            self.count += 1
        stream.cancel()

    async def messages(self) -> None:
        """Sends whatever refuses a message, between two good ones on its stream."""
        stream = self.wire.stream("StepMany", **LONG)
        requests = [(case.request(), case.reason) for case in WHOLE]
        # A message without ids would belong to the sessions of the message before it.
        cases = [(each.SerializeToString(), why) for each, why in requests if each.session_ids]
        for content, reason in [*cases, *((content, "MALFORMED") for content in GARBAGE)]:
            for is_named in (True, False):
                good = next_of(self.mates, is_named=True, is_numbered=is_named)
                check_all(await ask(stream, good.SerializeToString()), self.mates)
                said = in_band((await ask(stream, content)).error)
                assert said.reason == reason, said
                leaks(said, self.wire.folder)
                self.count += 1
        stream.cancel()


async def test_the_whole_catalogue_beside_sessions_at_work(wire: Wire) -> None:
    """Everything bad on every call while 64 good sessions step: each of their replies is the
    oracle's, and at the end nothing waits, nothing is taken, and the server is the same one."""
    goods = [await wire.good() for _ in range(COMPANY)]
    await wire.open(session_id=TAKEN)
    for name in ("a", "b"):
        await wire.open(session_id=name)
    await wire.open("letters", session_id="letters")
    strangers = {name: await wire.good(name) for name in ("m", "letters")}
    for stranger in strangers.values():
        await stranger.step()
    mates = [await wire.good() for _ in range(3)]
    sessions, is_over, rounds = len(wire.engine.table), asyncio.Event(), 0

    async def repeat(work: Work) -> None:
        nonlocal rounds
        while not is_over.is_set():
            await work()
            rounds += 1

    works = [by_step(goods[:32]), by_stream(wire, goods[32:48]), by_messages(wire, goods[48:])]
    hostile = Hostile(wire, strangers, mates)
    async with asyncio.TaskGroup() as group:
        for work in [*works, by_predict(wire)]:
            group.create_task(repeat(work))
        await hostile.steps()
        await hostile.other_calls()
        await hostile.sessions_of_messages()
        await hostile.messages()
        is_over.set()
    print(f"{hostile.count} bad calls and messages; {COMPANY} sessions, {rounds} rounds")
    assert rounds > len(works)
    for each in [*goods, *strangers.values(), *mates]:
        await each.step()
        await each.check_state()
    assert len(wire.engine.table) == sessions
    assert wire.engine.batch_loop.pending_steps == wire.engine.predictor.waiting_rows == 0
    assert not wire.running.done()
