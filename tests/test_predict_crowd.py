"""Many Predicts at once in an engine with small limits: bits, slots and failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmserve.engine import Engine
from lstmserve.engine.compute.kernel import Kernel, KernelError
from lstmserve.engine.errors import Draining, ModelError, Overloaded
from lstmserve.engine.predict import Prediction, PredictJob
from lstmserve.head_layers import Linear
from lstmserve.spec import LstmSpec
from modelmaking import random_input, random_state
from traffic import Oracle, open_session, start_engine, submit

SPEC = LstmSpec(3, 8, 2, head=(Linear(2),))
LIMITS = {
    "slice_rows_max": 4,
    "batch_cells_max": 32,
    "batch_sessions_max": 8,
    "long_steps_max": 5,
    "batches_in_flight_max": 1,
}
CALLS = 40


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """The running engine; at the end no slot is lost, and none has two owners."""
    engine = start_engine(tmp_path, SPEC, seed=3, **LIMITS)
    task = asyncio.create_task(engine.run())
    yield engine
    await engine.close(5)
    await task
    engine.check_integrity()
    assert engine.batch_loop.pending_steps == 0


def job(engine: Engine, lengths: Any, seed: int, **options: Any) -> PredictJob:
    """A job with random x of these lengths."""
    x = random_input(SPEC, (int(np.sum(lengths)),), seed)
    given = {"initial": None, "last_only": False, "with_state": True} | options
    now_ns = engine.clock().monotonic_ns
    return PredictJob(x=x, lengths=np.array(lengths, np.int32), arrival_ns=now_ns, **given)


def check(engine: Engine, job: PredictJob, got: Prediction) -> None:
    """Asserts the bits of the portable graph on each sequence alone."""
    oracle = Oracle(engine.config.models / "m" / "1", SPEC)
    ends, places = np.cumsum(job.lengths), np.cumsum(got.lengths)
    for i, x in enumerate(np.split(job.x, ends[:-1])):
        state = {} if job.initial is None else {n: each[i] for n, each in job.initial.items()}
        y, hn, cn = oracle.run(x, state.get("h"), state.get("c"))
        y = y[-1:] if job.last_only else y
        assert np.array_equal(got.y[places[i] - got.lengths[i] : places[i]], y)
        if job.with_state:
            assert got.finals is not None
            assert np.array_equal(got.finals["h"][i], hn)
            assert np.array_equal(got.finals["c"][i], cn)


async def test_a_crowd_of_calls(engine: Engine) -> None:
    """With calls of all kinds at once, some cancelled, and steps beside them, every bit is
    right."""
    seed = int(np.random.default_rng().integers(2**32))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    model, row = engine.models[0], open_session(engine, "s")

    async def one(i: int) -> None:
        lengths = rng.integers(1, 20, rng.integers(1, 30))
        initial = None
        if rng.random() < 0.5:
            states = zip("hc", random_state(SPEC, lengths.size, i), strict=True)
            initial = {name: np.swapaxes(each, 0, 1) for name, each in states}
        flags = {"last_only": bool(rng.random() < 0.5), "with_state": bool(rng.random() < 0.5)}
        call = job(engine, lengths, i, initial=initial, **flags)
        running = asyncio.create_task(engine.predictor.predict(model, call))
        if rng.random() < 0.3:
            for _ in range(rng.integers(0, 60)):
                await asyncio.sleep(0)
            running.cancel()
            await asyncio.wait([running])
        else:
            check(engine, call, await running)

    calls = [asyncio.create_task(one(i)) for i in range(CALLS)]
    xs = [random_input(SPEC, (length,), length) for length in (1, 9, 1, 30)]
    steps = [submit(engine, row, x)[1] for x in xs]
    await asyncio.gather(*calls)
    y = np.concatenate([(await each.future).output() for each in steps])
    wanted, *_ = Oracle(engine.config.models / "m" / "1", SPEC).run(np.concatenate(xs))
    assert np.array_equal(y, wanted)
    assert engine.predictor.waiting_rows == 0


async def test_one_bad_sequence_fails_its_call_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the model fails on one call's rows, calls that share a batch with it are right."""
    model, run = engine.models[0], Kernel.run
    good, bad = job(engine, [3, 9, 2, 9], 1), job(engine, [9, 9, 9], 2)

    def failing(self: Kernel, x: Any, *arguments: Any) -> Any:
        if np.isin(x, bad.x[13]).any():
            raise KernelError("injected")
        return run(self, x, *arguments)

    monkeypatch.setattr(Kernel, "run", failing)
    replies = await asyncio.gather(
        *(engine.predictor.predict(model, each) for each in (good, bad, good)),
        return_exceptions=True,
    )
    assert isinstance(replies[1], ModelError)
    for each in (replies[0], replies[2]):
        assert isinstance(each, Prediction)
        check(engine, good, each)


async def test_a_call_is_accepted_whole_or_not_at_all(tmp_path: Path) -> None:
    """Beyond the limit of waiting sequences no part of a call waits, and closing fails those that
    do."""
    engine = start_engine(tmp_path, SPEC, seed=3, pending_steps_max=10, **LIMITS)
    model = engine.models[0]
    calls = [
        asyncio.create_task(engine.predictor.predict(model, job(engine, [9] * count, count)))
        for count in (6, 5, 4)
    ]
    await asyncio.wait(calls, timeout=0.1)
    assert isinstance(calls[1].exception(), Overloaded)
    assert engine.batch_loop.pending_steps == 10
    engine.batch_loop.fail_pending(Draining("closed"))
    for each in (calls[0], calls[2]):
        with pytest.raises(Draining):
            await each
    assert engine.batch_loop.pending_steps == 0
    engine.check_integrity()
