"""Sequences of the stock Triton client that survive a server, move, are evicted, meet a drain."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis

from lstmserve import Client
from modelmaking import TINY, make_model, random_input
from scenarios import check, folder, inputs, sequence
from serving import Serve
from storing import Valkey
from traffic import Oracle
from tritonserving import Answer, Array, Triton, request
from wire import serving

__all__ = ["folder"]  # a fixture
PIPELINED = 10
SMALL = ("--pool-bytes", "4800", "--batch-sessions-max", "8", "--batches-in-flight-max", "1")


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey of this test's own."""
    with Valkey(tmp_path) as server:
        yield server


def steps(xs: list[Array], sequence_id: int | str, **others: object) -> list[dict[str, object]]:
    """A sequence of tiny, to its END unless the arguments say otherwise."""
    return sequence(xs, sequence_id, model="tiny", **others)


def is_whole(models: Path, xs: list[Array], answers: list[Answer]) -> bool:
    """Whether the answers are those of the whole sequence."""
    y, _, _ = Oracle(models / "tiny" / "1", TINY).run(np.concatenate(xs))
    return np.array_equal(np.concatenate([each.y for each in answers]), y)


async def test_a_sequence_outlives_a_kill_and_moves(
    triton: Triton, serve: Serve, models: Path, valkey: Valkey
) -> None:
    """After kill -9, on another server, and back again a sequence is exact, END takes it out of the
    store, and START replaces it wherever it was."""
    xs = [random_input(TINY, (n + 1,), n) for n in range(4)]
    requests = steps(xs, "é/1")
    one = serve("--store", valkey.url)
    answers = await triton.run("stream", one.target, requests[:1])
    one.signal(signal.SIGKILL)
    one, two = serve("--store", valkey.url), serve("--store", valkey.url)
    answers += await triton.run("one_by_one", one.target, requests[1:2])
    answers += await triton.run("one_by_one", two.target, requests[2:3])
    assert is_whole(models, xs[:3], answers)
    (fenced,) = await triton.run("one_by_one", one.target, requests[3:])
    assert fenced.status == "StatusCode.UNAVAILABLE"
    assert "another server has this session now: repeat the step" in str(fenced.error)
    answers += await triton.run("one_by_one", one.target, requests[3:])
    assert is_whole(models, xs, answers)
    (gone,) = await triton.run("one_by_one", one.target, requests[1:2])
    assert "has ended" in str(gone.error)
    await triton.run("one_by_one", one.target, requests[:2])
    assert is_whole(models, xs, await triton.run("stream", two.target, requests))
    assert len(two.wait_for("sequence replaced: START came before END")) == 1
    assert two.metric("lstm_sessions_closed_total", reason="replaced") == 1


async def test_a_rolled_back_sequence_says_so_until_it_is_heard(
    triton: Triton, serve: Serve, models: Path, tmp_path: Path
) -> None:
    """With write-behind and kill -9 after step 7, none of ten pipelined requests is applied, nor
    single ones, nor END, and a numbered request or a START goes on."""
    flags = ("--store", f"file:{tmp_path / 's'}", "--store-mode", "behind")
    xs = [random_input(TINY, (1,), n) for n in range(17)]
    one = serve(*flags, "--behind-s-max", "3600")
    for name in ("by number", "by start"):
        answers = await triton.run("stream", one.target, steps(xs[:7], name, has_end=False))
        assert answers[-1].parameters["step"] == 7
    one.signal(signal.SIGKILL)
    two = serve(*flags)
    late = steps(xs[7:], "by number")[1:]
    pipelined = await triton.run(
        "stream", two.target, [*late, request(xs[0], "by number", model="tiny")]
    )
    assert len(pipelined) == PIPELINED
    said = "may have lost steps that were answered: the last one left is step 0"
    assert all(said in str(each.error) for each in pipelined)
    for each in await triton.run("one_by_one", two.target, late):
        assert each.status == "StatusCode.FAILED_PRECONDITION"
        assert said in str(each.error)
    with Client(two.target) as client:
        assert {each.id: each.step for each in client.sessions()} == {
            "kserve/tiny/str/by%20number": 0
        }
    first = request(xs[0], "by number", model="tiny", parameters={"step": 1})
    goes_on = await triton.run("stream", two.target, [first, *steps(xs[:3], "by number")[1:]])
    assert is_whole(models, xs[:3], goes_on)
    assert is_whole(models, xs, await triton.run("stream", two.target, steps(xs, "by start")))


async def test_a_drained_sequence_goes_on_behind_the_store(
    triton: Triton, serve: Serve, models: Path, tmp_path: Path
) -> None:
    """SIGTERM hands over what was answered, and no request is refused for it."""
    flags = (
        "--store",
        f"file:{tmp_path / 's'}",
        "--store-mode",
        "behind",
        "--behind-s-max",
        "3600",
    )
    xs = [random_input(TINY, (1,), n) for n in range(4)]
    requests, answers = steps(xs, 1), []
    for each in requests:
        serving = serve(*flags)
        answers += await triton.run("one_by_one", serving.target, [each])
        assert serving.stop() == 0
    assert is_whole(models, xs, answers)


async def test_evicted_sequences_come_back_or_say_so(
    triton: Triton, serve: Serve, models: Path, valkey: Valkey
) -> None:
    """Of more sequences than places, those that moved to the store come back exact, and those that
    the store lost get an error about their eviction."""
    serving = serve("--store", valkey.url, "--long-steps-max", "8", *SMALL)
    count = 2 * serving.ready["sessions_max"]["tiny:1"]
    xs = [random_input(TINY, (2,), n) for n in range(3)]
    rounds = [steps(xs, each, has_end=False) for each in range(1, count + 1)]
    answers = [
        await triton.run("one_by_one", serving.target, [each[turn] for each in rounds])
        for turn in range(2)
    ]
    assert serving.metric("lstm_sessions_closed_total", reason="evicted") >= count // 2
    for first, second in zip(*answers, strict=True):
        assert is_whole(models, xs[:2], [first, second])
    with redis.Redis.from_url(valkey.url) as raw:
        raw.flushall()
    (lost,) = await triton.run("stream", serving.target, [rounds[0][2]])
    said = "sequence 1 of model 'tiny' is lost: the session had moved out to the store"
    assert said in str(lost.error)


async def test_start_replaces_a_sequence_of_a_model_that_is_gone(
    triton: Triton, serve: Serve, models: Path, tmp_path: Path
) -> None:
    """After an upgrade without version 1 its stored sequences are refused, and START of the same id
    begins on version 2."""
    newer = tmp_path / "newer"
    make_model(newer, TINY, seed=5, version=2)
    url, xs = f"file:{tmp_path / 's'}", [random_input(TINY, (1,), n) for n in range(2)]
    requests = steps(xs, 1)
    old = serve("--store", url)
    await triton.run("one_by_one", old.target, requests[:1])
    assert old.stop() == 0
    serving = serve("--store", url, models=newer)
    refused, *answers = await triton.run("one_by_one", serving.target, [requests[1], *requests])
    assert "not served any more" in str(refused.error)
    assert [answer.model for answer in answers] == [("tiny", "2")] * 2
    opened = serving.metric("lstm_sessions_opened_total")
    assert opened == serving.metric("lstm_sessions_closed_total") == 1


async def test_the_native_dialect_sees_sequences(
    triton: Triton, serve: Serve, models: Path, tmp_path: Path
) -> None:
    """ListSessions names them, and by that name they can be read, forked and closed, but not
    stepped."""
    xs = [random_input(TINY, (2,), n) for n in range(3)]
    serving = serve("--store", f"file:{tmp_path / 's'}")
    answers = await triton.run("stream", serving.target, steps(xs, "a b", has_end=False)[:2])
    assert is_whole(models, xs[:2], answers)
    with Client(serving.target) as client:
        (listed,) = client.sessions()
        assert listed.id == "kserve/tiny/str/a%20b"
        assert client.attach(listed.id).info().step == 2
        forked = client.attach(listed.id).fork("copy")
        whole = is_whole(models, xs, [*answers, Answer(outputs={"y": forked.step(xs[2])})])
        assert whole
        client.attach(listed.id).close()
    (closed,) = await triton.run("one_by_one", serving.target, steps(xs, "a b")[2:])
    assert "has ended, by END, a close" in str(closed.error)


async def test_a_drain(triton: Triton, folder: Path) -> None:
    """While the server drains sequences go on and none starts, and it is live but not ready."""
    xs = inputs(3, 1)
    async with serving(folder) as wire:
        requests = sequence(xs, 1)
        answers = await triton.run("stream", wire.target, requests[:1])
        wire.engine.drain()
        start, *rest = await triton.run("stream", wire.target, [sequence(xs, 2)[0], *requests[1:]])
        assert "shutting down" in str(start.error)
        check(wire, xs, answers + rest)
        said = await triton.tell(
            wire.target,
            "is_server_live",
            "is_server_ready",
            ("is_model_ready", {"model_name": "m"}),
        )
        assert said == [True, False, False]


async def test_closing_answers_everybody_in_line(triton: Triton, folder: Path) -> None:
    """When the server closes, each waiting request is answered: accepted ones are done, and new
    ones refused."""
    xs = inputs(2, 1)
    async with serving(folder, is_running=False) as wire:
        requests = [*sequence(xs, 1, has_end=False), *sequence(xs, 1)]
        running = asyncio.create_task(triton.run("stream", wire.target, requests))
        await wire.until(lambda: wire.engine.batch_loop.pending_steps > 0)
        wire.run()
        await wire.engine.close(5)
        first, *others = await running
        check(wire, xs[:1], [first])
        assert all("shutting down" in str(each.error) for each in others)


async def test_a_call_that_went_away_leaves_nothing(triton: Triton, folder: Path) -> None:
    """A request that is cancelled while it waits is not applied, and the next one is served."""
    xs = inputs(2, 1)
    async with serving(folder, is_running=False) as wire:
        requests = [request(xs[0], 1, start=True), request(xs[1], 1, start=True)]
        late = await triton.run("stream", wire.target, requests, stream_timeout=0.2)
        assert late[-1].status == "StatusCode.DEADLINE_EXCEEDED"
        await wire.until(lambda: wire.metrics.rpcs_started == wire.metrics.rpcs_handled)
        wire.run()
        check(wire, xs, await triton.run("stream", wire.target, sequence(xs, 1)))
        answered = wire.metrics.model("m", 1).answered
        assert answered["ModelStreamInfer", "OK"] == 2
