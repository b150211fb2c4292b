"""What a batch of 64 sessions costs to put and to load, in each store. Run by `make bench`.

20,000 sessions are stored, and each round draws 64 at random; every put is a compare-and-set that
succeeds. The states are those of LSTM(H=128, 1 layer) and LSTM(H=512, 2 layers). Timings are never
pass or fail.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from lstmserve.store import Store, Written, open_store
from storing import Valkey, write

SESSIONS, BATCH, ROUNDS = 20_000, 64, 300
STATE_BYTES = {"1KiB": 512, "8KiB": 4096}  # of h, and of c


@pytest.fixture(params=["file", "file, sync", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[asyncio.Runner, Store]]:
    """A running loop of uvloop, and an open store on it."""
    with Valkey(tmp_path) as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        url = server.url if request.param == "redis" else f"file:{tmp_path}"
        store = open_store(url, sync="sync" in request.param)
        assert store
        yield runner, store
        runner.run(store.close())


@pytest.mark.parametrize("size", STATE_BYTES)
@pytest.mark.parametrize("what", ["put", "load"])
def test_store(benchmark: Any, store: tuple[asyncio.Runner, Store], what: str, size: str) -> None:
    """One put, or one load, of 64 sessions out of 20,000."""
    runner, opened = store
    run, bytes_each = runner.run, STATE_BYTES[size]
    keys = [f"/{i:032x}" for i in range(SESSIONS)]
    steps = dict.fromkeys(keys, 0)
    for first in range(0, SESSIONS, 500):
        born = [write(key, None, (1, 1, 0), size=bytes_each) for key in keys[first : first + 500]]
        assert run(opened.put(born)) == [Written.OK] * len(born)
    rng = random.Random(0)

    def draw() -> tuple[tuple[Any, ...], dict[str, Any]]:
        chosen = rng.sample(keys, BATCH)
        if what == "load":
            return (opened.load, chosen), {}
        versions = [((1, 1, steps[key]), (1, 1, steps[key] + 1)) for key in chosen]
        writes = [write(k, *v, size=bytes_each) for k, v in zip(chosen, versions, strict=True)]
        steps.update((key, steps[key] + 1) for key in chosen)
        return (opened.put, writes), {}

    def call(method: Any, argument: list[Any]) -> None:
        outcome = run(method(argument))
        assert what == "load" or outcome == [Written.OK] * BATCH

    benchmark.pedantic(call, setup=draw, rounds=ROUNDS, warmup_rounds=5)
