"""Measures 6 to 8, without a wire: what sessions cost by number, in memory, and without batches.

`python -m bench.growth sessions|memory|alone` runs in a process of its own on the server's core,
because a million sessions leave traces. It prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import ROOT, on_core, rss_bytes
from bench.rounds import Effort
from bench.rows import Goal, Row
from lstmserve.config import Config
from lstmserve.engine import Engine
from lstmserve.engine.model import slots_for
from lstmserve.head_layers import Linear
from lstmserve.spec import LstmSpec
from serving import environment
from traffic import open_session, start_engine, submit, submit_block

SMALL = LstmSpec(16, 128, head=(Linear(8),))
LARGE = LstmSpec(16, 512, num_layers=2, head=(Linear(8),))
FEW, MANY = 1_000, 1_000_000
BATCH, BLOCK = 32, 256
MEMORY_SESSIONS = MANY
AT_MOST = {value: Goal(value, is_least=False) for value in (1.2, 1.5, 350)}
ALONE_SESSIONS = 64
ALONE = f"{ALONE_SESSIONS} sessions batched / one at a time"


def ask(what: str, effort: Effort) -> dict[str, Any]:
    """Runs one of the three measures in a process of its own. Returns what it printed."""
    command = [sys.executable, "-m", "bench.growth", what, str(effort.rounds)]
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'service'}:{ROOT / 'tests'}"}
    done = subprocess.run(
        on_core(command), env={**environment(), **paths}, stdout=subprocess.PIPE, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def rows(effort: Effort) -> list[Row]:
    """The three measures."""
    sessions, memory, alone = (ask(what, effort) for what in ("sessions", "memory", "alone"))
    kernel, engine = f"kernel, batch of {BATCH}", f"engine.step of {BATCH}"
    many = "1,000,000 sessions / 1,000, LSTM(16, 128)"
    beyond = "bytes per idle session beyond its state"
    return [
        Row(6, f"{kernel}, {many}", sessions["kernel"], AT_MOST[1.2], "", sessions["kernel us"]),
        Row(6, f"{engine}, {many}", sessions["engine"], AT_MOST[1.5], "", sessions["engine us"]),
        Row(7, beyond, memory["bytes"], AT_MOST[350], "", f"{MEMORY_SESSIONS} sessions"),
        Row(8, f"{ALONE}, 512 x 2", alone["ratio"], Goal(8), "", alone["context"]),
    ]


class Sized:
    """An engine with `sessions` open sessions; each has stepped, so that all pages are in use."""

    def __init__(self, spec: LstmSpec, sessions: int, **settings: Any) -> None:
        self._folder = tempfile.TemporaryDirectory()
        size = slots_for(sessions, Config(**settings)) * spec.state_bytes
        self.engine: Engine = start_engine(
            Path(self._folder.name), spec, pool_bytes=size, **settings
        )
        self.loop = asyncio.new_event_loop()
        self._running = self.loop.create_task(self.engine.run())
        self.rows = [open_session(self.engine, f"{i:032x}") for i in range(sessions)]
        self.x = np.random.default_rng(0).standard_normal((1, spec.input_size)).astype(np.float32)
        for start in range(0, sessions, BLOCK):
            self.loop.run_until_complete(self._block(self.rows[start : start + BLOCK]))

    async def _block(self, rows: list[int]) -> None:
        await submit_block(self.engine, rows, [self.x] * len(rows), numbers=[1] * len(rows))

    async def _steps(self, rows: list[int]) -> None:
        for reply in [submit(self.engine, row, self.x)[1] for row in rows]:
            await reply

    def step(self, rows: list[int]) -> float:
        """The seconds that one step of each of these sessions takes, together."""
        start_s = time.perf_counter()
        self.loop.run_until_complete(self._steps(rows))
        return time.perf_counter() - start_s

    def kernel(self, rng: np.random.Generator) -> float:
        """The seconds of one run of 32 rows between random slots."""
        model = self.engine.models[0]
        assert model.kernel is not None
        assert model.pool is not None
        slots = rng.choice(model.pool.slots - 2, 2 * BATCH, replace=False) + 1
        x = np.zeros((1, BATCH, model.inputs.floats), np.float32)
        lengths = np.ones(BATCH, np.int32)
        start_s = time.perf_counter()
        model.kernel.run(x, lengths, slots[:BATCH], slots[BATCH:])
        return time.perf_counter() - start_s

    def close(self) -> None:
        """Ends the engine."""
        self.loop.run_until_complete(self.engine.close(5))
        self.loop.run_until_complete(self._running)
        self.loop.close()
        self._folder.cleanup()


def sessions(rounds: int) -> dict[str, Any]:
    """Measure 6: medians of 100 in each round, few and many sessions in turn."""
    few, many = Sized(SMALL, FEW), Sized(SMALL, MANY)
    rng = np.random.default_rng(0)

    def ratio(measure: Callable[[Sized], float]) -> tuple[list[float], str]:
        pairs = [
            [1e6 * np.median([measure(sized) for _ in range(100)]) for sized in (few, many)]
            for _ in range(rounds + 1)
        ][1:]
        small, large = np.median(pairs, axis=0)
        return [large / small for small, large in pairs], f"{small:.0f} and {large:.0f} us"

    kernel, kernel_us = ratio(lambda sized: sized.kernel(rng))
    # Sessions are drawn by number: to look through a million objects would flush the caches.
    engine, engine_us = ratio(
        lambda sized: sized.step(
            [sized.rows[i] for i in rng.choice(len(sized.rows), BATCH, replace=False).tolist()]
        )
    )
    few.close()
    many.close()
    return {"kernel": kernel, "kernel us": kernel_us, "engine": engine, "engine us": engine_us}


def memory(rounds: int) -> dict[str, Any]:
    """Measure 7: how much resident memory many sessions add, measured once."""
    first = Sized(SMALL, BLOCK)
    first.close()
    before = rss_bytes(os.getpid())
    sized = Sized(SMALL, MEMORY_SESSIONS)
    added = rss_bytes(os.getpid()) - before
    sized.close()
    return {"bytes": [added / MEMORY_SESSIONS - SMALL.state_bytes]}


def alone(rounds: int) -> dict[str, Any]:
    """Measure 8: the same steps, batched and one at a time."""
    single = Sized(LARGE, ALONE_SESSIONS, batch_sessions_max=1)
    batched = Sized(LARGE, ALONE_SESSIONS)
    ratios, rates = [], []
    for _ in range(rounds + 1):
        one_s = single.step(single.rows)
        all_s = float(np.median([batched.step(batched.rows) for _ in range(5)]))
        ratios.append(one_s / all_s)
        rates.append((ALONE_SESSIONS / one_s, ALONE_SESSIONS / all_s))
    single.close()
    batched.close()
    slow, fast = np.median(rates[1:], axis=0)
    return {"ratio": ratios[1:], "context": f"{slow:.0f} and {fast:.0f} steps/s"}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](int(sys.argv[2]))))
