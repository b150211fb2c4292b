"""One tenant sends many times its limit: how much longer do the others wait?

Phases with it and without it take turns, and the ratio is the median over the pairs. Whatever else
this machine does affects both alike.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from lstmserve.head_layers import Linear
from lstmserve.spec import LstmSpec
from soak.calls import Calls, Refused
from soak.conversation import Conversation
from soak.fleet import Fleet, fleet_of
from soak.overload import Flood, Level
from soak.timing import pause, percentile
from tenancy import write_tokens

MODEL = LstmSpec(input_size=8, hidden_size=512, num_layers=2, head=(Linear(4),))
ROWS = 32  # of each step
QUOTA = 320  # the limit of the noisy tenant, in rows a second
TIMES = 20
NOISY, VICTIMS = 100, 6  # sessions
THINK_S = 0.1
RATIO_MAX = 1.5


@dataclass
class Found:
    """What one run found: a list of seconds for each phase, without and with the noisy tenant."""

    alone_s: list[list[float]] = field(default_factory=list)
    beside_s: list[list[float]] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)  # of the noisy tenant, one a phase
    victims_refused: list[str] = field(default_factory=list)
    wrong: int = 0
    differences: dict[str, tuple[float, float]] = field(default_factory=dict)

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        self.check_counts()
        assert self.ratio < RATIO_MAX

    def check_counts(self) -> None:
        """Checks what even a slow machine must meet."""
        assert self.victims_refused == []
        assert self.wrong == 0
        assert self.differences == {}
        for level in self.levels:
            assert level.others == []
            assert level.hints_missing == 0
            assert level.shed > 0
            assert 0 < level.applied * ROWS <= QUOTA * (level.seconds + 1)  # and a full bucket

    @property
    def ratio(self) -> float:
        """The victims' p99 with the noisy tenant, divided by that without."""
        pairs = zip(self.alone_s, self.beside_s, strict=True)
        return median(float(np.percentile(b, 99) / np.percentile(a, 99)) for a, b in pairs)

    def figures(self) -> str:
        """The figures in one line, for people."""
        offered, applied, shed, seconds = (
            sum(getattr(level, name) for level in self.levels)
            for name in ("offered", "applied", "shed", "seconds")
        )
        return (
            f"limit {QUOTA} rows/s, {ROWS * offered / seconds:.0f}/s offered, "
            f"{ROWS * applied / seconds:.0f}/s applied, {shed} steps refused; the victims' "
            f"{_times(self.alone_s)} without, {_times(self.beside_s)} with: p99 ratio "
            f"{self.ratio:.2f}, the median of {len(self.levels)} pairs of phases (gate "
            f"{RATIO_MAX}); victims refused {len(self.victims_refused)}, wrong outputs {self.wrong}"
        )


def run(folder: Path, *, pairs: int, seconds: float) -> Found:
    """Runs `pairs` pairs of phases of `seconds` each."""
    found = Found()
    tokens = write_tokens(folder / "tokens", noisy=f"rows_per_s={QUOTA}", quiet="")
    with fleet_of(folder / "models", 1, "--tokens", folder / "tokens", spec=MODEL) as fleet:
        asyncio.run(_run(fleet, tokens, found, pairs, seconds))
    return found


async def _run(
    fleet: Fleet, tokens: dict[str, str], found: Found, pairs: int, seconds: float
) -> None:
    async with Calls(tokens["noisy"]) as loud, Calls(tokens["quiet"]) as calls:
        loud.ledgers = calls.ledgers  # one ledger for the one server
        noisy = [Conversation(fleet, loud, f"n{i}") for i in range(NOISY)]
        victims = [Conversation(fleet, calls, f"v{i}") for i in range(VICTIMS)]
        await asyncio.gather(*(talk.open() for talk in [*noisy, *victims]))
        flood = Flood(fleet, noisy, "QUOTA", ROWS)
        for _ in range(pairs):
            found.alone_s.append(await _phase(fleet, victims, found, pause(seconds)))
            found.levels.append(Level(TIMES))
            rush = flood.run(found.levels[-1], TIMES * QUOTA / ROWS, seconds)
            found.beside_s.append(await _phase(fleet, victims, found, rush))
        for talk in [*noisy[:VICTIMS], *victims]:
            await talk.verify()
            found.wrong += talk.violations.wrong + talk.violations.lost + talk.violations.doubled
        (pod,) = fleet.pods
        ledger = calls.ledgers[pod.serving]
        found.differences = await asyncio.to_thread(ledger.differences, pod.serving)


async def _phase(
    fleet: Fleet, victims: Sequence[Conversation], found: Found, during: Awaitable[None]
) -> list[float]:
    """The seconds of each step that the victims make meanwhile."""
    seconds: list[float] = []
    over = asyncio.Event()
    tasks = [asyncio.create_task(_converse(fleet, talk, seconds, found, over)) for talk in victims]
    await during
    over.set()
    await asyncio.gather(*tasks)
    return seconds


async def _converse(
    fleet: Fleet, talk: Conversation, seconds: list[float], found: Found, over: asyncio.Event
) -> None:
    rng = np.random.default_rng(len(talk.inputs))
    while not over.is_set():
        await pause(THINK_S * rng.uniform(0.5, 1.5))  # or all steps would come at once
        start_s = time.monotonic()
        try:
            await talk.try_once(fleet.pods[0].serving, rng, ROWS)
        except Refused as error:
            found.victims_refused.append(str(error))
        seconds.append(time.monotonic() - start_s)


def _times(phases: Sequence[Sequence[float]]) -> str:
    every = [each for phase in phases for each in phase]
    return f"p50 {percentile(every, 50)} s, p99 {percentile(every, 99)} s"
