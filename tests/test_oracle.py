"""The engine held to its oracle: whatever the batches and chunks, a session has its own bits."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lstmserve.engine import Engine
from lstmserve.engine.compute.kernel import Kernel, ShapeBinding
from lstmserve.engine.compute.pool import Pool
from lstmserve.engine.scheduling.queues import ReadyQueues
from lstmserve.graph.forms import NEXT_SLOTS
from lstmserve.spec import Linear, LstmSpec
from modelmaking import random_input
from traffic import Oracle, Reply, open_session, start_engine, submit, submit_block

SPECS = {
    "one layer": LstmSpec(3, 8, head=(Linear(2),)),
    "two layers, activations": LstmSpec(
        4, 16, 2, head=("relu", Linear(7), "tanh", Linear(3), "softmax"), input_norm=True
    ),
    "three layers, no bias": LstmSpec(2, 12, 3, bias=False, head=(Linear(2, bias=False),)),
    "projection": LstmSpec(5, 16, 2, proj_size=6, head=(Linear(4),), output_norm=True),
    "embedding": LstmSpec(6, 10, num_embeddings=27, head=(Linear(27),)),
    "no head": LstmSpec(3, 33),
}
SESSIONS = 200


@dataclasses.dataclass
class Life:
    """One session from open to close, as its client knows it."""

    row: int
    xs: list[npt.NDArray[Any]] = dataclasses.field(default_factory=list)
    replies: list[tuple[Reply, int, bool]] = dataclasses.field(default_factory=list)


class Traffic:
    """Random steps, blocks and closings of many sessions at once; counts what it checked."""

    def __init__(self, engine: Engine, oracle: Oracle, seed: int) -> None:
        self._engine = engine
        self._oracle = oracle
        self._rng = np.random.default_rng(seed)
        spec = engine.models[0].spec.lstm
        assert spec is not None
        self._spec = spec
        self._opened = 0
        self.rows_checked = 0
        self.mismatches = 0

    async def run(self, rows: int) -> None:
        """Until about `rows` time steps were checked."""
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

    def _x(self) -> npt.NDArray[Any]:
        kind = self._rng.random()
        length = 1 if kind < 0.5 else int(self._rng.integers(1, 12 if kind < 0.97 else 150))
        return random_input(self._spec, (length,), int(self._rng.integers(1 << 30)))

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
            y, hn, cn = self._oracle.run(np.concatenate(life.xs))
            state = engine.sessions.state(life.row)
            same = np.array_equal(state["h"][0], hn) and np.array_equal(state["c"][0], cn)
            start = 0
            for x, actual, (_, _, last_only) in zip(life.xs, outputs, life.replies, strict=True):
                wanted = y[start : start + len(x)][-1 if last_only else 0 :]
                same = same and np.array_equal(actual, wanted)
                start += len(x)
            assert engine.table.step[life.row] == len(life.xs)
            self.mismatches += not same
            self.rows_checked += start
        key = engine.table.keys[life.row]
        assert key is not None
        engine.sessions.close(key, 0, engine.clock(), lambda step: None)

    def _output(self, ended: Any, i: int) -> npt.NDArray[np.float32]:
        if i < 0:
            output: npt.NDArray[np.float32] = ended.output()
            return output
        assert not ended.errors
        found: npt.NDArray[np.float32] = ended.output(i)
        return found


async def drive(
    folder: Path,
    spec: LstmSpec,
    seed: int,
    rows: int,
    plant: Callable[[Engine, pytest.MonkeyPatch], None] | None = None,
) -> Traffic:
    """Random traffic on a fresh engine until it is checked, and the engine whole afterwards."""
    print(f"seed {seed}, {spec}")
    engine = start_engine(folder, spec, seed, session_pending_max=64, slice_rows_max=16)
    traffic = Traffic(engine, Oracle(folder / "m" / "1", spec), seed)
    running = asyncio.create_task(engine.run())
    with pytest.MonkeyPatch.context() as patch:
        if plant is not None:
            plant(engine, patch)
        checking = asyncio.create_task(traffic.run(rows))
        await asyncio.wait([running, checking], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            checking.cancel()
            await running  # raises what the engine died of
        await checking
    await engine.close(5)
    await running
    engine.check_integrity()
    return traffic


@pytest.mark.parametrize("name", SPECS)
async def test_every_bit_is_the_oracles(name: str, tmp_path: Path) -> None:
    """Thousands of ragged rows in random batches, chunks and lives have the oracle's bits."""
    traffic = await drive(tmp_path, SPECS[name], seed=len(name), rows=8_000)
    assert traffic.mismatches == 0
    assert traffic.rows_checked >= 8_000


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SPECS)
async def test_a_million_rows(name: str, tmp_path: Path) -> None:
    """The long form: a million rows over the six kinds of model."""
    rows = 1_000_000 // len(SPECS) + 1
    traffic = await drive(tmp_path, SPECS[name], seed=1000 + len(name), rows=rows)
    print(f"{name}: {traffic.rows_checked} rows, {traffic.mismatches} mismatches")
    assert traffic.mismatches == 0


def _arguments(
    engine: Engine, patch: pytest.MonkeyPatch, change: Callable[..., tuple[Any, ...]]
) -> None:
    kernel = engine.models[0].kernel
    assert kernel is not None
    run = kernel.run
    patch.setattr(type(kernel), "run", lambda self, *arguments: run(*change(*arguments)))


def _slot_off_by_one(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    _arguments(engine, patch, lambda x, n, read, write: (x, n, np.maximum(read - 1, 0), write))


def _length_off_by_one(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    _arguments(engine, patch, lambda x, n, read, write: (x, np.maximum(n - 1, 1), read, write))


def _swap(patch: pytest.MonkeyPatch, a: str, b: str) -> None:
    """The state of `a` is written where that of `b` belongs, and the other way round."""
    make = ShapeBinding.__init__

    def crossed(self: ShapeBinding, session: Any, pool: Pool, *arguments: Any) -> None:
        make(self, session, pool, *arguments)
        for name, other in ((a, b), (b, a)):
            self.io.bind_ortvalue_output(name + NEXT_SLOTS, pool.tensors[other])

    patch.setattr(ShapeBinding, "__init__", crossed)


def _layers_swapped(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    _swap(patch, "h.0", "h.1")


def _h_and_c_swapped(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    _swap(patch, "h.0", "c.0")


def _scratch_reused_too_early(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    keep = ReadyQueues.keep

    def give_back(self: ReadyQueues, chunk: Any, slots: Any) -> None:
        keep(self, chunk, slots)
        self._pool.give(slots)

    patch.setattr(ReadyQueues, "keep", give_back)


def _y_not_copied(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    """Replies are views of the buffer that the next run writes to."""
    kernel = engine.models[0].kernel
    assert kernel is not None
    run = kernel.run

    def view(self: Kernel, *arguments: Any) -> Any:
        run(*arguments)
        assert self._last is not None
        return self._last.y

    patch.setattr(Kernel, "run", view)


@pytest.mark.parametrize(
    "plant",
    [
        _slot_off_by_one,
        _length_off_by_one,
        _layers_swapped,
        _h_and_c_swapped,
        _scratch_reused_too_early,
        _y_not_copied,
    ],
)
async def test_a_planted_fault_is_found(
    plant: Callable[[Engine, pytest.MonkeyPatch], None], tmp_path: Path
) -> None:
    """Each fault that a first version tends to have gives wrong bits or stops the engine."""
    spec = SPECS["two layers, activations"]
    try:
        traffic = await drive(tmp_path, spec, seed=7, rows=3_000, plant=plant)
    except AssertionError:
        return
    assert traffic.mismatches > 0
