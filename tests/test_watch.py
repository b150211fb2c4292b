"""The checks that the server makes every second, and numbers that rise though a clock goes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from lstmserve.engine.clock import Now
from lstmserve.server.observe.measured_store import MeasuredStore
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.observe.watch import Watch
from lstmserve.store import (
    LoadOutcome,
    StoreRefused,
    StoreTimeout,
    StoreUnavailable,
    Write,
    WriteOutcome,
    Written,
)
from wire import serving

S = 1_000_000_000


class Looked:
    """A store whose check raises what a test sets."""

    def __init__(self) -> None:
        self.trouble: BaseException | None = None
        self.looks = 0

    async def check(self) -> str:
        """Raises what the test has set."""
        self.looks += 1
        if self.trouble is not None:
            raise self.trouble
        return ""

    def spare(self, is_held: Callable[[str], bool]) -> None:
        """Does nothing."""

    async def load(self, keys: Sequence[str]) -> list[LoadOutcome]:
        """Loads nothing."""
        return [None for _ in keys]

    async def put(self, writes: Sequence[Write]) -> list[WriteOutcome]:
        """Writes everything."""
        return [Written.OK for _ in writes]

    async def quarantine(self, key: str, content: bytes) -> None:
        """Does nothing."""

    async def close(self) -> None:
        """Does nothing."""


class Clock:
    """Both clocks, as a test sets them."""

    def __init__(self) -> None:
        self.now = Now(0, 1_700_000_000 * S)

    def __call__(self) -> Now:
        """The time."""
        return self.now

    def go(self, s: float, moved_s: float = 0) -> None:
        """Lets time pass, and moves the wall clock."""
        passed = round(s * S)
        wall_ns = self.now.wall_ns + passed + round(moved_s * S)
        self.now = Now(self.now.monotonic_ns + passed, wall_ns)


async def over() -> None:
    """Notes that it was called."""


async def test_a_jump_is_told_once() -> None:
    """Each jump is logged once with its size, and a clock that is slewed is not."""
    clock = Clock()
    watch = Watch(None, [], over, over, clock)
    with capture_logs() as lines:
        for moved_s in (0, 0.5, 86_400, 0, -86_400.5, 0):
            clock.go(1, moved_s)
            await watch.look()
    assert [line["by_s"] for line in lines] == [86_400, -86_400.5]


@pytest.mark.parametrize(
    "trouble",
    [StoreUnavailable("away"), StoreTimeout("slow"), StoreRefused("wrong"), ValueError("bug")],
    ids=lambda error: type(error).__name__,
)
async def test_a_store_that_is_away_is_looked_at_again(trouble: Exception) -> None:
    """Only a final error ends readiness, for good and once, with its cause as a remark."""
    store, remarks, told, there = Looked(), ["model refused: x"], list[int](), list[int]()

    async def on_over() -> None:
        told.append(1)

    async def on_there() -> None:
        there.append(store.looks)

    measured = MeasuredStore(store, Metrics(CollectorRegistry()))
    watch = Watch(measured, remarks, on_there, on_over)
    with capture_logs():
        for each in (trouble, None, trouble):
            store.trouble = each
            await watch.look()
            assert not watch.is_over
            assert len(remarks) == (1 if each is None else 2)
    assert there == [2]
    remarks.pop()
    store.trouble = StoreTimeout("gone", cause="DIR/x was removed", is_final=True)
    for _ in range(3):
        await watch.look()
        assert watch.is_over
    assert store.looks == 4
    assert told == [1]
    assert remarks == ["model refused: x", "store lost until a restart: DIR/x was removed"]


async def test_stamps_never_go_back(tmp_path: Path) -> None:
    """Incarnations rise even if the wall clock goes back by years, or stands still."""
    async with serving(tmp_path) as wire:
        sessions = wire.engine.sessions
        walls = [5 * S, 5 * S, 2 * S, 6 * S, 1 * S]
        stamps = [sessions.next_incarnation(Now(0, (1 << 52) * 1000 + wall)) for wall in walls]
    assert stamps == sorted(set(stamps))
