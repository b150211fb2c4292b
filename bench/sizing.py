"""What one session costs in a server and in Valkey: `python -m bench.sizing`, for docs/SCALING.md.

Sizes do not depend on other processes; rates are per second of CPU time, which depends little on
them.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
from redis import Redis

from bench import requests
from bench.http2 import Connection
from bench.load import Load
from bench.machine import cpu_s, rss_bytes
from bench.rounds import MODEL, Effort, Side, take_turns
from lstmserve.config import Config
from lstmserve.engine.compute.kernel import Kernel
from lstmserve.engine.compute.pool import Pool
from lstmserve.engine.model import slots_for
from lstmserve.graph import LstmNetwork
from lstmserve.head_layers import Linear
from lstmserve.spec import LstmSpec
from lstmserve.store import Store, Written, open_store
from modelmaking import make_model, random_weights
from routing import envoy_of
from serving import COMMAND, Serving
from storing import Valkey, write
from traffic import number_of, open_session, start_engine, submit

MODELS = {
    "H = 128, 1 layer": LstmSpec(64, 128, head=(Linear(8),)),
    "H = 512, 2 layers": LstmSpec(64, 512, num_layers=2, head=(Linear(8),)),
}
SESSIONS, BATCH, ROUNDS, PASSES = 20_000, 64, 300, 5
MANY, EFFORT = 256, Effort(rounds=3, seconds=2)


def in_server(spec: LstmSpec, folder: Path) -> float:
    """Bytes of resident memory per open session that has made a step, saved reply included."""
    size = slots_for(SESSIONS, Config()) * spec.state_bytes
    engine = start_engine(folder, spec, pool_bytes=size)
    before = rss_bytes(os.getpid())

    async def work() -> None:
        running = asyncio.create_task(engine.run())
        rows = [open_session(engine, f"{i:032x}") for i in range(SESSIONS)]
        x = np.ones((1, spec.input_size), np.float32)
        for start in range(0, SESSIONS, BATCH):
            for reply in [
                submit(engine, row, x, **number_of(1, x))[1] for row in rows[start : start + BATCH]
            ]:
                await reply
        await engine.close(5)
        await running

    asyncio.run(work())
    return (rss_bytes(os.getpid()) - before) / SESSIONS


def kernel_rate(spec: LstmSpec) -> float:
    """Rows that one CPU second computes, in batches of 64."""
    network = LstmNetwork(spec, random_weights(spec, 0))
    pool = Pool(network.layout, SESSIONS)
    kernel = Kernel(network, pool, "cpu", 1)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, BATCH, spec.input_size)).astype(np.float32)
    lengths = np.ones(BATCH, np.int32)
    draws = [rng.choice(SESSIONS - 3, 2 * BATCH, replace=False) + 1 for _ in range(ROUNDS)]
    for warm in (True, False):
        start_s = time.process_time()
        for chosen in draws[: 20 if warm else ROUNDS]:
            kernel.run(x, lengths, chosen[:BATCH], chosen[BATCH:])
    return BATCH * ROUNDS / (time.process_time() - start_s)


def front_rates(spec: LstmSpec, folder: Path, *flags: str) -> list[float]:
    """Steps that a CPU second of a server answers: unary, on streams, and 256 a message."""
    found = []
    make_model(folder, spec, name=MODEL)
    with ExitStack() as stack:
        serving = Serving(("--models", folder, *flags), COMMAND)
        stack.callback(serving.kill)
        address = ("127.0.0.1", int(serving.target.rpartition(":")[2]))

        def rate(method: str, messages: list[Iterator[bytes]], steps: int = 1) -> float:
            path, streamed = requests.PATH + method, method != "Step"
            connections = [Connection(address, path, each, streamed=streamed) for each in messages]
            side = Side("ours", serving.process.pid, Load(connections))
            samples = take_turns([side], EFFORT)["ours"]
            return steps * median(sample.per_cpu_s for sample in samples)

        for method, count in (("Step", 32), ("StepStream", 64)):
            sessions = requests.open_sessions(serving.target, MODEL, count)
            found.append(rate(method, [requests.steps(each, spec) for each in sessions]))
        cohorts = [requests.open_sessions(serving.target, MODEL, MANY) for _ in range(2)]
        found.append(rate("StepMany", [requests.blocks(each, spec) for each in cohorts], MANY))
    return found


def envoy_rate(spec: LstmSpec, folder: Path) -> float:
    """Unary steps that a CPU second of Envoy passes on, 32 connections."""
    make_model(folder, spec, name=MODEL)
    with ExitStack() as stack:
        serving = Serving(("--models", folder), COMMAND)
        stack.callback(serving.kill)
        envoy = stack.enter_context(envoy_of([serving.target]))
        address = ("127.0.0.1", int(envoy.target.rpartition(":")[2]))
        sessions = requests.open_sessions(serving.target, MODEL, 32)
        messages = [requests.steps(each, spec) for each in sessions]
        load = Load(
            [Connection(address, requests.PATH + "Step", each, streamed=False) for each in messages]
        )
        samples = take_turns([Side("envoy", envoy.process.pid, load)], EFFORT)["envoy"]
        return median(sample.per_cpu_s for sample in samples)


def in_valkey(spec: LstmSpec, folder: Path) -> tuple[float, float, float]:
    """Bytes per session; sessions that one CPU second of Valkey puts, and loads, 64 at a time."""
    size = spec.state_bytes // 2
    keys = [f"/{i:032x}" for i in range(SESSIONS)]
    parts = [keys[start : start + BATCH] for start in range(0, SESSIONS, BATCH)]

    async def put(store: Store, step: int) -> None:
        old = (1, 1, step - 1) if step else None
        for part in parts:
            writes = [write(key, old, (1, 1, step), size=size) for key in part]
            assert await store.put(writes) == [Written.OK] * len(part)

    async def work(server: Valkey, admin: Redis) -> tuple[float, float, float]:
        store = open_store(server.url)
        assert store is not None
        empty = int(admin.info("memory")["used_memory"])
        await put(store, 0)
        each = (int(admin.info("memory")["used_memory"]) - empty) / SESSIONS
        times = [cpu_s(server.process.pid)]
        for step in range(PASSES):
            await put(store, step + 1)
        times.append(cpu_s(server.process.pid))
        for _ in range(PASSES):
            for part in parts:
                assert None not in await store.load(part)
        times.append(cpu_s(server.process.pid))
        await store.close()
        putting, loading = np.diff(times)
        return each, PASSES * SESSIONS / putting, PASSES * SESSIONS / loading

    with Valkey(folder) as server, Redis.from_url(server.url) as admin:
        return asyncio.run(work(server, admin))


def main() -> None:
    """Prints one table."""
    print(f"| per session, of {SESSIONS:,} | {' | '.join(MODELS)} |\n|---|---|---|")
    found = []
    for spec in MODELS.values():
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            with Valkey(Path(other)) as valkey:
                stored = front_rates(spec, Path(one) / "stored", "--store", valkey.url)
            found.append(
                (
                    spec.state_bytes,
                    in_server(spec, Path(one)),
                    kernel_rate(spec),
                    *front_rates(spec, Path(one) / "served"),
                    *stored,
                    envoy_rate(spec, Path(one) / "routed"),
                    *in_valkey(spec, Path(other)),
                )
            )
    names = [
        "bytes of state",
        "bytes in the server",
        "rows a CPU second computes, 64 a batch",
        "steps a CPU second of a server answers: Step, 32 connections",
        "... StepStream, 64 streams",
        "... StepMany, 256 sessions a message",
        "the same written through to Valkey: Step",
        "... StepStream",
        "... StepMany",
        "steps a CPU second of Envoy passes on: Step, 32 connections",
        "bytes in Valkey",
        "puts a CPU second of Valkey does",
        "loads a CPU second of Valkey does",
    ]
    for name, values in zip(names, zip(*found, strict=True), strict=True):
        print(f"| {name} | {' | '.join(f'{value:,.0f}' for value in values)} |")


if __name__ == "__main__":
    main()
