"""The wall clock of a server jumps, far beyond every session's ttl and back: no session ends by it.

The first NTP sync of a machine without a hardware clock does that. New sessions are opened at every
place of the clock, because opening sweeps what has expired, and the server is killed between jumps.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from faking import WallClock
from lstmserve.wire.v1 import lstm_pb2 as wire
from soak.calls import Calls
from soak.conversation import Conversation
from soak.crowd import Mode
from soak.findings import Violations, add
from soak.fleet import Fleet, fleet_of
from soak.timing import pause

DAY_S = 86_400
TTL_S = 60
PLACES_S = (DAY_S, 0, 3650 * DAY_S, -3650 * DAY_S, -TTL_S, TTL_S + 30)  # beside the true time
NEW = 6  # sessions opened at each place
LOOK_S, LOOKS_MAX = 0.1, 300
JUMP = "wall clock moved: no session ends by it"


@dataclass(kw_only=True)
class Found:
    """What one run found."""

    mode: Mode
    jumps: int = 0
    told: int = 0
    kills: int = 0
    opened: int = 0
    steps: int = 0
    loads: float = 0
    expired: float = 0
    refusals: dict[str, int] = field(default_factory=dict)
    violations: Violations = field(default_factory=Violations)

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        assert self.jumps == self.told > 0, (self.jumps, self.told)
        assert self.kills > 0
        assert self.loads > 0, "the store never brought a session back"
        assert self.expired == 0
        assert self.steps > self.opened
        assert self.refusals == {}
        assert self.violations == Violations(), self.violations

    def figures(self) -> str:
        """The figures in one line, for people."""
        found = self.violations
        return (
            f"{self.mode}: {self.jumps} jumps of up to 20 years, {self.told} logged, "
            f"{self.kills} kills; {self.opened} sessions with a ttl of {TTL_S} s, {self.steps} "
            f"steps: sessions lost {len(found.unexpected)}, expired {self.expired:.0f}, steps lost "
            f"{found.lost}, doubled {found.doubled}, wrong {found.wrong}; {self.loads:.0f} loads, "
            f"attempts refused {self.refusals}"
        )


@dataclass
class Both:
    """What the runs of both store modes found."""

    runs: list[Found]

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        for each in self.runs:
            each.check()

    def figures(self) -> str:
        """The figures of both modes in one line, for people."""
        return "; ".join(each.figures() for each in self.runs)


def run_both(folder: Path, *, jumps: int, sessions: int) -> Both:
    """Runs both store modes, with `jumps` jumps each."""
    modes: tuple[Mode, ...] = ("through", "behind")
    return Both([run(folder / mode, mode, jumps=jumps, sessions=sessions) for mode in modes])


def run(folder: Path, mode: Mode, *, jumps: int, sessions: int) -> Found:
    """Runs one server with a `file:` store, and kills it after every second jump."""
    found = Found(mode=mode)
    folder.mkdir(exist_ok=True)
    clock = WallClock(folder)
    flags = ("--store", f"file:{folder / 'store'}", "--store-mode", mode, "--behind-s-max", "0.2")
    limits = ("--session-ttl-s", str(TTL_S))
    with fleet_of(folder / "models", 1, *flags, *limits, command=clock.command) as fleet:
        asyncio.run(_run(fleet, found, clock, jumps, sessions))
    return found


async def _run(fleet: Fleet, found: Found, clock: WallClock, jumps: int, sessions: int) -> None:
    async with Calls() as calls:
        proof = _Proof(fleet, found, calls)
        await proof.step_all(new=sessions)
        for jump in range(jumps):
            clock.move(PLACES_S[jump % len(PLACES_S)])
            await proof.until_told()
            found.jumps += 1
            await proof.step_all(new=NEW)
            if jump % 2:
                await proof.restart()
                await proof.step_all(new=NEW)
        await proof.end()


class _Proof:
    def __init__(self, fleet: Fleet, found: Found, calls: Calls) -> None:
        (self._pod,) = fleet.pods
        self._fleet, self._found, self._calls = fleet, found, calls
        self._talks: list[Conversation] = []
        self._rng = np.random.default_rng(0)
        self._told = 0  # jumps that this process has logged

    async def step_all(self, new: int) -> None:
        """Steps every session, after it has opened `new` ones; opening sweeps what has expired."""
        for _ in range(new):
            talk = Conversation(self._fleet, self._calls, f"s{len(self._talks)}")
            self._talks.append(talk)
            await talk.open()
        for talk in self._talks:
            await talk.step(self._rng)

    async def until_told(self) -> None:
        """Waits until the log has the jump."""
        for _ in range(LOOKS_MAX):
            if len(self._pod.serving.events(JUMP)) > self._told:
                break
            await pause(LOOK_S)
        self._told += 1

    async def restart(self) -> None:
        """Kills the server with kill -9 when its store has every step, and starts it again."""
        await self._until_stored()
        self._count()
        await self._pod.end(signal.SIGKILL)
        await self._pod.start()
        self._told = 0
        self._found.kills += 1

    async def end(self) -> None:
        """Compares every session with the oracle, and reads the counters."""
        await self._until_stored()
        self._count()
        found = self._found
        for talk in self._talks:
            await talk.verify()
            add(found.violations, talk.violations)
            found.steps += len(talk.inputs)
        found.opened = len(self._talks)
        found.refusals = dict(self._calls.refusals)

    async def _until_stored(self) -> None:
        """Waits until the server reports every step as stored."""
        for talk in self._talks:
            request = wire.GetSessionRequest(session_id=talk.name)
            for _ in range(LOOKS_MAX):
                reply = await self._calls.call(
                    self._pod.serving, "GetSession", request, wire.GetSessionResponse
                )
                if reply.session.durable_step == len(talk.inputs):
                    break
                await pause(LOOK_S)
            else:
                raise AssertionError(f"{talk.name} is not stored: {reply.session}")

    def _count(self) -> None:
        """Adds the counters of this process."""
        serving, found = self._pod.serving, self._found
        found.told += len(serving.events(JUMP))
        found.loads += serving.metric("lstm_sessions_opened_total", source="load")
        found.expired += serving.metric("lstm_sessions_closed_total", reason="expired")
