"""The pool's graph of a model with a window: every output is that of the last W rows alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from lstmserve.config import Config
from lstmserve.engine import load_models
from lstmserve.engine.compute import selftest
from lstmserve.engine.compute.kernel import Kernel
from lstmserve.engine.compute.pool import INITIAL, RESERVED, Pool
from lstmserve.engine.compute.selftest import SelfTestFailed, check_kernel
from lstmserve.engine.model import SELF_TEST_SLOTS, spare_slots
from lstmserve.golden import Golden, excess
from lstmserve.graph import GraphWindowNetwork, LstmWindowNetwork
from lstmserve.graph.step_graph import OPSET_MIN
from lstmserve.head_layers import LayerNorm, Linear
from lstmserve.manifest import InvalidModelFolder, read_model
from lstmserve.rows import RowFormat, Rows
from lstmserve.spec import (
    KNOWN,
    MISSING,
    WINDOW_FILLS,
    InvalidSpec,
    LstmSpec,
    ModelSpec,
    TensorSpec,
    WindowFill,
    window_states,
)
from modelmaking import TINY, make_model, random_input, random_weights, window_golden, windows
from stepgraph import Step
from traffic import Reply, load_engine, open_session, start_engine, submit

LSTMS = {
    "two layers": TINY,
    "bidirectional": replace(TINY, bidirectional=True),
    "projected": replace(TINY, proj_size=2, input_norm=True, output_norm=True),
    "projected both ways": replace(TINY, proj_size=2, bidirectional=True),
    "tokens": LstmSpec(4, 6, num_embeddings=9, head=(Linear(3), "softmax")),
    "residual and start": LstmSpec(
        *(3, 6, 2, 0, True),
        head=(LayerNorm(), Linear(2), "softplus"),
        input_norm=True,
        residual=(2, 0),
        initial_state=True,
    ),
}
SIZES = (2, 5, 12)
INPUTS = (TensorSpec("x", (2, 3)), TensorSpec("gain"), TensorSpec("kind", (), "int64"))
OUTPUTS = (TensorSpec("score", (3,)), TensorSpec("best", (), "int64"))


def attention(window: int, fill: WindowFill) -> Step:
    """softmax(q K^T) over the window's rows, of three inputs, and the place of the best row."""
    nodes = """
x flat -> Reshape rows
gain axis2 -> Unsqueeze gains
rows gains -> Mul scaled
table kind -> Gather embedded
scaled embedded -> Concat+axis=2 all
all w -> MatMul keys
keys last -> Gather+axis=1 query
query axis2 -> Unsqueeze column
keys column -> MatMul likeness3
likeness3 axis2 -> Squeeze likeness
likeness -> Softmax+axis=1 weights
likeness -> ArgMax+axis=1+keepdims=0 best
weights axis1 -> Unsqueeze weights3
weights3 keys -> MatMul score3
score3 axis1 -> Squeeze score
"""
    rng = np.random.default_rng(0)
    constants = {
        "flat": np.array([0, 0, 6]),
        "axis1": np.array([1]),
        "axis2": np.array([2]),
        "last": np.array(-1),
        "table": rng.uniform(-1, 1, (4, 2)).astype(np.float32),
        "w": rng.uniform(-1, 1, (8, 3)).astype(np.float32),
    }
    states = window_states(INPUTS, window, fill)
    spec = ModelSpec(INPUTS, OUTPUTS, states, window=window, window_fill=fill)
    return Step(spec, nodes, constants)


def random_rows(spec: ModelSpec, *shape: int, seed: int = 1) -> dict[str, np.ndarray]:
    """The inputs by name, [*shape, ...]."""
    rng = np.random.default_rng(seed)
    found = {}
    for each in spec.inputs:
        if each.dtype == "int64":
            found[each.name] = rng.integers(0, 4, (*shape, *each.shape))
        else:
            found[each.name] = rng.standard_normal((*shape, *each.shape)).astype(np.float32)
    return found


class Stream:
    """Sessions of a windowed network, which step in any chunks."""

    def __init__(self, network: GraphWindowNetwork | LstmWindowNetwork, count: int) -> None:
        self.spec = network.spec
        self.pool = Pool(network.layout, 200)
        self.kernel = Kernel(network, self.pool, "cpu", 1)
        self.slots = np.full(count, INITIAL)

    def step(self, x: Rows, lengths: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The results [T, B, ...] of the next rows x [T, B, ...]."""
        size = x.shape[1]
        ends = np.full(size, len(x), np.int32) if lengths is None else lengths
        write = self.pool.take(size)
        y = self.kernel.run(np.ascontiguousarray(x), ends, self.slots, write)
        self.pool.give(self.slots)
        self.slots = write
        return RowFormat(self.spec.results).split(y)

    def restart(self) -> None:
        """New sessions."""
        self.pool.give(self.slots)
        self.slots = np.full(self.slots.size, INITIAL)


@pytest.mark.parametrize("fill", WINDOW_FILLS)
@pytest.mark.parametrize("window", SIZES)
@pytest.mark.parametrize("name", LSTMS)
def test_an_lstm_answers_for_its_last_rows(name: str, window: int, fill: WindowFill) -> None:
    """Every time step equals a whole run of its window in float64, within the parity gate, and is
    bit-equal in a batch, alone and in any chunks."""
    lstm = LSTMS[name]
    spec, weights = ModelSpec.of_lstm(lstm, window, fill), random_weights(lstm, 1)
    stream = Stream(LstmWindowNetwork(spec, weights), 4)
    count = 2 * window + 5
    tokens_or_x = random_input(lstm, (count, 4), 2)
    x = RowFormat(spec.inputs).pack({spec.inputs[0].name: tokens_or_x})
    found = stream.step(x)
    for b in range(4):
        y, lacks = windows(spec, weights, tokens_or_x[:, b])
        assert excess(found["y"][:, b], y, 0.0) <= 1
        if spec.waits:
            assert np.array_equal(found[MISSING][:, b], lacks)
    assert (MISSING in found) == spec.waits
    for cuts in ([1] * count, [3, 1, count - 4], [window, count - window]):
        stream.restart()
        starts = np.cumsum([0, *cuts])
        parts = [stream.step(x[a:b]) for a, b in pairwise(starts)]
        for key, whole in found.items():
            assert np.array_equal(np.concatenate([each[key] for each in parts]), whole)
    alone = Stream(LstmWindowNetwork(spec, weights), 1)
    for b in range(4):
        alone.restart()
        for key, each in alone.step(x[:, b : b + 1]).items():
            assert np.array_equal(each[:, 0], found[key][:, b])


def test_ragged_lengths_leave_each_row_its_own_window() -> None:
    """A session keeps the rows up to its own length, whatever the padding is."""
    spec, weights = ModelSpec.of_lstm(TINY, 6, "wait"), random_weights(TINY, 1)
    stream = Stream(LstmWindowNetwork(spec, weights), 3)
    x = random_input(TINY, (9, 3), 2)
    lengths = np.array([9, 4, 1], np.int32)
    stream.step(x, lengths)
    states = stream.pool.read(stream.slots)
    assert states[KNOWN].tolist() == [5, 4, 1]
    for b, length in enumerate(lengths):
        known = min(length, 5)
        assert np.array_equal(states["x.window"][b, 5 - known :], x[length - known : length, b])
        assert not states["x.window"][b, : 5 - known].any()


@pytest.mark.parametrize(("fill", "opset"), [("wait", 20), ("zeros", 20), ("wait", OPSET_MIN)])
def test_a_network_answers_for_its_last_rows(fill: WindowFill, opset: int) -> None:
    """A graph of a window, which looks at all of its rows, gives for every time step the bits of a
    plain onnxruntime session on that window, in any batch and chunks."""
    step = replace(attention(7, fill), opset=opset)
    spec = step.spec
    stream = Stream(step.window_network(), 5)
    named = random_rows(spec, 20, 5)
    x = RowFormat(spec.inputs).pack(named)
    found = stream.step(x)
    stream.restart()
    parts = [stream.step(x[:8]), stream.step(x[8:9]), stream.step(x[9:])]
    for key, whole in found.items():
        assert np.array_equal(np.concatenate([each[key] for each in parts]), whole)
    session = ort.InferenceSession(step.model().SerializeToString())
    for t in range(20):
        lacks = max(0, 6 - t)
        feed = {}
        for name, each in named.items():
            zeros = np.zeros((lacks, *each.shape[1:]), each.dtype)
            rows = np.concatenate([zeros, each[max(0, t - 6) : t + 1]])
            feed[name] = rows.swapaxes(0, 1)
        score, best = session.run(["score", "best"], feed)
        if spec.waits and lacks:
            assert not found["score"][t].any()
            assert not found["best"][t].any()
        else:
            assert np.array_equal(found["score"][t], score)
            assert np.array_equal(found["best"][t], best)
        if spec.waits:
            assert (found[MISSING][t] == lacks).all()


@pytest.mark.parametrize("known", [-(1 << 62), -1, 99, 1 << 62])
@pytest.mark.parametrize("fill", ["wait", "grow"])
def test_an_impossible_count_is_a_possible_one(fill: WindowFill, known: int) -> None:
    """A state that says any number of rows runs as the nearest number that there can be."""
    spec, weights = ModelSpec.of_lstm(TINY, 4, fill), random_weights(TINY, 1)
    stream = Stream(LstmWindowNetwork(spec, weights), 1)
    x = random_input(TINY, (6, 1), 2)
    stream.slots = stream.pool.take(1)
    rows = x[:3, 0][np.newaxis]
    stream.pool.write(stream.slots, {"x.window": rows, KNOWN: np.array([known])})
    found = stream.step(x[3:4])
    stream.slots = stream.pool.take(1)
    nearest = 0 if known < 0 else 3
    stream.pool.write(stream.slots, {"x.window": rows, KNOWN: np.array([nearest])})
    expected = stream.step(x[3:4])
    assert np.array_equal(found["y"], expected["y"])


def test_the_self_test_finds_rows_that_a_window_mixes() -> None:
    """A graph whose answer depends on the batch is refused, although no session waits for it."""
    step = attention(3, "wait")
    nodes = step.nodes.replace(
        "weights3 keys -> MatMul score3", "weights3 keys -> MatMul mixed"
    ) + ("mixed zero -> ReduceMean+keepdims=1 mean\nmixed mean -> Add score3\n")
    lines = nodes.strip().splitlines()
    lines = [each for each in lines if not each.startswith("score3")]
    lines.append("score3 axis1 -> Squeeze score")
    mixing = replace(
        step, nodes="\n".join(lines), constants={**step.constants, "zero": np.array([0])}
    )
    network = mixing.window_network()
    pool = Pool(network.layout, 100)
    rows = random_rows(step.spec, 2, 6)
    golden = Golden(
        rows, np.array([1, 1], np.int32), None, answers(step, rows), {}, torch_error=0.0
    )
    with pytest.raises(SelfTestFailed, match="mixes rows"):
        check_kernel(Kernel(network, pool, "cpu", 1), pool, {"one": golden})


def answers(step: Step, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Golden outputs of single rows, for which the window is not full."""
    count, length = rows["gain"].shape
    found: dict[str, np.ndarray] = {
        each.name: np.zeros((count, length, *each.shape)) for each in step.spec.outputs
    }
    found["best"] = found["best"].astype(np.int64)
    return found | {MISSING: np.full((count, length), step.spec.window - 1)}


@pytest.mark.parametrize("fill", WINDOW_FILLS)
def test_a_folder_with_a_window_is_read_and_proved(tmp_path: Path, fill: WindowFill) -> None:
    """The server reads the window from the manifest, replays the golden vectors, and has a
    fingerprint of the window's own."""
    make_model(tmp_path, name="plain")
    make_model(tmp_path, name="tiny", window=(5, fill))
    make_model(tmp_path, replace(TINY, bidirectional=True), name="both", window=(5, fill))
    models = {each.name: each for each in load_models(Config(models=tmp_path))}
    assert len({each.fingerprint for each in models.values()}) == 3
    spec = models["tiny"].spec
    assert (spec.window, spec.window_fill, spec.kind) == (5, fill, "lstm")
    assert models["both"].spec.is_streaming
    assert all(each.is_exact for each in models.values())
    assert spec.states[0].name == "x.window"


def test_golden_vectors_of_another_window_are_refused(tmp_path: Path) -> None:
    """A model whose golden vectors are those of a longer window is not served."""
    make_model(tmp_path, name="tiny", window=(5, "zeros"))
    files = read_model(tmp_path, "tiny", 1)
    spec = ModelSpec.of_lstm(TINY, 6, "zeros")
    network = LstmWindowNetwork(spec, random_weights(TINY, 0))
    pool = Pool(network.layout, 100)
    kernel = Kernel(network, pool, "cpu", 1)
    with pytest.raises(SelfTestFailed, match="golden"):
        check_kernel(kernel, pool, files.golden)


@pytest.mark.parametrize("fill", WINDOW_FILLS)
def test_the_self_test_reads_few_windows_at_once(
    tmp_path: Path, fill: WindowFill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server needs no more memory to prove a model with a long window than to serve it: runs of
    golden vectors are cut in time, and batches are small."""
    window, cells, runs = 12, 300, []
    make_model(tmp_path, name="tiny", window=(window, fill))
    monkeypatch.setattr(selftest, "CELLS_MAX", cells)
    run = Kernel.run

    def noted(self: Kernel, x: Rows, *arguments: Any) -> Rows:
        runs.append(x.shape[0] * x.shape[1] * window)
        return run(self, x, *arguments)

    monkeypatch.setattr(Kernel, "run", noted)
    (model,) = load_models(Config(models=tmp_path))
    assert model.is_exact
    assert cells / 2 < max(runs) <= cells


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((1, "wait"), "window is 1"),
        ((0, "wait"), "window is 0"),
        ((5, None), "window_fill is None"),
        ((5, "ones"), "window_fill is 'ones'"),
        ((1 << 17, "wait"), "window is 131072"),
        ((True, "wait"), "window is True"),
    ],
)
def test_impossible_windows_are_refused(values: tuple[int, WindowFill], reason: str) -> None:
    """No spec has an impossible window."""
    with pytest.raises(InvalidSpec, match=reason):
        ModelSpec.of_lstm(TINY, *values)


def test_a_network_has_a_whole_window() -> None:
    """Only an LSTM can read fewer rows than its window has."""
    states = window_states(INPUTS, 4, "grow")
    with pytest.raises(InvalidSpec, match="grow is for kind lstm"):
        ModelSpec(INPUTS, OUTPUTS, states, window=4, window_fill="grow")


def test_the_states_are_those_of_the_window() -> None:
    """A manifest whose states are not the window's is refused."""
    states = window_states(INPUTS, 5, "wait")
    with pytest.raises(InvalidSpec, match="window of 4 rows"):
        ModelSpec(INPUTS, OUTPUTS, states, window=4, window_fill="wait")


@pytest.mark.parametrize(
    ("window", "fill", "reason"),
    [
        ("1", '"wait"', "window is 1"),
        ("0", "null", "window is 0"),
        ("null", "null", "window is None"),
        ("5", "null", "window_fill is None"),
    ],
)
def test_a_manifest_with_an_impossible_window_is_refused(
    tmp_path: Path, window: str, fill: str, reason: str
) -> None:
    """A window in a manifest is checked as any other field; a format 3 without one is no model with
    a running state."""
    make_model(tmp_path, name="tiny", window=(5, "wait"))
    file = tmp_path / "tiny" / "1" / "manifest.json"
    text = file.read_text().replace('"window": 5', f'"window": {window}')
    file.write_text(text.replace('"window_fill": "wait"', f'"window_fill": {fill}'))
    with pytest.raises(InvalidModelFolder, match=reason):
        read_model(tmp_path, "tiny", 1)


def test_window_golden_has_rows_before_and_after_the_window() -> None:
    """The vectors prove both."""
    spec = ModelSpec.of_lstm(TINY, 5, "wait")
    case = window_golden(spec, random_weights(TINY, 0), 0)
    assert set(np.unique(case.outputs[MISSING])) == {0, 1, 2, 3, 4}


# The engine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", WINDOW_FILLS)
async def test_sessions_in_any_chunks_have_the_answers_of_their_windows(
    tmp_path: Path, fill: WindowFill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions that step in random chunks, many at once, get the bits of one whole run, and no run
    of the kernel reads more rows than a batch may have."""
    window, cells = 5, 60
    engine = start_engine(tmp_path, TINY, window=(window, fill), batch_cells_max=cells)
    spec, runs = engine.models[0].spec, []
    run = Kernel.run

    def noted(self: Kernel, x: Rows, *arguments: Any) -> Rows:
        runs.append(x.shape[0] * x.shape[1] * window)
        return run(self, x, *arguments)

    monkeypatch.setattr(Kernel, "run", noted)
    task = asyncio.create_task(engine.run())
    count, rng = 9, np.random.default_rng(3)
    x = random_input(TINY, (count, 40), 4)
    rows = [open_session(engine, f"s{i}") for i in range(count)]
    replies: list[list[Reply]] = [[] for _ in rows]
    starts = [0] * count
    while min(starts) < 40:
        for i, row in enumerate(rows):
            length = int(rng.integers(1, 16))
            if starts[i] < 40:
                part = x[i, starts[i] : starts[i] + length]
                replies[i].append(submit(engine, row, part)[1])
                starts[i] += length
    found = [np.concatenate([(await each).y for each in own]) for own in replies]
    await engine.close(5)
    await task
    engine.check_integrity()
    assert max(runs) <= cells
    assert cells - window < max(runs), "no batch was full"
    stream = Stream(LstmWindowNetwork(spec, random_weights(TINY, 0)), 1)
    for i, results in enumerate(found):
        stream.restart()
        whole = stream.step(x[i][:, np.newaxis])
        for key, each in RowFormat(spec.results).split(results).items():
            assert np.array_equal(each, whole[key][:, 0])


def test_a_batch_has_room_for_one_window_at_least() -> None:
    """A window that is longer than a batch may be runs alone."""
    limits = Config().for_cells(100_000)
    assert (limits.batch_cells_max, limits.slice_rows_max) == (1, 1)
    assert (limits.batch_sessions_max, limits.long_steps_max) == (1, 2)
    limits = Config().for_cells(30)
    assert (limits.batch_cells_max, limits.slice_rows_max) == (34, 1)
    assert (limits.batch_sessions_max, limits.long_steps_max) == (34, 68)
    assert Config().for_cells(1) == Config()


def test_a_pool_keeps_as_many_spare_slots_as_its_batches_need(tmp_path: Path) -> None:
    """A long window takes room for few batches: its states are large, and its batches small."""
    make_model(tmp_path, name="tiny", window=(1440, "wait"))
    slot_bytes = 4 * 1439 * TINY.input_size + 8
    spare = spare_slots(Config(), 1440)
    assert spare == SELF_TEST_SLOTS
    engine = load_engine(tmp_path, pool_bytes=(spare + RESERVED + 10) * slot_bytes)
    assert engine.models[0].sessions_max == 10
    for i in range(10):
        open_session(engine, f"s{i}")
    engine.check_integrity()
