"""Holds graphs with a batch of one baked in to what they give alone, after they were rewritten.

Each has one of the ways in which exporters bake a batch in. The rewritten graph runs in plain
onnxruntime, for more sessions than it was rewritten with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from lstmserve_export.onnx_file.layout.batch_axis import BatchExperiment
from lstmserve_export.onnx_file.layout.probe import Probed, probe
from lstmserve_export.onnx_file.layout.rewrite import CannotRewrite, Rewriting
from lstmserve_export.onnx_file.layout.runner import Runner, relaxed
from lstmserve_export.onnx_file.load.source import Source, read_source
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.onnx_file.roles.roles import Roles
from lstmserve_export.onnx_file.roles.state_pairs import StatePair
from tests.onnxfiles import Array, model_of

RNG = np.random.default_rng(61)
CONSTANTS = {
    "axis0": np.array([0]),
    "axis1": np.array([1]),
    "flat4": np.array([1, 4]),
    "none14": np.zeros((1, 1, 4), np.float32),
    "row4": RNG.uniform(-1, 1, (1, 1, 4)).astype(np.float32),
    "merged": np.array([3, 1, 4]),
    "split": np.array([1, 3, 4]),
    # All of axis 0, and the rows 1 and 2 of axis 1, as torch writes h[:, 1:] = x.
    "mesh": np.array([[[0, 1], [0, 2]]]),
}
CONSTANTS |= {
    name: RNG.uniform(-1, 1, shape).astype(np.float32)
    for name, shape in {"W": (1, 12, 4), "R": (1, 12, 4), "B": (1, 24)}.items()
}

GRAPHS = {
    "a target of a Reshape": (
        "float[1, 1, 4] x, float[1, 4] h",
        "float[1, 4] y, float[1, 4] h1",
        "r = Reshape (x, flat4)  h1 = Add (r, h)  y = Tanh (h1)",
    ),
    "an initial state of a layer within the step": (
        "float[1, 3, 4] x, float[1, 4] h",
        "float[1, 4] y, float[1, 4] h1",
        """
        major = Transpose <perm = [1, 0, 2]> (x)
        all, last = GRU <hidden_size = 4> (major, W, R, B, , row4)
        y = Squeeze (last, axis0)
        h1 = Add (h, y)
        """,
    ),
    "a constant beside the rows": (
        "float[1, 2, 4] x, float[1, 4] h",
        "float[1, 3, 4] y, float[1, 4] h1",
        "y = Concat <axis = 1> (none14, x)  m = ReduceMax <axes = [1], keepdims = 0> (x)"
        "  h1 = Add (h, m)",
    ),
    "rows as a layer's time": (
        "float[1, 4] x, float[1, 4] h",
        "float[1, 4] y, float[1, 4] h1",
        """
        rows = Unsqueeze (x, axis1)
        h3 = Unsqueeze (h, axis0)
        all, last = GRU <hidden_size = 4> (rows, W, R, B, , h3)
        y3 = Squeeze (all, axis1)
        y = Squeeze (y3, axis1)
        h1 = Squeeze (last, axis0)
        """,
    ),
    "rows that share an axis with features": (
        "float[1, 3, 4] x, float[1, 3, 4] h",
        "float[1, 3, 4] y, float[1, 3, 4] h1",
        """
        flat = Reshape (x, merged)
        steps = Transpose <perm = [1, 0, 2]> (flat)
        all, h1 = GRU <hidden_size = 4> (steps, W, R, B, , h)
        y4 = Squeeze (all, axis1)
        y = Reshape (y4, split)
        """,
    ),
    "many inputs of one node": (
        "float[1, 1, 4] x, float[1, 4] h",
        "float[1, 48, 4] y, float[1, 4] h1",
        "y = Concat <axis = 1> (" + ", ".join(["x"] * 48) + ")"
        "  r = Reshape (x, flat4)  h1 = Add (r, h)",
    ),
    "indices that name the row": (
        "float[1, 2, 4] x, float[1, 3, 4] h",
        "float[1, 3, 4] y, float[1, 3, 4] h1",
        "h1 = ScatterND (h, mesh, x)  y = Tanh (h1)",
    ),
}


def examined(folder: Path, graph: str, batch_axes: Mapping[str, int] | None = None) -> Probed:
    """Probes one of GRAPHS."""
    inputs, outputs, body = GRAPHS[graph]
    text = f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => ({outputs}) {{ {body} }}'
    file = folder / "model.onnx"
    file.write_bytes(model_of(text, {n: each for n, each in CONSTANTS.items() if n in body}))
    source = read_source(file)
    return probe(source, _roles(source), Request(file, "m", batch_axes=batch_axes or {}))


def _roles(source: Source) -> Roles:
    pair = StatePair(source.inputs["h"], source.outputs["h1"])
    return Roles((source.inputs["x"],), (source.outputs["y"],), (pair,), {})


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_batch_of_one_becomes_any(tmp_path: Path, graph: str) -> None:
    """A rewritten graph gives each of many sessions what the file gives it alone."""
    # The flag takes a rewriting whatever the order of additions does to the last bit.
    probed = examined(tmp_path, graph, {"x": 0})
    layout = probed.layout
    assert layout.is_batched
    assert any("so that the graph takes a batch" in note for note in layout.notes)
    file = ort.InferenceSession((tmp_path / "model.onnx").read_bytes())
    rewritten = ort.InferenceSession(relaxed(probed.source.model).SerializeToString())
    places = {place.value.name: place for place in layout.inputs}
    places |= {each.before.value.name: each.before for each in layout.states}
    rows = {
        name: RNG.standard_normal((40, *place.file_shape)).astype(np.float32)
        for name, place in places.items()
    }
    together: dict[str, Array] = {
        name: np.concatenate([*array], places[name].batch) for name, array in rows.items()
    }
    found = dict(zip(("y", "h1"), rewritten.run(["y", "h1"], together), strict=True))
    after = {"y": layout.outputs[0].batch, "h1": layout.states[0].after.batch}
    for row in range(40):
        alone = file.run(["y", "h1"], {name: array[row] for name, array in rows.items()})
        for name, expected in zip(("y", "h1"), alone, strict=True):
            part = found[name].take([row], after[name])
            np.testing.assert_allclose(part, expected, rtol=0, atol=2e-6)


def test_a_rewriting_is_said(tmp_path: Path) -> None:
    """A note names the operators around which the graph was rewritten; bits are those alone."""
    layout = examined(tmp_path, "a target of a Reshape").layout
    assert layout.is_batched
    assert layout.notes == ("operators were changed so that the graph takes a batch: Reshape 1",)


def test_other_bits_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewriting that moves the last bit is left, and the note says which flags take it."""
    real = BatchExperiment._compare

    def moved(self: BatchExperiment, *given: object) -> None:
        real(self, *given)  # type: ignore[arg-type]  # any arguments are those of the original
        self._error = max(self._error, 1e-7)

    monkeypatch.setattr(BatchExperiment, "_compare", moved)
    layout = examined(tmp_path, "a target of a Reshape").layout
    assert not layout.is_batched
    assert layout.notes == (
        "no batch: along x=0,h=0, Reshape refuses a batch",
        "--batch-axis x=0,h=0 rewrites the graph for a batch, with answers up to 1e-07 apart",
    )
    asked = examined(tmp_path, "a target of a Reshape", {"x": 0, "h": 0}).layout
    assert asked.is_batched
    assert "a row in a batch differs from the row alone" in asked.notes[0]


def test_a_node_that_takes_one_row_alone() -> None:
    """Where no change of a node helps, the reason names it."""
    model = onnx.load_model_from_string(
        model_of(
            '<ir_version: 8, opset_import: ["": 17]> g (float[1, 4] x) => (float[1] y)'
            "{ row = Squeeze (x, axis0)  top = ReduceMax <keepdims = 0> (row)"
            "  y = Unsqueeze (top, axis0) }",
            {"axis0": CONSTANTS["axis0"]},
        )
    )
    rows = [{"x": RNG.standard_normal((1, 4)).astype(np.float32)} for _ in range(3)]
    with pytest.raises(CannotRewrite, match=r"^ReduceMax takes one row alone$"):
        Rewriting(model, {}, rows, {"x": 0}).run()


def test_the_rewritten_graph_is_one_that_runs(tmp_path: Path) -> None:
    """A rewritten graph loads in onnxruntime with any number of sessions, zero constants apart."""
    probed = examined(tmp_path, "a constant beside the rows", {"x": 0})
    runner = Runner(probed.source.model, {})
    for count in (1, 2, 9):
        found = runner.run(
            {
                "x": np.ones((count, 2, 4), np.float32),
                "h": np.zeros((count, 4), np.float32),
            },
            {"y"},
        )
        assert found["y"].shape == (count, 3, 4)
