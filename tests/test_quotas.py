"""A tenant's limits, each at the limit and one past it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from lstmserve.client import LstmServeError, StepManyFailed
from lstmserve.v1 import lstm_pb2 as pb
from tenancy import Tenancy, X, limited, path, refusal, step_bytes


async def ask(running: Tenancy, method: str, request: Any) -> tuple[LstmServeError, str | None]:
    """How a call of acme's fails, and its pushback."""
    async with running.channel() as channel:
        content = request if isinstance(request, bytes) else request.SerializeToString()
        call = channel.unary_unary(path(method))
        return await refusal(call(content, metadata=running.metadata("acme")))


async def test_sessions_are_limited(models: Path, tmp_path: Path) -> None:
    """As many sessions as the limit open, one more is QUOTA without a delay, and closing one makes
    room."""
    async with limited(models, tmp_path, "sessions_max=2") as running:
        acme = running.client("acme")
        first, _ = [await acme.session("tiny", id=f"s{i}") for i in range(2)]
        request = pb.OpenSessionRequest(model="tiny", session_id="s2")
        error, pushback = await ask(running, "OpenSession", request)
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA")
        assert (error.retry_delay_s, pushback, error.applied) == (None, "-1", False)
        for if_exists in ("resume", "restart"):
            await acme.session("tiny", id="s1", if_exists=if_exists)
        for i in range(3):
            await running.client("other").session("tiny", id=f"s{i}")
        await first.close()
        await acme.session("tiny", id="s2")


async def test_expired_sessions_make_room(models: Path, tmp_path: Path) -> None:
    """A session that has expired does not count, even before it is swept."""
    async with limited(models, tmp_path, "sessions_max=1") as running:
        await running.client("acme").session("tiny", ttl_s=1.0)
        running.clock.add(2.0)
        await running.client("acme").session("tiny", ttl_s=1.0)


async def test_waiting_steps_are_limited(models: Path, tmp_path: Path) -> None:
    """A message with as many steps as the limit passes, and one step more is refused whole, with a
    delay."""
    async with limited(models, tmp_path, "pending_steps_max=3") as running:
        acme = running.client("acme")
        sessions = [await acme.session("tiny", id=f"g:{i}") for i in range(4)]
        await acme.step_many(dict.fromkeys(sessions[:3], X))
        with pytest.raises(StepManyFailed) as failed:
            await acme.step_many(dict.fromkeys(sessions, X))
        assert failed.value.reason == "QUOTA"
        assert failed.value.retry_delay_s == pytest.approx(0.05)
        assert failed.value.applied is False
        assert [info.step for info in await acme.sessions()] == [1, 1, 1, 0]
        with pytest.raises(LstmServeError, match="QUOTA"):
            await acme.predict("tiny", [[X]] * 4)
        await acme.predict("tiny", [[X]] * 3)


async def test_steps_are_counted_out_however_they_end(models: Path, tmp_path: Path) -> None:
    """After replies, refusals, failures and cancelled calls the whole limit is free again."""
    async with limited(models, tmp_path, "pending_steps_max=2") as running:
        acme = running.client("acme")
        sessions = [await acme.session("tiny", id=f"g:{i}") for i in range(2)]
        for _ in range(20):
            calls = [asyncio.create_task(sessions[0].step(X)) for _ in range(4)]
            await asyncio.sleep(0)
            for call in calls[1:3]:
                call.cancel()
            await asyncio.wait(calls)
            for bad in ([float("nan")] * 3, [1.0]):
                with pytest.raises((LstmServeError, ValueError)):
                    await sessions[0].step(bad)
        async with running.channel() as channel:
            stream = channel.stream_stream(path("StepStream"))
            call = stream(metadata=running.metadata("acme"))
            await call.write(step_bytes("g:0"))
            call.cancel()
        while running.engine.batch_loop.pending_steps:  # noqa: ASYNC110 -- a loop pass, no clock
            await asyncio.sleep(0)
        # The stream may have stepped one of them; attach() gives them the server's numbers.
        await acme.step_many({await acme.attach(each.id): X for each in sessions})


async def test_rows_a_second_are_limited(models: Path, tmp_path: Path) -> None:
    """The rows of one second pass by any call, and the next wait for as long as the refusal
    says."""
    async with limited(models, tmp_path, "rows_per_s=10") as running:
        acme = running.client("acme")
        session = await acme.session("tiny", id="g:0")
        running.clock.add(1.0)
        await session.step([X, X])
        await acme.predict("tiny", [[X, X], [X]])
        await acme.step_many({session: [X, X]})
        async for _ in session.stream(_items([X, X, X]), window=1):
            pass
        error, pushback = await ask(running, "Step", step_bytes("g:0"))
        assert (error.reason, error.retry_delay_s, pushback) == ("QUOTA", 0.1, "100")
        error, _ = await ask(running, "Predict", pb.PredictRequest(model="tiny", x=X))
        assert error.reason == "QUOTA"
        with pytest.raises(LstmServeError, match="QUOTA"):
            async for _ in session.stream(_items([X])):
                pass
        running.clock.add(0.1)
        await session.step(X)
        assert (await session.info()).step == 6


async def _items(rows: list[list[float]]) -> AsyncIterator[list[float]]:
    for row in rows:
        yield row


async def test_a_repeat_costs_nothing(models: Path, tmp_path: Path) -> None:
    """A step that was applied is answered again past the limit, by Step and by StepMany."""
    async with limited(models, tmp_path, "rows_per_s=1") as running:
        session = await running.client("acme").session("tiny", id="s")
        running.clock.add(1.0)
        numbered = {"step": 1, "incarnation": session.incarnation}
        many = pb.StepManyRequest(
            session_ids=["s"], steps=[1], incarnations=[session.incarnation], x=X
        )
        metadata = running.metadata("acme")
        async with running.channel() as channel:
            step = channel.unary_unary(path("Step"))
            replies = [
                pb.StepResponse.FromString(
                    await step(step_bytes("s", **numbered), metadata=metadata)
                )
                for _ in range(2)
            ]
            call = channel.stream_stream(path("StepMany"))(metadata=metadata)
            await call.write(many.SerializeToString())
            reply = pb.StepManyResponse.FromString(await call.read())
            call.cancel()
        assert [each.replayed for each in replies] == [False, True]
        assert (list(reply.replayed), list(reply.y)) == ([0], list(replies[0].y))
        error, _ = await ask(
            running, "Step", step_bytes("s", step=2, incarnation=session.incarnation)
        )
        assert error.reason == "QUOTA"


async def test_the_server_s_limit_holds_for_tenants_without_one(
    models: Path, tmp_path: Path
) -> None:
    """A flag limits each tenant for which the file sets nothing."""
    settings = {"tenant_sessions_max": 1}
    async with limited(models, tmp_path, "sessions_max=2", **settings) as running:
        acme, other = running.client("acme"), running.client("other")
        for client in (acme, acme, other):
            await client.session("tiny")
        for client in (acme, other):
            with pytest.raises(LstmServeError, match="QUOTA"):
                await client.session("tiny")
