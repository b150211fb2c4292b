"""Cancelled calls, deadlines and dropped connections free everything that their calls held.

Calls of every kind end at any moment, in the server's three forms: plain, with a limit of a
tenant's steps, with a store. Afterwards every place is free, every session exact, and Python's
collector tells what the calls left: objects that live on, and cycles that waited for it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from serving import Serving
from soak.calls import Calls
from soak.findings import Violations, add
from soak.fleet import Fleet, fleet_of
from soak.leaving import Leaver
from soak.remains import COMMAND, Sample, objects_of, sample_of
from soak.timing import pause
from soak.ways import WAYS

LEAVERS = 16
TOGETHER_MAX = 4  # calls of one client under way at once
LONG_PART, LONG_ROWS = 0.3, 600
LIMIT = 128
SAMPLE_S = 0.25
WARM_UP_PART = 0.4  # of the samples
QUIET_S_MAX = 60
OBJECTS_MAX = 10  # more objects of calls than after the warm-up
CYCLES_MAX = 12.0  # objects per call that only the collector frees: gRPC makes 5 of each call
OUR_FAULTS = {"UNKNOWN", "INTERNAL", "DATA_LOSS"}
FORMS = ("plain", "limited", "stored")


@dataclass
class Found:
    """What a run found on one server."""

    form: str
    slope_max: float | None  # bytes per call; None: too few calls for a slope
    ways: Counter[str] = field(default_factory=Counter)
    codes: set[str] = field(default_factory=set)
    steps: int = 0
    canceled: float = 0  # calls that the server saw end early
    applied: float = 0
    errors_at_limit: int = 0
    objects: int = 0  # objects of calls that are still alive
    cycles: float = 0  # objects per call that waited for the collector
    samples: list[Sample] = field(default_factory=list)
    violations: Violations = field(default_factory=Violations)

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        self.violations.check()
        assert not self.codes & OUR_FAULTS, self.codes
        assert len(self.ways) == 4
        assert self.canceled > 0
        assert self.errors_at_limit == 0, "places of steps that left are not free"
        first, last = self.samples[0], self.samples[-1]
        assert last.is_quiet, last
        assert last.fds <= first.fds
        assert last.opened - last.closed == last.live == last.slots == 0, last
        assert self.objects < OBJECTS_MAX, self.objects
        assert self.cycles < CYCLES_MAX, self.cycles
        assert self.slope_max is None or self.slope < self.slope_max, self.slope

    @property
    def slope(self) -> float:
        """How many bytes of memory a call adds, without the warm-up."""
        busy = self.samples[int(WARM_UP_PART * len(self.samples)) : -1]
        calls, memory = ([getattr(s, name) for s in busy] for name in ("made", "rss_bytes"))
        return float(np.polyfit(calls, memory, 1)[0])

    def figures(self) -> str:
        """The figures in one line, for people."""
        first, last = self.samples[0], self.samples[-1]
        ways = ", ".join(f"{way} {count}" for way, count in sorted(self.ways.items()))
        slope = "" if self.slope_max is None else f"; memory {self.slope:+.0f} bytes a call"
        return (
            f"{self.form}: {self.ways.total()} calls left ({ways}), of which the server saw "
            f"{self.canceled:.0f} end early, among {last.handled:.0f}; {self.steps} steps exact, "
            f"wrong {self.violations.wrong}, lost {self.violations.lost}, doubled "
            f"{self.violations.doubled}; afterwards {last.pending:.0f} steps pending, opened - "
            f"closed - live {last.opened - last.closed - last.live:.0f}, slots in use "
            f"{last.slots:.0f}, descriptors {first.fds:.0f} -> {last.fds:.0f}, "
            f"{self.objects} more objects of calls, {self.cycles:.0f} a call in cycles{slope}"
        )


@dataclass
class All:
    """What the runs on every form of server found."""

    forms: list[Found]

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        for found in self.forms:
            found.check()

    def figures(self) -> str:
        """The figures of every form in one line, for people."""
        return "; ".join(found.figures() for found in self.forms)


def run(folder: Path, *, cancels: int, slope_max: float | None, seed: int = 0) -> All:
    """Leaves `cancels` calls, over all forms of the server."""
    found = [Found(form, slope_max) for form in FORMS]
    for each in found:
        flags: dict[str, tuple[str, ...]] = {
            "plain": (),
            "limited": ("--tenant-pending-steps-max", str(LIMIT)),
            "stored": ("--store", f"file:{folder / 'store'}"),
        }
        arguments = ("--tombstones-max", "100", *flags[each.form])
        with fleet_of(folder / each.form, 1, *arguments, command=COMMAND) as fleet:
            asyncio.run(_run(fleet, each, cancels // len(FORMS), seed))
    return All(found)


async def _run(fleet: Fleet, found: Found, cancels: int, seed: int) -> None:
    serving = fleet.pods[0].serving
    found.samples.append(await _sample(serving, found))
    async with AsyncExitStack() as stack:
        leavers = []
        for i in range(LEAVERS):
            calls = await stack.enter_async_context(Calls())
            leavers.append(Leaver(fleet, calls, np.random.default_rng([seed, i]), i))
        for leaver in leavers:
            await leaver.talk.open()
        await _stage(serving, found, leavers, int(WARM_UP_PART * cancels))
        before = await asyncio.to_thread(objects_of, serving)
        since = found.samples[-1].handled
        await _stage(serving, found, leavers, cancels)
        after = await asyncio.to_thread(objects_of, serving)
        found.objects = after["live"] - before["live"]
        freed = after["freed"] - before["freed"]
        found.cycles = freed / (found.samples[-1].handled - since)
        found.errors_at_limit = await leavers[0].fill(LIMIT)
        for leaver in leavers:
            await leaver.talk.verify()
            add(found.violations, leaver.talk.violations)
            await leaver.end()
    await _until_quiet(serving, found)
    handled = "grpc_server_handled_total"
    found.canceled = await asyncio.to_thread(serving.metric, handled, grpc_code="Canceled")


async def _stage(serving: Serving, found: Found, leavers: list[Leaver], cancels: int) -> None:
    """Leaves calls until there are `cancels` of them."""
    tasks = [asyncio.create_task(_work(leaver, found, cancels)) for leaver in leavers]
    pending: set[asyncio.Task[None]] = set(tasks)
    while pending:
        _, pending = await asyncio.wait(pending, timeout=SAMPLE_S)
        found.samples.append(await _sample(serving, found))
    for task in tasks:
        task.result()
    await _until_quiet(serving, found)


async def _work(leaver: Leaver, found: Found, cancels: int) -> None:
    while found.ways.total() < cancels:
        is_long = leaver.rng.random() < LONG_PART
        leaver.talk.prepare(leaver.rng, LONG_ROWS if is_long else 0)
        together = int(leaver.rng.integers(1, TOGETHER_MAX + 1))
        await asyncio.gather(*(_leave(leaver, found) for _ in range(together)))
        await leaver.talk.resume()
        found.steps += 1


async def _leave(leaver: Leaver, found: Found) -> None:
    way = WAYS[int(leaver.rng.integers(len(WAYS)))]
    count, codes = await way(leaver)
    found.ways[way.__name__] += count
    found.codes |= codes


async def _until_quiet(serving: Serving, found: Found) -> None:
    """Waits until no call is under way and no more connections are open than at the start."""
    end_s = time.monotonic() + QUIET_S_MAX
    while True:
        found.samples.append(await _sample(serving, found))
        first, last = found.samples[0], found.samples[-1]
        if (last.is_quiet and (last.fds <= first.fds or last.live)) or time.monotonic() > end_s:
            return
        await pause(SAMPLE_S)


async def _sample(serving: Serving, found: Found) -> Sample:
    return await asyncio.to_thread(sample_of, serving, found.ways.total() + found.steps)
