"""4 servers -> 5 -> 4 behind Envoy, under load: only the new server's share of sessions moves.

State follows through the store. A server leaves on SIGTERM; a new one gets calls as soon as Envoy's
health check has found it.
"""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lstmserve import AsyncClient
from routing import Envoy, envoy_of
from soak.customer import Customer
from soak.findings import Violations
from soak.fleet import Fleet, fleet_of
from soak.routed import Load, Move, homes, is_asked, load_on, watched
from soak.timing import percentile
from storing import Valkey

SERVERS = 5
DEVIATIONS = 5  # standard deviations that a share of sessions may be off
NEEDLESS_MAX = 0.02  # Maglev's own is about 0.1 %
DRAIN_DELAY_S = "2"  # Envoy asks once a second
STEPS = 3


class Timed(Customer):
    """Notes when each of its steps began, and how long it took."""

    def __init__(self, fleet: Fleet, client: AsyncClient, name: str, log: int) -> None:
        super().__init__(fleet, client, name, log)
        self.times: list[tuple[float, float]] = []

    async def step(self, rng: np.random.Generator) -> None:
        """Makes one more step."""
        began_s = time.monotonic()
        await super().step(rng)
        self.times.append((began_s, time.monotonic() - began_s))


@dataclass(kw_only=True)
class Found:
    """What one run found. A call that fails after its repeats ends the run."""

    sessions: int
    moves: list[Move] = field(default_factory=list)  # there and back, in turn
    steps: int = 0
    loads: float = 0
    exit_codes: set[int] = field(default_factory=set)
    quiet_s: list[float] = field(default_factory=list)
    moving_s: list[float] = field(default_factory=list)
    violations: Violations = field(default_factory=Violations)

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        self.violations.check()
        assert self.moves
        share = 1 / SERVERS
        share_max = share + DEVIATIONS * math.sqrt(share * (1 - share) / self.sessions)
        for move in self.moves:
            assert 0 < move.moved <= share_max
            assert move.needless <= NEEDLESS_MAX
        assert self.loads > 0
        assert self.exit_codes == {0}

    def figures(self) -> str:
        """The figures in one line, for people."""
        out, back = self.moves[::2], self.moves[1::2]
        needless = max(move.needless for move in self.moves)
        restless = sum(len(move.restless) for move in self.moves)
        found = self.violations
        return (
            f"{SERVERS - 1} -> {SERVERS} -> {SERVERS - 1} servers {len(out)} times, "
            f"{self.sessions} sessions: {_range(out)} moved, {_range(back)} moved back "
            f"(1/{SERVERS} is {1 / SERVERS:.1%}), between servers that stay at most "
            f"{needless:.1%} (Envoy gave up another one {restless} times); "
            f"{self.steps} acked steps: lost {found.lost}, wrong {found.wrong}, "
            f"doubled {found.doubled}, failed calls 0; p50 and p99 of a step "
            f"{_times(self.quiet_s)} s, during a move {_times(self.moving_s)} s"
        )


def run(folder: Path, *, times: int, sessions: int) -> Found:
    """Lets the fifth server come and go `times` times."""
    found = Found(sessions=sessions)
    flags = ("--drain-delay-s", DRAIN_DELAY_S)
    with (
        Valkey(folder) as valkey,
        fleet_of(folder, SERVERS, "--store", valkey.url, *flags, stays=True) as fleet,
    ):
        fleet.pods[-1].serving.kill()  # Envoy knows the address, and no server is there yet
        with envoy_of([pod.serving.target for pod in fleet.pods]) as envoy:
            asyncio.run(_run(fleet, envoy, found, times))
    return found


async def _run(fleet: Fleet, envoy: Envoy, found: Found, times: int) -> None:
    extra = fleet.pods[-1]

    async def come() -> float:
        await extra.start()
        return time.monotonic()

    async def leave() -> float:
        began_s = time.monotonic()
        found.exit_codes.add(await extra.end(signal.SIGTERM))
        return began_s

    assert not is_asked(envoy, extra)
    async with load_on(fleet, envoy, sessions=found.sessions, customer=Timed) as load:
        for _ in range(times):
            await _move(fleet, envoy, load, found, come, lambda: is_asked(envoy, extra))
            found.loads += await asyncio.to_thread(
                extra.serving.metric, "lstm_sessions_opened_total", source="load"
            )
            await _move(fleet, envoy, load, found, leave, lambda: not is_asked(envoy, extra))
    found.violations = load.violations
    found.steps = sum(each.experience.steps for each in load.customers)


async def _move(
    fleet: Fleet,
    envoy: Envoy,
    load: Load[Timed],
    found: Found,
    change: Callable[[], Awaitable[float]],
    is_over: Callable[[], bool],
) -> None:
    """Watches for a while without a change, and then makes the change."""
    async with watched(fleet, envoy) as restless:
        found.quiet_s += await _taken(load, time.monotonic())
        before = await asyncio.to_thread(homes, fleet)
        began_s = await change()
        await load.until(is_over)
        found.moving_s += await _taken(load, began_s)
        after = await asyncio.to_thread(homes, fleet)
    found.moves.append(Move(before, after, restless - {fleet.pods[-1].name}))


async def _taken(load: Load[Timed], began_s: float) -> list[float]:
    """How long each step took that began since then, or among the next ones of every customer."""
    await load.steps(STEPS)
    return [took for each in load.customers for at, took in each.times if at > began_s]


def _range(moves: Sequence[Move]) -> str:
    shares = [move.moved for move in moves]
    return f"{min(shares):.1%} - {max(shares):.1%}"


def _times(values: Sequence[float]) -> str:
    return f"{percentile(values, 50)} and {percentile(values, 99)}"
