"""Imported files answer as they do in plain onnxruntime, whatever the order of their axes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import parser

from lstmserve.config import Config
from lstmserve.engine.loading import load_models
from lstmserve.golden import Golden
from lstmserve.manifest import Manifest, read_model
from lstmserve_export.onnx_file import importer
from lstmserve_export.onnx_file.graph.build import _Build
from lstmserve_export.onnx_file.graph.loops import loop_notes
from lstmserve_export.onnx_file.importer import import_onnx
from lstmserve_export.onnx_file.layout import batch_search
from lstmserve_export.onnx_file.layout.probe import Probed, probe
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.refusal import Refused
from lstmserve_export.streaming import Stream
from onnxfiles import FileOracle, model_of
from placedfiles import DTYPES, ROWS, PlacedFile, placed_file

Array = npt.NDArray[Any]
SEEDS = range(24)


def imported(file: PlacedFile, folder: Path, **flags: Any) -> Manifest:
    """The manifest of the file as a model `placed` in folder/models."""
    path = folder / "placed.onnx"
    path.write_bytes(file.content)
    request = Request(path, "placed", states=file.pairs, models=folder / "models", **flags)
    return import_onnx(request).manifest


@pytest.mark.parametrize("seed", SEEDS)
def test_any_order_of_axes_gives_the_bits_of_the_file(seed: int, tmp_path: Path) -> None:
    """Seven sessions in random chunks of a batch have the outputs and states that plain onnxruntime
    gives each of them alone, step by step."""
    file = placed_file(seed)
    manifest = imported(file, tmp_path)
    assert manifest.parity["is_exact"]
    rng = np.random.default_rng(seed)
    count, steps = 7, 12
    x = rng.standard_normal((count, steps, *ROWS["x"])).astype(np.float32)
    lengths = rng.integers(1, steps + 1, count).astype(np.int32)
    lengths[0] = steps
    stream = Stream(read_model(tmp_path / "models", "placed", 1).network)
    states = {
        "h": rng.standard_normal((count, *ROWS["h"])).astype(np.float32),
        "ticks": rng.integers(0, 9, count),
        "loud": rng.random(count) < 0.5,
    }
    shapes = {each.name: (each.shape, each.dtype) for each in stream.spec.states}
    initial = {
        name: np.stack([_placed(file.axes[name], row).reshape(shape) for row in states[name]])
        for name, (shape, _) in shapes.items()
    }
    assert {name: dtype for name, (_, dtype) in shapes.items()} == {n: DTYPES[n] for n in states}
    given = x.reshape(count, steps, *stream.spec.inputs[0].shape)
    case = Golden({"x": given}, lengths, initial, {}, {}, 0.0)
    cuts = np.flatnonzero(rng.random(steps - 1) < 0.4) + 1
    found, after = stream.answers(case, [0, *map(int, cuts), steps])
    oracle = FileOracle(file.content, dict(pair.split(":") for pair in file.pairs))
    for row in range(count):
        now = {n: _placed(file.axes[n], each[row]) for n, each in states.items()}
        for step in range(lengths[row]):
            answer, now = oracle.step(now, x=_placed(file.axes["x"], x[row, step]))
            wanted = _row(file.axes["y"], answer["y"])
            assert found["y"][row, step].tobytes() == wanted.tobytes(), (seed, row, step)
        for name, each in now.items():
            assert after[name][row].tobytes() == each.tobytes(), (seed, row, name)


def test_rounding_that_only_an_experiment_saw_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is not exact if a batch of the experiments on axes changed an answer, although no row
    of the proof shows that; a server that loads it says so, too."""

    def rounded(*arguments: Any) -> Probed:
        found = probe(*arguments)
        return replace(found, layout=replace(found.layout, rounding=1e-6))

    monkeypatch.setattr(importer, "probe", rounded)
    file = next(each for each in map(placed_file, SEEDS) if each.is_batched)
    parity = imported(file, tmp_path).parity
    assert not parity["is_exact"]
    assert 1e-8 < parity["difference"] < 1e-4
    (model,) = load_models(Config(models=tmp_path / "models", pool_bytes=1 << 20))
    assert model.difference == parity["difference"]
    assert not model.is_exact


def test_a_state_that_the_served_graph_leaves_wrong_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault in one state of the served graph ends the import, which writes nothing."""
    original = _Build._leave

    def leave(self: _Build, g: Any, port: Any, name: str) -> str:
        if not name.endswith("ticks.next"):
            return original(self, g, port, name)
        original(self, g, port, f"right/{name}")
        return str(g.add("Abs", [name.removesuffix(".next")], name))

    monkeypatch.setattr(_Build, "_leave", leave)
    file = next(each for each in map(placed_file, SEEDS) if each.is_batched)
    with pytest.raises(Refused, match="differs at time step 2 of the random rows"):
        imported(file, tmp_path)
    assert not (tmp_path / "models").exists()


HALF = """<ir_version: 8, opset_import: ["": 17]>
half (float16[B, T, 3] x, float16[1, B, 3] h) => (float16[B, T, 3] y, float16[1, B, 3] h_out)
{
    turned = Transpose <perm = [1, 0, 2]> (x)
    rows, h_out = GRU <hidden_size = 3> (turned, w, r, , , h)
    row = Squeeze (rows, axis1)
    y = Transpose <perm = [1, 0, 2]> (row)
}
"""


def test_float16_with_an_axis_of_time(tmp_path: Path) -> None:
    """Outputs that lose an axis and change their dtype have the file's bits."""
    rng = np.random.default_rng(0)
    w, r = (rng.standard_normal((1, 9, 3)).astype(np.float16) for _ in range(2))
    path = tmp_path / "half.onnx"
    path.write_bytes(model_of(HALF, {"w": w, "r": r, "axis1": np.array([1])}))
    import_onnx(Request(path, "half", models=tmp_path / "models"))
    stream = Stream(read_model(tmp_path / "models", "half", 1).network)
    assert [each.shape for each in (*stream.spec.outputs, *stream.spec.states)] == [(3,), (1, 3)]
    x = rng.standard_normal((2, 3, 3)).astype(np.float16)
    case = Golden({"x": x.astype(np.float32)}, np.full(2, 3, np.int32), None, {}, {}, 0.0)
    found = stream.run(case, [0, 1, 2, 3])["y"]
    oracle = FileOracle(path.read_bytes(), {"h": "h_out"})
    for row in range(2):
        states = {"h": np.zeros((1, 1, 3), np.float16)}
        for step in range(3):
            answer, states = oracle.step(states, x=x[row, step][np.newaxis, np.newaxis])
            assert np.array_equal(found[row, step], answer["y"][0, 0])


SIZED = """<ir_version: 8, opset_import: ["": 17]>
sized (float[B, 3] x, float[B, 3] h) => (float[B, 3] y, float[B, 3] h_out)
{
    size = Shape <start = 0, end = 1> (x)
    is_large = Greater (size, most)
    extra = Cast <to = 1> (is_large)
    h_out = Add (h, x)
    y = Add (h_out, extra)
}
"""


def test_a_batch_that_only_the_proof_finds_wrong_is_no_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file answers otherwise in batches above 100, which no experiment on axes has: if nothing
    within the graph shows it either, it is served one session a run, with the reason."""
    monkeypatch.setattr(batch_search, "find_mixing", lambda *_: "")
    path = tmp_path / "sized.onnx"
    path.write_bytes(model_of(SIZED, {"most": np.array([100])}))
    request = Request(path, "sized", models=tmp_path / "models")
    notes = import_onnx(request).manifest.notes
    assert any("no batch: in a batch output y differs at time step 1" in note for note in notes)
    assert not any("--batch-axis says" in note for note in notes)
    stream = Stream(read_model(tmp_path / "models", "sized", 1).network)
    x = np.ones((120, 2, 3), np.float32)
    y = stream.run(Golden({"x": x}, np.full(120, 2, np.int32), None, {}, {}, 0.0), [0, 1, 2])["y"]
    assert np.array_equal(y, x.cumsum(axis=1))
    with pytest.raises(Refused, match="output y differs at time step 1"):
        import_onnx(replace(request, batch_axes={"x": 0}, force=True))


CHAOTIC = """<ir_version: 8, opset_import: ["": 17]>
chaotic (float[B, 1] x, float[B, 1] h) => (float[B, 1] y, float[B, 1] h_out)
{
    sum = Add (h, x)
    angle = Mul (sum, growth)
    h_out = Sin (angle)
    y = Identity (h_out)
}
"""


@pytest.mark.parametrize("growth", [0.5, 8, 1e9])
def test_a_file_that_amplifies_rounding(tmp_path: Path, growth: float) -> None:
    """It is checked on shorter sequences, and a note says so; where the answer to a single row is
    rounding alone, the import is refused."""
    path = tmp_path / "chaotic.onnx"
    path.write_bytes(model_of(CHAOTIC, {"growth": np.array(growth, np.float32)}))
    request = Request(path, "chaotic", states=("h:h_out",), models=tmp_path / "models")
    if growth > 100:
        with pytest.raises(Refused, match="so no result of it means anything: give --golden"):
            import_onnx(request)
        return
    notes = "".join(import_onnx(request).manifest.notes)
    longest = read_model(tmp_path / "models", "chaotic", 1).golden["random"].lengths.max()
    is_shorter = growth > 1
    assert ("it was checked on shorter sequences" in notes) == is_shorter
    assert (longest < 64) == is_shorter


LOOPS = {
    "count": ("(turns, yes, h)", "still = Identity (going)", True),
    "condition": ("(three, is_high, h)", "still = Identity (going)", True),
    "its own": ("(three, yes, h)", "still = Less (sum, limit)", True),
    "fixed": ("(three, yes, h)", "still = Identity (going)", False),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_whose_turns_a_client_decides_is_noted(name: str) -> None:
    """By its count, its condition, or what its body computes; not one with a constant count."""
    given, still, is_open = LOOPS[name]
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    looped (float[1] x, float[1] h) => (float[1] h_out)
    {{
        whole = Cast <to = 7> (x)
        turns = ReduceMax <keepdims = 0> (whole)
        most = ReduceMax <keepdims = 0> (x)
        is_high = Greater (most, limit)
        h_out = Loop <body = turn (int64 number, bool going, float[1] now)
            => (bool still, float[1] next)
        {{
            next = Add (now, now)
            sum = ReduceMax <keepdims = 0> (next)
            {still}
        }}> {given}
    }}
    """
    notes = loop_notes(parser.parse_model(text).graph)
    assert bool(notes) == is_open
    assert not notes or "how many turns the Loop of h_out takes" in notes[0]


NARROW = """<ir_version: 8, opset_import: ["": 17]>
narrow (int32[B] kind, int32[B] sum) => (int32[B] total, int32[B] sum_out)
{
    sum_out = Add (sum, kind)
    total = Identity (sum_out)
}
"""


def test_an_integer_that_the_file_cannot_hold_fails(tmp_path: Path) -> None:
    """It would wrap around to another number, whether a client gives it as x or in a state."""
    path = tmp_path / "narrow.onnx"
    path.write_bytes(model_of(NARROW, {}))
    states = ("sum:sum_out",)
    import_onnx(Request(path, "narrow", states=states, models=tmp_path / "models"))
    stream = Stream(read_model(tmp_path / "models", "narrow", 1).network)
    one = np.ones(1, np.int32)
    for kind, total in ((7, 3), (-(2**31), 0), (2**31 - 1, 0)):
        case = Golden({"kind": np.array([[kind]])}, one, {"sum": np.array([total])}, {}, {}, 0.0)
        assert stream.run(case, [0, 1])["total"] == kind + total
    for kind, total in ((2**31, 0), (2**33 + 1, 0), (1, -(2**31) - 1)):
        case = Golden({"kind": np.array([[kind]])}, one, {"sum": np.array([total])}, {}, {}, 0.0)
        with pytest.raises(Refused, match="must fit int32"):
            stream.run(case, [0, 1])


def _placed(order: list[str], row: Array) -> Array:
    """A row of one session as the file has it."""
    found = row.transpose([int(each) for each in order if each.isdecimal()])
    sizes = iter(found.shape)
    return found.reshape([next(sizes) if each.isdecimal() else 1 for each in order])


def _row(order: list[str], array: Array) -> Array:
    """What the file has of one session as a row."""
    plain = [int(each) for each in order if each.isdecimal()]
    sizes = [size for size, each in zip(array.shape, order, strict=True) if each.isdecimal()]
    return array.reshape(sizes).transpose([plain.index(at) for at in range(len(plain))])
