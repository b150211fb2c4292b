"""Exactly-once as a caller sees it: a router loses and repeats messages, and each step counts
once."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lossy import Fate, LossyRouter
from lstmserve import AsyncClient, Client
from lstmserve.client import AsyncSession, State
from modelmaking import TINY, random_input
from serving import Serving
from traffic import Oracle

TRY_S = 0.25  # soon enough to notice a lost message, late enough for a busy machine
SEEDS = range(2)


@pytest.fixture(scope="module")
def oracle(models: Path) -> Oracle:
    """What whole sequences of tiny:1 give."""
    return Oracle(models / "tiny" / "1", TINY)


@pytest.fixture
def router(server: Serving, seed: int) -> Iterator[LossyRouter]:
    """A router before the shared server; it prints its seed."""
    print(f"seed {seed}")
    router = LossyRouter(server.target, seed)
    yield router
    router.stop()


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The router's seed: the parameter if the test has one, else a random one."""
    return int(getattr(request, "param", 0))


def is_unkind(router: LossyRouter) -> bool:
    """Whether everything that can happen to a message has happened: how many messages there are
    depends on the machine."""
    return set(router.fates) == set(itertools.product(("request", "reply"), Fate))


def chunks(seed: int, count: int) -> list[Any]:
    """`count` inputs of tiny: single rows, short ones, and one that is long."""
    rng = np.random.default_rng(seed)
    lengths = rng.choice([0, 1, 2, 7, 90], count, p=[0.5, 0.1, 0.2, 0.15, 0.05])
    return [
        random_input(TINY, (int(n),) if n else (), 1000 * seed + k) for k, n in enumerate(lengths)
    ]


def assert_whole(oracle: Oracle, xs: list[Any], ys: list[Any], state: State) -> None:
    """Asserts that outputs and state are the oracle's bits: nothing is lost or out of order."""
    for x, y in zip(xs, ys, strict=True):
        assert y.shape == (*x.shape[:-1], TINY.output_size)
    y, hn, cn = oracle.run(np.concatenate([np.atleast_2d(x) for x in xs]))
    assert np.array_equal(np.concatenate([np.atleast_2d(y) for y in ys]), y)
    h, c = state
    assert np.array_equal(h, hn)
    assert np.array_equal(c, cn)


async def walk(client: AsyncClient, session: AsyncSession, xs: list[Any], seed: int) -> list[Any]:
    """Steps all xs through one session, at random by step, step_many and streams."""
    rng = np.random.default_rng(seed)
    left = iter(xs)
    ys: list[Any] = []
    while some := list(itertools.islice(left, int(rng.integers(1, 12)))):
        match rng.integers(3):
            case 0:
                ys += [await session.step(x) for x in some]
            case 1:
                ys += [(await client.step_many({session: x}))[session] for x in some]
            case 2:
                ys += [y async for y in session.stream(some, window=4)]
    return ys


@pytest.mark.parametrize("seed", SEEDS, indirect=True)
async def test_losses_and_repeats_change_nothing(
    router: LossyRouter, oracle: Oracle, seed: int
) -> None:
    """With a fifth of messages lost and a tenth repeated, all ways to step give the oracle's
    bits."""
    async with AsyncClient(router.target, timeout_s=TRY_S, groups=2) as client:
        inputs = [chunks(10 * seed + n, 20) for n in range(12)]
        sessions = [await client.session("tiny") for _ in inputs]
        outputs = await asyncio.gather(
            *(walk(client, *each, n) for n, each in enumerate(zip(sessions, inputs, strict=True)))
        )
        for session, xs, ys in zip(sessions, inputs, outputs, strict=True):
            assert_whole(oracle, xs, ys, await session.state())
            await session.close()
        async with client.session("tiny") as more:
            while not is_unkind(router):
                await more.step([0.5, -1.0, 2.0])


@pytest.mark.parametrize("seed", SEEDS, indirect=True)
def test_losses_and_repeats_change_nothing_in_threads(
    router: LossyRouter, oracle: Oracle, seed: int
) -> None:
    """With a thread for each session, beside a step_many of others, the bits are the oracle's,
    too."""
    with Client(router.target, timeout_s=TRY_S) as client:
        inputs = [chunks(10 * seed + n, 12) for n in range(9)]
        sessions = [client.session("tiny") for _ in inputs]
        outputs: list[list[Any]] = [[] for _ in inputs]

        def step(n: int) -> None:
            outputs[n] += [sessions[n].step(x) for x in inputs[n]]

        def stream(n: int) -> None:
            outputs[n] += list(sessions[n].stream(inputs[n], window=3))

        def many(_: int) -> None:
            for xs in zip(*inputs[6:], strict=True):
                ys = client.step_many(dict(zip(sessions[6:], xs, strict=True)))
                for n, session in enumerate(sessions[6:], 6):
                    outputs[n].append(ys[session])

        ways = [step, step, step, stream, stream, stream, many]
        threads = [threading.Thread(target=way, args=(n,)) for n, way in enumerate(ways)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for session, xs, ys in zip(sessions, inputs, outputs, strict=True):
            assert_whole(oracle, xs, ys, session.state())
            session.close()
        with client.session("tiny") as more:
            while not is_unkind(router):
                more.step([0.5, -1.0, 2.0])


@pytest.mark.parametrize("seed", [7], indirect=True)
def test_sessions_of_one_step_share_their_turns(router: LossyRouter, oracle: Oracle) -> None:
    """Two threads on one session each get their own y, and together they make one sequence."""
    xs = [random_input(TINY, (), n) for n in range(16)]
    with Client(router.target, timeout_s=TRY_S) as client, client.session("tiny") as session:
        answered: list[tuple[int, Any]] = []

        def work(start: int) -> None:
            for n in range(start, len(xs), 2):
                y = session.step(xs[n])
                answered.append((n, y))

        threads = [threading.Thread(target=work, args=(start,)) for start in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert session.step_count == session.info().step == len(xs)
        assert {n for n, _ in answered} == set(range(len(xs)))


@pytest.mark.parametrize("seed", [3], indirect=True)
def test_a_long_upload_is_cut_where_its_reply_is_kept(router: LossyRouter, oracle: Oracle) -> None:
    """An input whose y is above 64 KiB is sent as several steps, which can be repeated, bit for
    bit."""
    x = random_input(TINY, (10_000,), 1)
    with Client(router.target, timeout_s=4 * TRY_S) as client, client.session("tiny") as session:
        ys = [session.step(x)]
        assert session.step_count == 2
        ys.append(client.step_many({session: x})[session])
        ys += session.stream([x])
        assert session.step_count == 6
        assert_whole(oracle, [x] * 3, ys, session.state())
        assert session.step(x, return_sequences=False).shape == (2,)
        assert session.step_count == 7
