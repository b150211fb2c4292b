"""When a step's batch is kept waiting for others, and where a batch is computed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lstmserve.engine.company import ALONE_MIN, LOOK_EVERY, Company
from lstmserve.engine.compute.kernel import Cost
from lstmserve.engine.computing import Computing
from lstmserve.engine.schedule.batch import Batch
from modelmaking import TINY
from traffic import Reply, open_session, start_engine, submit


def looks(company: Company, batches: int, count: int) -> int:
    """How many of so many batches are looked for, each of `count` steps."""
    looked = 0
    for _ in range(batches):
        if company.is_expected:
            looked += 1
            company.looked(count)
        else:
            company.not_looked()
    return looked


def test_who_is_alone_does_not_wait() -> None:
    """After a few looks that found nobody only one batch in so many is kept waiting."""
    company = Company()
    assert looks(company, ALONE_MIN, 1) == ALONE_MIN
    assert looks(company, 10 * (LOOK_EVERY + 1), 1) == 10


def test_company_is_found_again() -> None:
    """One look that finds somebody, and every batch is looked for from then on."""
    company = Company()
    looks(company, ALONE_MIN, 1)
    while not company.is_expected:
        company.not_looked()
    company.looked(2)
    assert looks(company, 100, 2) == 100


async def test_a_lone_step_runs_where_it_was_submitted(tmp_path: Path) -> None:
    """A source's step is answered within the call that brings it, once none has had company."""
    engine = start_engine(tmp_path, TINY)
    driver, row = engine.driver, open_session(engine, "alone")
    waiting: list[int] = []
    replies: list[Reply] = []

    def take_in() -> None:
        while waiting:
            waiting.pop()
            replies.append(submit(engine, row, np.zeros((1, TINY.input_size), np.float32))[1])

    driver.add_source(take_in)
    running = asyncio.create_task(engine.run())
    await asyncio.sleep(0)
    ran = []
    for number in range(1, ALONE_MIN + 4):
        waiting.append(number)
        ran.append(driver.run_now())
        if not ran[-1]:
            driver.notice()
        while len(replies) < number or not replies[-1].future.done():
            assert not ran[-1], "it ran, and its step is not answered"
            await asyncio.sleep(0)
        for _ in range(3):  # the round that answered it comes to its end
            await asyncio.sleep(0)
    assert ran == [False] * ALONE_MIN + [True] * 3
    await engine.close(5)
    await running


@pytest.mark.parametrize(("cores", "is_short"), [({0}, True), ({0, 1}, False)])
def test_one_core_has_no_use_for_a_thread(
    monkeypatch: pytest.MonkeyPatch, cores: set[int], is_short: bool
) -> None:
    """A batch of a millisecond runs on the loop where the thread would only take turns with it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)
    batch = Batch(size=1, length_max=1)
    model: Any = SimpleNamespace(kernel=SimpleNamespace(cost=Cost(run_ns=1_000_000)))
    computing = Computing()
    assert computing.is_short(model, batch) is is_short
    computing.stop()
