"""What a step costs as the number of sessions grows: it must not. Run by `make bench`.

Slots and sessions are drawn at random for every round, so that caches do not help. Timings are
never pass or fail; the ratio of the two sizes, in one run, is the figure.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stepgraph
from lstmserve.config import Config
from lstmserve.engine.compute.kernel import Kernel
from lstmserve.engine.compute.pool import Pool
from lstmserve.engine.model import slots_for
from lstmserve.graph import LstmNetwork, StepNetwork
from lstmserve.graph.step_graph import read_step_graph
from lstmserve.head_layers import Linear
from lstmserve.spec import LstmSpec
from modelmaking import random_weights
from traffic import open_session, start_engine, submit

SPEC = LstmSpec(16, 128, head=(Linear(8),))
SIZES = (1_000, 1_000_000)
BATCH = 32
ROUNDS = 300


@pytest.mark.parametrize("slots", SIZES)
def test_kernel(benchmark: Any, slots: int) -> None:
    """One batch of 32 at T = 1, between random slots of a pool with `slots` slots."""
    network = LstmNetwork(SPEC, random_weights(SPEC, 0))
    pool = Pool(network.layout, slots + 2)
    kernel = Kernel(network, pool, "cpu", 1)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, BATCH, SPEC.input_size)).astype(np.float32)
    lengths = np.ones(BATCH, np.int32)
    for tensor in pool.tensors.values():  # every page of the pool is real memory
        tensor.numpy()[:] = rng.random(tensor.shape()[1:], np.float32)

    def draw() -> tuple[tuple[Any, ...], dict[str, Any]]:
        chosen = rng.choice(slots, 2 * BATCH, replace=False) + 1
        return (x, lengths, chosen[:BATCH], chosen[BATCH:]), {}

    benchmark.pedantic(kernel.run, setup=draw, rounds=ROUNDS, warmup_rounds=20)


@pytest.mark.parametrize("length", [1, 16])
@pytest.mark.parametrize("slots", SIZES)
def test_network_kernel(benchmark: Any, slots: int, length: int) -> None:
    """The same of a step graph with five states of float32, int64 and bool; T > 1 is its Scan."""
    graph = read_step_graph(stepgraph.build().SerializeToString(), stepgraph.SPEC)
    network = StepNetwork(stepgraph.SPEC, graph)
    pool = Pool(network.layout, slots + 2)
    kernel = Kernel(network, pool, "cpu", 1)
    rng = np.random.default_rng(0)
    x = stepgraph.random_rows(rng, length * BATCH).reshape(length, BATCH)
    lengths = np.full(BATCH, length)
    for tensor in pool.tensors.values():
        tensor.numpy()[:] = 1

    def draw() -> tuple[tuple[Any, ...], dict[str, Any]]:
        chosen = rng.choice(slots, 2 * BATCH, replace=False) + 1
        return (x, lengths, chosen[:BATCH], chosen[BATCH:]), {}

    benchmark.pedantic(kernel.run, setup=draw, rounds=ROUNDS, warmup_rounds=20)


@pytest.mark.parametrize("sessions", SIZES)
def test_engine_step(benchmark: Any, sessions: int, tmp_path: Path) -> None:
    """32 steps of random sessions, of `sessions` that are open, from submit to reply."""
    size = slots_for(sessions, Config()) * SPEC.state_bytes
    engine = start_engine(tmp_path, SPEC, pool_bytes=size)
    rows = np.array([open_session(engine, f"{i:032x}") for i in range(sessions)])
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, SPEC.input_size)).astype(np.float32)
    loop = asyncio.new_event_loop()
    running = loop.create_task(engine.run())

    async def steps(chosen: list[int]) -> None:
        for reply in [submit(engine, row, x)[1] for row in chosen]:
            await reply

    def run(chosen: list[int]) -> None:
        loop.run_until_complete(steps(chosen))

    def draw() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (rng.choice(rows, BATCH, replace=False).tolist(),), {}

    for start in range(0, sessions, 256):  # every session has a slot of its own
        run(rows[start : start + 256].tolist())
    benchmark.pedantic(run, setup=draw, rounds=ROUNDS, warmup_rounds=20)
    loop.run_until_complete(engine.close(5))
    loop.run_until_complete(running)
    loop.close()
