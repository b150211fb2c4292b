"""A batch's way from schedule to settling: whatever fails, every step is answered once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmserve.config import Config
from lstmserve.engine import Engine, Model, load_models
from lstmserve.engine.compute.kernel import Cost, Kernel
from lstmserve.engine.errors import ServeError, StoreTimeout
from lstmserve.engine.persist import CommitStage
from lstmserve.engine.scheduling.batch import Batch
from lstmserve.head_layers import Linear
from lstmserve.server.inbox import UNREAD_MAX, Inbox
from lstmserve.spec import LstmSpec
from modelmaking import make_model, random_input
from traffic import NoMetrics, Oracle, Reply, open_session, submit

SPEC = LstmSpec(3, 8, 2, head=(Linear(2),))
IN_FLIGHT_MAX = 2


class Stage(CommitStage):
    """Counts the commits that wait, and breaks when a test says so."""

    def __init__(self) -> None:
        self.breaks = ""
        self.waiting: list[asyncio.Future[None]] = []
        self.most = 0

    def commit(self, model: Model, batch: Batch) -> Awaitable[None]:  # type: ignore[override]  # waits
        """Counts the commit, waits and breaks if the test says so."""
        if self.breaks == "commit":
            raise RuntimeError("a bug")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        self.most = max(self.most, sum(not each.done() for each in self.waiting))
        return future


@pytest.fixture
def stage() -> Stage:
    """Of the engine."""
    return Stage()


@pytest.fixture
def engine(tmp_path: Path, stage: Stage) -> Engine:
    """Two models; not running."""
    for name, seed in (("m", 0), ("n", 1)):
        make_model(tmp_path, SPEC, seed, name=name)
    config = Config(models=tmp_path, pool_bytes=1 << 20, batches_in_flight_max=IN_FLIGHT_MAX)
    return Engine(config, load_models(config), NoMetrics(), stage=stage)


def x(seed: int = 0) -> Any:
    """One row."""
    return random_input(SPEC, (1,), seed)


async def passes(count: int = 50) -> None:
    """Passes the loop `count` times."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("is_short", [True, False])
@pytest.mark.parametrize("where", ["kernel", "commit"])
async def test_a_bug_ends_the_engine_and_every_step(
    engine: Engine, stage: Stage, monkeypatch: pytest.MonkeyPatch, where: str, is_short: bool
) -> None:
    """After a bug in the kernel or before the commit, in a round or outside, no step waits for
    ever."""
    monkeypatch.setattr(Cost, "of", lambda *_: 0 if is_short else 10**9)
    running = asyncio.create_task(engine.run())
    rows = [open_session(engine, f"s{i}", engine.models[i % 2]) for i in range(6)]
    await passes()
    stage.breaks = where
    if where == "kernel":

        def broken(*_: Any) -> Any:
            raise RuntimeError("a bug")

        monkeypatch.setattr(Kernel, "run", broken)
    replies = [submit(engine, row, x())[1] for row in rows]
    engine.batch_loop.run_now()
    for reply in replies:
        with pytest.raises(ServeError):
            await reply
    with pytest.raises(RuntimeError, match="a bug"):
        await running
    engine.check_integrity()


async def test_a_bug_in_reading_many_messages_ends_the_engine(engine: Engine) -> None:
    """With so many messages that they are read at once, outside a round, the waiting steps are
    answered."""
    running = asyncio.create_task(engine.run())
    await passes()
    inbox: Inbox[int] = Inbox(engine.batch_loop, _broken)
    _, reply = submit(engine, open_session(engine, "s"), x())
    inbox.put_all(range(UNREAD_MAX))
    with pytest.raises(ServeError):
        await reply
    with pytest.raises(RuntimeError, match="a bug"):
        await running


def _broken(messages: list[int]) -> None:
    raise RuntimeError("a bug")


async def test_an_engine_that_dies_answers_the_batch_that_it_left_to_the_next_round(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long batch that was scheduled between two rounds fails like everything else."""
    monkeypatch.setattr(Cost, "of", lambda *_: 10**9)
    running = asyncio.create_task(engine.run())
    row = open_session(engine, "s", engine.models[0])
    await passes()
    bug: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    engine.batch_loop.watch(bug)  # type: ignore[arg-type]  # a future has what it asks of a task
    bug.set_exception(RuntimeError("a bug"))
    _, reply = submit(engine, row, x())
    engine.batch_loop.run_now()
    with pytest.raises(RuntimeError, match="a bug"):
        await running
    assert engine.batch_loop.pending_steps == 0
    with pytest.raises(ServeError):
        await reply
    engine.check_integrity()


async def test_an_engine_that_died_answers_what_waits_behind_a_commit(
    engine: Engine, stage: Stage
) -> None:
    """The step in flight ends as its store says, and the next one of its session fails."""
    running = asyncio.create_task(engine.run())
    row = open_session(engine, "s", engine.models[0])
    (_, first), (_, second) = submit(engine, row, x(1)), submit(engine, row, x(2))
    await passes()
    bug: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    engine.batch_loop.watch(bug)  # type: ignore[arg-type]  # a future has what it asks of a task
    bug.set_exception(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        await running
    stage.waiting[0].set_result(None)
    await first
    assert engine.batch_loop.pending_steps == 0
    with pytest.raises(ServeError):
        await second
    engine.check_integrity()


async def test_a_commit_that_raises_leaves_its_sessions_unknown(
    engine: Engine, stage: Stage
) -> None:
    """Its steps end as unknown, their sessions' cached copies are dropped, and others go on."""
    running = asyncio.create_task(engine.run())
    a, b = (open_session(engine, name, engine.models[i]) for i, name in enumerate("ab"))
    _, lost = submit(engine, a, x(1))
    _, kept = submit(engine, b, x(2))
    await passes()
    assert len(stage.waiting) == 2
    stage.waiting[0].set_exception(ValueError("a bug"))
    stage.waiting[1].set_result(None)
    with pytest.raises(StoreTimeout):
        await lost
    wanted = Oracle(engine.config.models / "n" / "1", SPEC).run(x(2))[0]
    assert np.array_equal((await kept).output(), wanted)
    assert engine.table.find("/a") is None
    assert engine.table.find("/b") == b
    await engine.close(1)
    await running
    engine.check_integrity()


@pytest.mark.parametrize("seed", range(3))
async def test_commits_in_flight_have_a_limit(engine: Engine, stage: Stage, seed: int) -> None:
    """In whatever order answers come, no more batches than the limit wait for a store."""
    print("seed", seed)
    rng = np.random.default_rng(seed)
    running = asyncio.create_task(engine.run())
    rows = [open_session(engine, f"s{i}", engine.models[i % 2]) for i in range(12)]
    replies: list[Reply] = []
    for _ in range(200):
        row = rows[int(rng.integers(len(rows)))]
        if rng.random() < 0.5 and engine.table.pending[row] < 4:
            replies.append(submit(engine, row, x())[1])
        waiting = [each for each in stage.waiting if not each.done()]
        if waiting and rng.random() < 0.4:
            waiting[int(rng.integers(len(waiting)))].set_result(None)
        await passes(int(rng.integers(60)))
    while engine.batch_loop.pending_steps:
        for each in stage.waiting:
            if not each.done():
                each.set_result(None)
        await asyncio.sleep(0)
    assert len([await reply for reply in replies]) > 30
    assert stage.most == IN_FLIGHT_MAX
    await engine.close(1)
    await running
    engine.check_integrity()
