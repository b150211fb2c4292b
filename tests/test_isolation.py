"""One tenant's sessions do not exist for another: same ids, foreign ids, lists, forks, retries."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import numpy.typing as npt
import pytest

from lstmserve.v1 import lstm_pb2 as pb
from tenancy import Tenancy, X, path, refusal, step_bytes, tenancy, write_tokens

STREAMS = ("StepStream", "StepMany")


@pytest.fixture
async def running(models: Path, tmp_path: Path) -> AsyncIterator[Tenancy]:
    """A server with the tenants acme and other."""
    tokens = write_tokens(tmp_path / "tokens", acme="", other="")
    async with tenancy(models, tmp_path / "tokens") as running:
        running.tokens = tokens
        yield running


async def test_the_same_id_is_two_sessions(running: Tenancy) -> None:
    """Two tenants use one id, each with its own state, and each lists only its own session."""
    acme, other = running.client("acme"), running.client("other")
    async with acme.session("tiny", id="s") as ours, other.session("tiny", id="s") as theirs:
        first = await ours.step(X)
        await ours.step(X)
        assert np.array_equal(await theirs.step(X), first)
        assert [info.step for info in await acme.sessions()] == [2]
        assert [info.step for info in await other.sessions()] == [1]
        await ours.close()
        assert await acme.sessions() == []
        assert (await theirs.info()).step == 1


async def test_pages_hold_the_tenant_s_own(running: Tenancy) -> None:
    """Between sessions of others, pages of two are full, and the last one says that it is the
    last."""
    acme, other = running.client("acme"), running.client("other")
    for i in range(5):
        await acme.session("tiny", id=f"a{i}")
        await other.session("tiny", id=f"b{i}")
    async with running.channel() as channel:
        call = channel.unary_unary(path("ListSessions"))
        pages, token = [], ""
        while not pages or token:
            request = pb.ListSessionsRequest(page_size=2, page_token=token, model="tiny")
            content = await call(request.SerializeToString(), metadata=running.metadata("acme"))
            page = pb.ListSessionsResponse.FromString(content)
            token = page.next_page_token
            pages.append([session.id for session in page.sessions])
    assert pages == [["a0", "a1"], ["a2", "a3"], ["a4"]]


Probe = Callable[[grpc.aio.Channel, str, int, Any], grpc.aio.Call]


def unary(method: str, fields: Callable[[str, int], dict[str, Any]]) -> Probe:
    """A unary call about a session."""

    def call(
        channel: grpc.aio.Channel, session: str, incarnation: int, metadata: Any
    ) -> grpc.aio.Call:
        request = getattr(pb, f"{method}Request")(**fields(session, incarnation))
        return channel.unary_unary(path(method))(request.SerializeToString(), metadata=metadata)

    return call


PROBES = {
    "get": unary("GetSession", lambda s, _: {"session_id": s}),
    "close": unary("CloseSession", lambda s, _: {"session_id": s}),
    "close its life": unary("CloseSession", lambda s, life: {"session_id": s, "incarnation": life}),
    "state": unary("GetState", lambda s, _: {"session_id": s}),
    "state of its life": unary("GetState", lambda s, life: {"session_id": s, "incarnation": life}),
    "step": unary("Step", lambda s, _: {"session_id": s, "x": X}),
    "step its life": unary("Step", lambda s, life: {"session_id": s, "x": X, "incarnation": life}),
    "repeat": unary(
        "Step", lambda s, life: {"session_id": s, "x": X, "incarnation": life, "step": 1}
    ),
    "fork": unary("OpenSession", lambda s, _: {"model": "tiny", "fork_of": s}),
}


@pytest.mark.parametrize("name", PROBES)
async def test_foreign_ids_look_unknown(running: Tenancy, name: str) -> None:
    """Every call about another tenant's session is answered as if the session had never existed."""
    other = await running.client("other").session("tiny", id="theirs")
    await other.step(X)
    said = []
    async with running.channel() as channel:
        for session_id in ("theirs", "nobody"):
            call = PROBES[name](channel, session_id, other.incarnation, running.metadata("acme"))
            error, pushback = await refusal(call)
            said.append((error.code, error.reason, error.message, error.metadata, pushback))
    assert said[0] == said[1]
    assert said[0][1] in ("SESSION_NOT_FOUND", "SESSION_LOST")
    assert (await other.info()).step == 1


@pytest.mark.parametrize("method", STREAMS)
async def test_foreign_ids_look_unknown_on_streams(running: Tenancy, method: str) -> None:
    """In band, another tenant's session is answered as unknown, and the stream goes on."""
    other = await running.client("other").session("tiny", id="theirs")
    async with running.channel() as channel:
        call = channel.stream_stream(path(method))(metadata=running.metadata("acme"))
        replies = []
        for session_id in ("theirs", "nobody"):
            if method == "StepStream":
                await call.write(step_bytes(session_id))
                reply = pb.StepResponse.FromString(await call.read())
                assert reply.session_id == session_id
                reply.session_id = ""
            else:
                request = pb.StepManyRequest(session_ids=[session_id], x=X)
                await call.write(request.SerializeToString())
                reply = pb.StepManyResponse.FromString(await call.read())
            replies.append(reply)
        call.cancel()
    assert replies[0] == replies[1]
    assert b"SESSION_NOT_FOUND" in replies[0].SerializeToString()
    assert (await other.info()).step == 0


async def test_request_ids_are_the_tenant_s_own(running: Tenancy) -> None:
    """Another tenant's request_id opens a new session, and repeated by its owner it opens none."""
    request = pb.OpenSessionRequest(model="tiny", request_id="r").SerializeToString()
    async with running.channel() as channel:
        call = channel.unary_unary(path("OpenSession"))
        opened = [
            pb.OpenSessionResponse.FromString(await call(request, metadata=running.metadata(name)))
            for name in ("acme", "other", "acme")
        ]
    ids = [each.session.id for each in opened]
    assert ids[0] == ids[2] != ids[1]


TIMED = 500  # calls of a kind
KINDS = ("theirs", "nobody", "no one")  # the last two are alike: they are the control


async def _took_us(ask: Callable[[str], Awaitable[Any]]) -> dict[str, npt.NDArray[np.float64]]:
    """Microseconds [TIMED] of each kind's calls, which take turns in every order."""
    took_us: dict[str, list[float]] = {name: [] for name in KINDS}
    orders = list(itertools.permutations(KINDS))
    for i in range(TIMED):
        for name in orders[i % len(orders)]:
            start = time.perf_counter()
            await ask(name.replace(" ", "-"))
            took_us[name].append(1e6 * (time.perf_counter() - start))
    return {name: np.array(times) for name, times in took_us.items()}


@pytest.mark.parametrize("method", ["Step", *STREAMS])
async def test_foreign_ids_take_the_time_of_unknown_ones(running: Tenancy, method: str) -> None:
    """The medians of the times differ less than those of two unknown ids that are asked in turn."""
    await running.client("other").session("tiny", id="theirs")
    metadata = running.metadata("acme")
    async with running.channel() as channel:
        stream = (
            None if method == "Step" else channel.stream_stream(path(method))(metadata=metadata)
        )

        async def ask(session_id: str) -> None:
            if stream is None:
                call = channel.unary_unary(path("Step"))
                await refusal(call(step_bytes(session_id), metadata=metadata))
                return
            many = pb.StepManyRequest(session_ids=[session_id], x=X).SerializeToString()
            await stream.write(many if method == "StepMany" else step_bytes(session_id))
            assert b"SESSION_NOT_FOUND" in await stream.read()

        took_us = await _took_us(ask)
        if stream is not None:
            stream.cancel()
    theirs, nobody, control = (took_us[name] for name in KINDS)
    gap_us = abs(np.median(theirs) - np.median(nobody))
    low_us, high_us = np.percentile(control - nobody, (25, 75))
    spread_us = high_us - low_us
    print(f"{method}: {np.median(nobody):.0f} us; apart {gap_us:.0f}, spread {spread_us:.0f} us")
    assert gap_us < spread_us


async def test_timing_of_tokens_is_reported(running: Tenancy) -> None:
    """The median times of a step without a token, with a wrong and with a nearly right one are
    reported."""
    wrong = (("authorization", "Bearer " + "A" * 43),)
    near = (("authorization", f"Bearer {running.tokens['acme'][:-1]}~"),)
    cases: dict[str, Any] = {"no token": (), "wrong token": wrong, "nearly right token": near}
    took_us: dict[str, list[float]] = {name: [] for name in cases}
    async with running.channel() as channel:
        call = channel.unary_unary(path("Step"))
        for _ in range(150):
            for name, metadata in cases.items():
                start = time.perf_counter()
                await refusal(call(step_bytes("nobody"), metadata=metadata))
                took_us[name].append(1e6 * (time.perf_counter() - start))
    print({name: round(statistics.median(times)) for name, times in took_us.items()}, "us")
    assert all(len(times) == 150 for times in took_us.values())
