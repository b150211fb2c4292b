"""The engine compared with its oracle: in any batches and chunks a session has its own bits."""

from __future__ import annotations

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
from lstmserve.head_layers import Elu, LayerNorm, Linear
from lstmserve.spec import LstmSpec
from modelmaking import random_input
from ragged import LIMITS, Traffic, drive
from traffic import Oracle, start_engine

SPECS = {
    "one layer": LstmSpec(3, 8, head=(Linear(2),)),
    "two layers, activations": LstmSpec(
        *(4, 16, 2),
        head=("relu", Linear(7), "tanh", Linear(3), "softmax"),
        input_norm=True,
        residual=(3, 0, 2),
    ),
    "three layers, no bias": LstmSpec(2, 12, 3, bias=False, head=(Linear(2, bias=False),)),
    "projection": LstmSpec(
        *(5, 16, 2),
        proj_size=6,
        head=(LayerNorm(), Linear(4), Elu()),
        output_norm=True,
        initial_state=True,
    ),
    "embedding": LstmSpec(6, 10, num_embeddings=27, head=(Linear(27),)),
    "no head": LstmSpec(3, 33),
}


class LstmOracle:
    """traffic.Oracle, as ragged.Oracle."""

    def __init__(self, folder: Path, spec: LstmSpec) -> None:
        self._spec = spec
        self._plain = Oracle(folder, spec)

    def draw(self, rng: np.random.Generator, length: int) -> npt.NDArray[Any]:
        """x [T, I], or tokens [T]."""
        return random_input(self._spec, (length,), int(rng.integers(1 << 30)))

    def run(self, x: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]]]:
        """x [T, I] or tokens [T] -> y [T, O], and h and c."""
        y, h, c = self._plain.run(x)
        return y, {"h": h, "c": c}


async def drive_lstm(
    folder: Path,
    spec: LstmSpec,
    seed: int,
    rows: int,
    plant: Callable[[Engine, pytest.MonkeyPatch], None] | None = None,
) -> Traffic:
    """Random traffic on a model of this spec."""
    engine = start_engine(folder, spec, seed, **LIMITS)
    return await drive(engine, LstmOracle(folder / "m" / "1", spec), seed, rows, plant)


@pytest.mark.parametrize("name", SPECS)
async def test_every_bit_is_the_oracles(name: str, tmp_path: Path) -> None:
    """Thousands of ragged rows in random batches, chunks and lives have the oracle's bits."""
    traffic = await drive_lstm(tmp_path, SPECS[name], seed=len(name), rows=8_000)
    assert traffic.mismatches == 0
    assert traffic.rows_checked >= 8_000


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SPECS)
async def test_a_million_rows(name: str, tmp_path: Path) -> None:
    """The long form: a million rows over the six kinds of model."""
    rows = 1_000_000 // len(SPECS) + 1
    traffic = await drive_lstm(tmp_path, SPECS[name], seed=1000 + len(name), rows=rows)
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
    """Exchanges the states of `a` and `b` when they are written."""
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
    """Replies are views of the buffer that the next run overwrites."""
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
        traffic = await drive_lstm(tmp_path, spec, seed=7, rows=3_000, plant=plant)
    except AssertionError:
        return
    assert traffic.mismatches > 0
