"""Hours of clients of every kind, in the proportions of Triton's L0_long_running_stress.

There are good sequences, ones that never end or never began, deadlines that are too short, and
clients that crash. When they are gone, they must leave nothing behind: no memory, no descriptors,
no sessions.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from soak.calls import Calls
from soak.fleet import Fleet, fleet_of
from soak.scenarios import SCENARIOS
from soak.timing import pause
from soak.visitor import Visitor

TTL_S = 2
WORKERS = 8
SAMPLE_S = 1.0
WARM_UP_PART = 0.2  # of the samples, in which pools fill and allocators settle


class Sample(NamedTuple):
    """What the server held at one time."""

    time_s: float
    rss_bytes: float
    fds: float
    opened: float
    closed: float
    live: float


@dataclass
class Found:
    """What one run found; the slopes are those of a line through the samples."""

    seed: int
    done: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    wrong: int = 0
    applied: int = 0  # steps whose answer the clients saw
    unknown: int = 0  # steps whose answer they did not wait for
    counted: float = 0  # steps that the server counted
    samples: list[Sample] = field(default_factory=list)

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        assert self.failures == []
        assert self.wrong == 0
        assert set(self.done) == {scenario.__name__ for scenario in SCENARIOS}
        first, last = self.samples[0], self.samples[-1]
        assert last.live == 0
        assert all(each.opened - each.closed == each.live for each in self.samples)
        assert last.fds <= first.fds
        assert self.applied <= self.counted <= self.applied + self.unknown

    def slope(self, name: str) -> float:
        """The slope per hour, without the warm-up."""
        samples = self.samples[int(WARM_UP_PART * len(self.samples)) : -1]
        times = [each.time_s for each in samples]
        values = [getattr(each, name) for each in samples]
        return float(np.polyfit(times, values, 1)[0]) * 3600

    def quarters(self) -> list[float]:
        """The server's memory in bytes at the start and after each quarter of the run."""
        count = len(self.samples) - 1
        return [self.samples[count * i // 4].rss_bytes for i in range(5)]

    def figures(self) -> str:
        """The figures in one line, for people."""
        first, last = self.samples[0], self.samples[-1]
        return (
            f"{self.done.total()} scenarios in {last.time_s - first.time_s:.0f} s "
            f"({', '.join(f'{name} {n}' for name, n in sorted(self.done.items()))}), "
            f"{self.counted:.0f} steps, wrong {self.wrong}; memory by quarters "
            f"{' '.join(f'{rss / 1e6:.0f}' for rss in self.quarters())} MB "
            f"({self.slope('rss_bytes') / 1e6:+.1f} MB/h), "
            f"descriptors {first.fds:.0f} -> {last.fds:.0f}; {last.opened:.0f} sessions opened, "
            f"opened - closed - live {last.opened - last.closed - last.live:.0f}"
        )


def run(folder: Path, *, scenarios: int, seconds: float = 0, seed: int = 0) -> Found:
    """Runs at least `scenarios` scenarios, for at least `seconds`, on one server."""
    print(f"stress: seed {seed}")
    found = Found(seed)
    flags = ("--session-ttl-s", str(TTL_S), "--tombstones-max", "1000")
    with fleet_of(folder, 1, *flags) as fleet:
        asyncio.run(_run(fleet, found, scenarios, seconds))
    return found


async def _run(fleet: Fleet, found: Found, scenarios: int, seconds: float) -> None:
    found.samples.append(await _sample(fleet))
    end_s = time.monotonic() + seconds

    def is_over() -> bool:
        return found.done.total() >= scenarios and time.monotonic() >= end_s

    workers = [asyncio.create_task(_work(fleet, found, i, is_over)) for i in range(WORKERS)]
    pending: set[asyncio.Task[None]] = set(workers)
    while pending:
        _, pending = await asyncio.wait(pending, timeout=SAMPLE_S)
        found.samples.append(await _sample(fleet))
    for worker in workers:
        worker.result()
    while found.samples[-1].live or found.samples[-1].fds > found.samples[0].fds:
        await pause(SAMPLE_S)
        found.samples.append(await _sample(fleet))
        assert time.monotonic() < end_s + 600, f"something stays: {found.samples[-1]}"
    serving = fleet.pods[0].serving
    found.counted = await asyncio.to_thread(serving.metric, "lstm_steps_total", code="OK")


async def _work(fleet: Fleet, found: Found, index: int, is_over: Callable[[], bool]) -> None:
    rng = np.random.default_rng([found.seed, index])
    weights = np.array(list(SCENARIOS.values()), float)
    chosen = list(SCENARIOS)
    turn = index
    while not is_over():
        # Each scenario comes once before the random ones, so that a short run has them all.
        scenario = chosen[turn % len(chosen)]
        if turn >= len(chosen):
            scenario = chosen[int(rng.choice(len(chosen), p=weights / weights.sum()))]
        turn += WORKERS
        async with Calls() as calls:
            visitor = Visitor(fleet, calls, rng, index, found)
            try:
                await scenario(visitor)
            except Exception as error:
                found.failures.append(f"{scenario.__name__}: {type(error).__name__} {error}")
        found.done[scenario.__name__] += 1


async def _sample(fleet: Fleet) -> Sample:
    serving = fleet.pods[0].serving

    def read() -> Sample:
        names = ("opened_total", "closed_total")
        sessions = [f"lstm_sessions_{name}" for name in names] + ["lstm_sessions"]
        found = serving.metrics("process_resident_memory_bytes", "process_open_fds", *sessions)
        return Sample(time.monotonic(), *found)

    return await asyncio.to_thread(read)
