"""Modules of random architecture, exported as they are and streamed: each row is that of the
module's own forward(), and in any traffic that of the plain step graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn

from architectures import Architecture
from lstmserve.config import Config
from lstmserve.engine.loading import load_models
from lstmserve.engine.model import Model
from lstmserve.golden import excess
from lstmserve.manifest import MODEL, read_model
from lstmserve.rows import RowFormat, Rows
from lstmserve.spec import INITIAL
from lstmserve_export import export
from ragged import LIMITS, drive
from randomnets import VOCABULARY, architecture
from stepgraph import Array, StepLoop
from traffic import load_engine

# torch says once that oneDNN has no projections.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")
SHORT, LONG, MILLION = (585, 582, 590), range(580, 600), (582, 590, 593)
SEQUENCES, LENGTH, CHUNK_MAX = 210, 32, 12


@dataclass(frozen=True, slots=True)
class Case:
    """A module, and the folder `models` in which it is m:1."""

    made: Architecture
    net: nn.Module
    models: Path

    def load(self) -> Model:
        """m:1 in an engine's kernel and pool."""
        (model,) = load_models(Config(models=self.models, pool_bytes=16 << 20))
        return model


Exports = Callable[[int], Case]


def export_module(seed: int, folder: Path) -> Case:
    """Exports the module of a seed as it is."""
    made = architecture(seed)
    print(made)
    net = made.build(folder)
    names = made.names if "tuple" in made.choices else ()
    export(net, example=made.example(), name="m", models=folder / "models", output_names=names)
    return Case(made, net, folder / "models")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """The case of a seed, exported once."""
    return cache(lambda seed: export_module(seed, tmp_path_factory.mktemp(f"seed{seed}")))


def stream(model: Model, x: Rows, rng: np.random.Generator) -> Rows:
    """Rows [S, T, ...] of S new sessions -> rows [S, T, ...], in ragged batches of chunks."""
    assert model.kernel is not None
    assert model.pool is not None
    count, length = x.shape[:2]
    y = model.outputs.unknown(count, length)
    at, slots = np.zeros(count, np.int64), np.zeros(count, np.int64)
    while (at < length).any():
        left = np.flatnonzero(at < length)
        chosen = rng.permutation(left)[: rng.integers(1, 65)]
        most = 1 if rng.random() < 0.5 else CHUNK_MAX
        lengths = np.minimum(rng.integers(1, most + 1, len(chosen)), length - at[chosen])
        batch = np.zeros((lengths.max(), *x[chosen, 0].shape), x.dtype)
        for i, (session, rows) in enumerate(zip(chosen, lengths, strict=True)):
            batch[:rows, i] = x[session, at[session] : at[session] + rows]
        before, after = slots[chosen], model.pool.take(len(chosen))
        found = model.kernel.run(batch, lengths, before, after)
        for i, (session, rows) in enumerate(zip(chosen, lengths, strict=True)):
            y[session, at[session] : at[session] + rows] = found[:rows, i]
        slots[chosen] = after
        at[chosen] += lengths
        model.pool.give(before)
    model.pool.give(slots)
    return y


def check(case: Case, net: nn.Module) -> float:
    """Streams SEQUENCES x LENGTH rows. Returns the largest error against the net's own forward(),
    in units of the allowed one."""
    made, model, rng = case.made, case.load(), np.random.default_rng(case.made.seed + 1)
    inputs = made.draw(rng, SEQUENCES, LENGTH)
    if model.spec.kind == "network":
        assert [each.name for each in model.spec.inputs] == list(inputs)
    given = dict(zip([each.name for each in model.spec.inputs], inputs.values(), strict=True))
    found = model.outputs.split(stream(model, model.inputs.pack(given), rng))
    if "tensor" not in made.choices:
        assert list(found) == list(made.names)
    results, exact = made.results(net, inputs), made.exact_results(net, inputs)
    worst = 0.0
    for name, each in zip(made.names, found.values(), strict=True):
        torch_error = float(np.abs(results[name] - exact[name]).max())
        worst = max(worst, excess(each, exact[name], torch_error))
    print(f"seed {made.seed}: {model.spec.kind}, exact: {model.is_exact}, {worst:.2g} of the gate")
    return worst


class StepOracle:
    """The exported step graph in a plain onnxruntime, as ragged.Oracle."""

    def __init__(self, case: Case) -> None:
        content = (case.models / "m" / "1" / MODEL).read_bytes()
        spec = read_model(case.models, "m", 1).manifest.spec
        assert spec.kind == "network"
        graph = onnx.load_model_from_string(content).graph
        given = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        initial = {
            each.name: given.get(each.name + INITIAL, np.zeros(each.shape, each.dtype))
            for each in spec.states
        }
        self._made, self._inputs = case.made, RowFormat(spec.inputs)
        self._loop = StepLoop(content, spec, initial)

    def draw(self, rng: np.random.Generator, length: int) -> Rows:
        """Rows [T, ...]."""
        drawn = self._made.draw(rng, 1, length)
        return self._inputs.pack({name: each[0] for name, each in drawn.items()})

    def run(self, x: Rows) -> tuple[Rows, dict[str, Array]]:
        """Rows [T, ...] -> rows [T, ...], and the states after them."""
        return self._loop.run(x)


async def drive_rows(case: Case, rows: int) -> None:
    """Random traffic of `rows` rows, each of which has the bits of the plain step graph."""
    engine = load_engine(case.models, **LIMITS)
    assert engine.models[0].is_exact
    traffic = await drive(engine, StepOracle(case), case.made.seed, rows)
    print(f"seed {case.made.seed}: {traffic.rows_checked} rows, {traffic.mismatches} mismatches")
    assert traffic.mismatches == 0
    assert traffic.rows_checked >= rows


@pytest.mark.parametrize("seed", SHORT)
def test_a_module_streams_as_forward(seed: int, exports: Exports) -> None:
    """Thousands of rows in ragged batches are those of the module's own forward()."""
    case = exports(seed)
    assert check(case, case.net) <= 1


def test_the_gate_finds_a_wrong_weight(exports: Exports) -> None:
    """A module that differs in a single weight of a recurrent layer is beyond the gate."""
    case = exports(SHORT[0])
    other = copy.deepcopy(case.net)
    name, weight = next((n, w) for n, w in other.named_parameters() if "_hh" in n)
    print(name)
    weight.data[0, 0] += 0.05
    assert check(case, other) > 1


async def test_every_bit_is_the_step_graphs(exports: Exports) -> None:
    """Ragged rows in random batches, chunks and lives have the bits of the plain step graph."""
    await drive_rows(exports(SHORT[0]), 2_000)


def test_the_long_form_draws_every_choice() -> None:
    """The long form exports everything that the generator knows."""
    assert set().union(*(architecture(seed).choices for seed in LONG)) == VOCABULARY


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", LONG)
def test_twenty_modules(seed: int, exports: Exports) -> None:
    """The long form: twenty modules."""
    case = exports(seed)
    assert check(case, case.net) <= 1


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", MILLION)
async def test_a_million_rows(seed: int, exports: Exports) -> None:
    """The long form: a million ragged rows over three networks."""
    await drive_rows(exports(seed), 1_000_000 // len(MILLION) + 1)
