"""Exactly-once: a numbered step counts once, however often and by whichever call it is sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmserve.engine import Engine
from lstmserve.engine.errors import (
    Cancelled,
    ServeError,
    StepGap,
    StepPayloadMismatch,
    StepSuperseded,
)
from lstmserve.engine.scheduling.digest import digest, digests_of_rows
from lstmserve.engine.scheduling.work import ANSWERED, Request
from lstmserve.head_layers import Linear
from lstmserve.spec import LstmSpec
from modelmaking import random_input
from traffic import Oracle, number_of, open_session, start_engine, submit, submit_block

SPEC = LstmSpec(3, 8, 2, head=(Linear(2),))
SLICE = 4


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """The running engine; its integrity is checked at the end."""
    engine = start_engine(tmp_path, SPEC, seed=3, slice_rows_max=SLICE, reply_bytes_max=256)
    task = asyncio.create_task(engine.run())
    yield engine
    await engine.close(5)
    await task
    engine.check_integrity()


def x(length: int = 1, seed: int = 0) -> Any:
    """Rows for SPEC."""
    return random_input(SPEC, (length,), seed)


async def send(engine: Engine, row: int, number: int, rows: Any, **options: Any) -> Any:
    """Sends one numbered step, and returns its answer."""
    _, reply = submit(engine, row, rows, **number_of(number, rows, **options))
    return await reply


async def test_the_table_of_answers(engine: Engine) -> None:
    """The next step, a repeat, another input, an old number and a gap each have their answer, and
    only the next step counts."""
    row = open_session(engine, "a")
    first = await send(engine, row, 1, x(3, 1))
    second = await send(engine, row, 2, x(2, 2))
    assert (first.is_replayed, second.is_replayed) == (False, False)
    again = await send(engine, row, 2, x(2, 2))
    assert again.is_replayed
    assert np.array_equal(again.output(), second.output())
    with pytest.raises(StepPayloadMismatch):
        await send(engine, row, 2, x(2, 3))
    with pytest.raises(StepPayloadMismatch):
        await send(engine, row, 2, x(2, 2), last_only=True)
    with pytest.raises(StepSuperseded) as old:
        await send(engine, row, 1, x(3, 1))
    assert old.value.metadata == {"last_step": "2"}
    with pytest.raises(StepGap) as gap:
        await send(engine, row, 4, x())
    assert gap.value.metadata == {"expected_step": "3"}
    assert engine.table.step[row] == 2


async def test_a_repeat_joins_the_step_that_is_in_flight(engine: Engine) -> None:
    """All senders of a pending number get its one reply, also if the first sender goes away."""
    row = open_session(engine, "a")
    rows = x(5 * SLICE, 1)
    leader, first = submit(engine, row, rows, **number_of(1, rows))
    _, next_one = submit(engine, row, x(1, 2), **number_of(2, x(1, 2)))
    _, second = submit(engine, row, rows, **number_of(1, rows))
    _, third = submit(engine, row, x(1, 2), **number_of(2, x(1, 2)))
    with pytest.raises(StepPayloadMismatch):
        submit(engine, row, x(1, 9), **number_of(2, x(1, 9)))
    leader.cancel()
    y = (await first).output()
    assert np.array_equal((await second).output(), y)
    assert (await second).is_replayed
    assert np.array_equal((await third).output(), (await next_one).output())
    assert engine.table.step[row] == 2


@pytest.mark.parametrize("as_block", [False, True])
async def test_who_joins_a_step_has_his_own_time(engine: Engine, as_block: bool) -> None:
    """If the first sender's deadline passes, the step goes on for the sender that joined it."""
    row, rows = open_session(engine, "a"), x()
    late = {"deadline_ns": 1}
    if as_block:
        first = submit_block(engine, [row], [rows], numbers=[1], **late)
    else:
        _, first = submit(engine, row, rows, **number_of(1, rows), **late)
    _, second = submit(engine, row, rows, **number_of(1, rows))
    assert (await second).number == 1
    assert (await first) is not None
    assert engine.table.step[row] == 1


async def test_those_behind_a_step_that_failed_are_told_its_number(engine: Engine) -> None:
    """A numbered step after one that was not applied is a gap, and so is its repeat."""
    row = open_session(engine, "a")
    leader, first = submit(engine, row, x(3 * SLICE, 1), **number_of(1, x(3 * SLICE, 1)))
    _, second = submit(engine, row, x(1, 2), **number_of(2, x(1, 2)))
    _, joined = submit(engine, row, x(1, 2), **number_of(2, x(1, 2)))
    leader.cancel()
    with pytest.raises(Cancelled):
        await first
    for reply in (second, joined):
        with pytest.raises(StepGap) as gap:
            await reply
        assert gap.value.metadata == {"expected_step": "1"}
    assert (await send(engine, row, 1, x(1, 5))).number == 1


async def test_a_reply_too_large_to_keep_is_superseded(engine: Engine) -> None:
    """At reply_bytes_max the reply is kept, and one row above it a repeat is superseded."""
    row = open_session(engine, "a")
    at_limit = 256 // (4 * SPEC.output_size)
    await send(engine, row, 1, x(at_limit, 1))
    assert (await send(engine, row, 1, x(at_limit, 1))).is_replayed
    await send(engine, row, 2, x(at_limit + 1, 2))
    with pytest.raises(StepSuperseded):
        await send(engine, row, 2, x(at_limit + 1, 2))


async def test_an_unnumbered_step_keeps_no_reply(engine: Engine) -> None:
    """Steps without a number count on, and a later repeat by number is superseded."""
    row = open_session(engine, "a")
    await submit(engine, row, x())[1]
    assert (await send(engine, row, 2, x(1, 1))).number == 2
    await submit(engine, row, x())[1]
    with pytest.raises(StepSuperseded):
        await send(engine, row, 3, x())


async def attempt(engine: Engine, rng: np.random.Generator, row: int, k: int, each: Any) -> Any:
    """Tries step k + 1 once, as a step or a block. Returns None if its reply was lost."""
    is_lost = rng.random() < 0.3
    if rng.random() < 0.4:
        reply = submit_block(engine, [row], [each], numbers=[k + 1])
        block = None if is_lost else await reply
        if block is not None and block.errors:
            raise block.errors[0]
        return None if block is None else block.output(0)
    step, reply = submit(engine, row, each, **number_of(k + 1, each))
    if not is_lost:
        return (await reply).output()
    for _ in range(int(rng.integers(4))):
        await asyncio.sleep(0)
    step.cancel()
    reply.future.add_done_callback(lambda future: future.exception())
    return None


async def send_all(engine: Engine, rng: np.random.Generator, row: int, inputs: list[Any]) -> Any:
    """Sends each step until it has its reply. Returns all replies as one y."""
    outputs = []
    for k, each in enumerate(inputs):
        y = None
        while y is None:
            # A sender's try may have been cancelled before it ran: then nothing was applied.
            with contextlib.suppress(Cancelled, StepGap):
                y = await attempt(engine, rng, row, k, each)
        outputs.append(y)
    return np.concatenate(outputs)


@pytest.mark.parametrize("seed", range(6))
async def test_any_mixture_counts_each_step_once(engine: Engine, seed: int) -> None:
    """With lost replies, repeats, cancellations, steps and blocks everything ends as the oracle
    says."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    oracle = Oracle(engine.config.models / "m" / "1", SPEC)
    rows = [open_session(engine, f"s{i}") for i in range(12)]
    inputs = [[x(int(rng.integers(1, 9)), 100 * i + k) for k in range(15)] for i in range(12)]
    replies = await asyncio.gather(
        *(send_all(engine, rng, row, each) for row, each in zip(rows, inputs, strict=True))
    )
    for row, each, y in zip(rows, inputs, replies, strict=True):
        wanted, hn, cn = oracle.run(np.concatenate(each))
        state = engine.sessions.state(row)
        assert np.array_equal(y, wanted)
        assert np.array_equal(state["h"][0], hn)
        assert np.array_equal(state["c"][0], cn)
        assert engine.table.step[row] == len(each)


def digests(x: Any, last_only: bool, **columns: list[int]) -> list[int]:
    """The digests of numbered steps that are one request."""
    count = len(columns.get("lengths", x))
    numbers, rows = [1] * count, list(range(count))
    request = Request(
        x, rows, ANSWERED, arrival_ns=0, numbers=numbers, last_only=last_only, **columns
    )
    found = request.digests()
    assert found is not None
    return found.tolist()


def test_a_digest_is_the_same_however_it_is_computed() -> None:
    """One by one or as columns, of x or tokens, it is the same, and another value, length or layout
    differs."""
    many, lengths, firsts = x(40, 7), [1, 5, 1, 33], [0, 1, 6, 7]
    for last_only in (False, True):
        columns = digests(many, last_only, lengths=lengths, firsts=firsts)
        assert columns == [
            digest(many[o : o + n], last_only) for o, n in zip(firsts, lengths, strict=True)
        ]
        ones = digests(many, last_only)
        assert ones == [digest(many[i : i + 1], last_only) for i in range(40)]
        assert len({*columns, *ones}) == 42  # rows 0 and 6 are in both
    tokens = np.arange(1000) % 26
    assert digest(tokens, False) != digest(tokens[::-1].copy(), False)
    assert digest(x(2000, 1), False) != digest(x(2000, 2), False)
    assert issubclass(StepGap, ServeError)


def test_digests_are_those_that_old_records_hold() -> None:
    """The values of commit a351283, which had tokens without an axis of their own."""
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    tokens = np.array([[7], [0], [25]])
    assert digest(rows, False) == 11613567299746791425
    assert digest(rows, True) == 11613567299746791427
    assert digest(tokens, False) == 6776816627751062449
    assert digests_of_rows(rows, False).tolist() == [5512187656852733953, 7556795781936578561]
    one_by_one = [13515978996923399975, 1099511627779, 6107364278931839071]
    assert digests_of_rows(tokens, True).tolist() == one_by_one
