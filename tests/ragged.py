"""Random ragged traffic of many sessions through an engine, each checked against an oracle.

Oracle is what a test knows of the model: it draws rows, and computes one sequence from its start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest

from lstmserve.engine import Engine
from lstmserve.rows import Rows
from traffic import Reply, open_session, submit, submit_block

SESSIONS = 200
LIMITS: Mapping[str, int] = {"session_pending_max": 64, "slice_rows_max": 16}


class Oracle(Protocol):
    """One model, without pool, slices and batches."""

    def draw(self, rng: np.random.Generator, length: int) -> Rows:
        """Random rows [T, ...] of the inputs."""
        ...

    def run(self, x: Rows) -> tuple[Rows, Mapping[str, npt.NDArray[Any]]]:
        """Rows [T, ...] from the initial state -> rows [T, ...] of the outputs, and the states
        [*shape] by name after them."""
        ...


@dataclass
class Life:
    """One session from open to close, as its client knows it."""

    row: int
    xs: list[Rows] = field(default_factory=list)
    replies: list[tuple[Reply, int, bool]] = field(default_factory=list)


class Traffic:
    """Random steps, blocks and closings of many sessions at once; it counts what it checked."""

    def __init__(self, engine: Engine, oracle: Oracle, seed: int) -> None:
        self._engine = engine
        self._oracle = oracle
        self._rng = np.random.default_rng(seed)
        self._opened = 0
        self.rows_checked = 0
        self.mismatches = 0

    async def run(self, rows: int) -> None:
        """Runs until about `rows` time steps were checked."""
        lives = [self._open() for _ in range(SESSIONS)]
        while self.rows_checked < rows:
            for _ in range(int(self._rng.integers(1, 30))):
                if self._rng.random() < 0.3:
                    self._block(lives)
                else:
                    self._step(lives[self._rng.integers(len(lives))])
            for _ in range(int(self._rng.integers(0, 6))):
                await asyncio.sleep(0)
            done = int(self._rng.integers(len(lives)))
            await self._check(lives[done])
            lives[done] = self._open()
        for life in lives:
            await self._check(life)

    def _open(self) -> Life:
        self._opened += 1
        return Life(open_session(self._engine, f"s{self._opened}"))

    def _x(self) -> Rows:
        kind = self._rng.random()
        length = 1 if kind < 0.5 else int(self._rng.integers(1, 12 if kind < 0.97 else 150))
        return self._oracle.draw(self._rng, length)

    def _step(self, life: Life) -> None:
        x, last_only = self._x(), bool(self._rng.integers(2))
        if len(life.replies) < 40:
            _, reply = submit(self._engine, life.row, x, last_only=last_only)
            life.replies.append((reply, -1, last_only))
            life.xs.append(x)

    def _block(self, lives: list[Life]) -> None:
        count = int(self._rng.integers(1, 40))
        chosen = [lives[i] for i in self._rng.choice(len(lives), count, replace=False)]
        chosen = [life for life in chosen if len(life.replies) < 40]
        if not chosen:
            return
        all_short = self._rng.random() < 0.5
        xs = [self._x()[:1] if all_short else self._x() for _ in chosen]
        last_only = bool(self._rng.integers(2))
        reply = submit_block(self._engine, [life.row for life in chosen], xs, last_only=last_only)
        for i, (life, x) in enumerate(zip(chosen, xs, strict=True)):
            life.replies.append((reply, i, last_only))
            life.xs.append(x)

    async def _check(self, life: Life) -> None:
        """Every reply and the final state against the whole sequence at once; then it closes."""
        outputs = [self._output(await reply, i) for reply, i, _ in life.replies]
        engine = self._engine
        if life.xs:
            y, states = self._oracle.run(np.concatenate(life.xs))
            found = engine.sessions.state(life.row)
            same = all(found[name][0].tobytes() == each.tobytes() for name, each in states.items())
            start = 0
            for x, actual, (_, _, last_only) in zip(life.xs, outputs, life.replies, strict=True):
                wanted = y[start : start + len(x)][-1 if last_only else 0 :]
                same = same and actual.tobytes() == wanted.tobytes()
                start += len(x)
            assert engine.table.step[life.row] == len(life.xs)
            self.mismatches += not same
            self.rows_checked += start
        key = engine.table.keys[life.row]
        assert key is not None
        engine.sessions.close(key, 0, engine.clock(), lambda step: None)

    def _output(self, ended: Any, i: int) -> Rows:
        if i < 0:
            output: Rows = ended.output()
            return output
        assert not ended.errors
        found: Rows = ended.output(i)
        return found


async def drive(
    engine: Engine,
    oracle: Oracle,
    seed: int,
    rows: int,
    plant: Callable[[Engine, pytest.MonkeyPatch], None] | None = None,
) -> Traffic:
    """Runs random traffic on a fresh engine with LIMITS, checks it, closes the engine, and checks
    its integrity."""
    print(f"seed {seed}, {engine.models[0].spec}")
    traffic = Traffic(engine, oracle, seed)
    running = asyncio.create_task(engine.run())
    with pytest.MonkeyPatch.context() as patch:
        if plant is not None:
            plant(engine, patch)
        checking = asyncio.create_task(traffic.run(rows))
        await asyncio.wait([running, checking], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            checking.cancel()
            await running  # raises the error that ended the engine
        await checking
    await engine.close(5)
    await running
    engine.check_integrity()
    return traffic
