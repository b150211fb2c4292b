"""--golden and --initial-state of an import: the user's own rows, and where new sessions begin."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import lstmserve_export
from lstmserve.golden import Golden
from lstmserve.manifest import Manifest, read_model
from lstmserve_export import import_api
from lstmserve_export.onnx_file.importer import import_onnx
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.refusal import Refused
from lstmserve_export.streaming import Stream
from onnxfiles import PAIRS, FileOracle, looped, model_of

Array = npt.NDArray[Any]
STATES = tuple(f"{before}:{after}" for before, after in PAIRS.items())
STEPS = 9
AVERAGED = """<ir_version: 8, opset_import: ["": 17]>
averaged (float[B, T, 2] x) => (float[B, 3] y)
{
    mean = ReduceMean <axes = [1], keepdims = 0> (x)
    y = MatMul (mean, w)
}
"""
SMOOTHED = """<ir_version: 8, opset_import: ["": 17]>
smoothed (float[B, T, 2] x) => (float[B, T, 3] y)
{
    mean = ReduceMean <axes = [1], keepdims = 1> (x)
    off = Sub (x, mean)
    y = MatMul (off, w)
}
"""


class Files:
    """A file and its pairs in a folder."""

    def __init__(self, folder: Path, content: bytes, states: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.path = folder / "net.onnx"
        self.path.write_bytes(content)
        self.states = states

    def run(self, arrays: Mapping[str, Any], flag: str = "golden", **more: Any) -> Manifest:
        """The manifest of an import with these arrays as --golden or --initial-state."""
        np.savez(self.folder / "arrays.npz", **arrays)
        given = {flag: self.folder / "arrays.npz", "states": self.states, **more}
        request = Request(self.path, "net", models=self.folder / "models", **given)
        return import_onnx(request).manifest

    def refusal(self, arrays: Mapping[str, Any], flag: str = "golden", **more: Any) -> str:
        """What the import says instead; nothing is written."""
        with pytest.raises(Refused) as caught:
            self.run(arrays, flag, **more)
        assert not (self.folder / "models").exists()
        return str(caught.value)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """The file with three states of three dtypes."""
    return Files(tmp_path, looped(), STATES)


def pairs(seed: int = 0, start: Mapping[str, Array] | None = None) -> tuple[Array, Array]:
    """x [T, 4] and what plain onnxruntime answers, y [T, 3]."""
    x = np.random.default_rng(seed).standard_normal((STEPS, 4)).astype(np.float32)
    return x, answers(x, start)


def answers(x: Array, start: Mapping[str, Array] | None = None) -> Array:
    """What plain onnxruntime answers to the rows of one session."""
    oracle = FileOracle(looped(), PAIRS)
    states, y = start or oracle.start(), []
    for row in x:
        found, states = oracle.step(states, frame=row)
        y.append(found["score"].reshape(-1))
    return np.array(y)


@pytest.mark.parametrize("shape", [(STEPS, 4), (1, STEPS, 4), (STEPS, 1, 1, 4)], ids=str)
def test_rows_in_any_usual_shape(files: Files, shape: tuple[int, ...]) -> None:
    """Rows of one sequence, of several, and as they were fed to the file are taken, and replayed
    by each server that loads the model."""
    x, y = pairs()
    manifest = files.run({"frame": x.reshape(shape), "score": y})
    assert "golden in single steps" in manifest.parity["excess"]
    golden = read_model(files.folder / "models", "net", 1).golden["golden"]
    assert np.array_equal(golden.inputs["frame"], x[np.newaxis])
    assert np.abs(golden.outputs["score"] - y).max() < 1e-6


def test_several_sequences_and_the_states_before_them(files: Files) -> None:
    """The arrays of states are those before the first step, one for all or one for each."""
    rng = np.random.default_rng(3)
    memory = rng.standard_normal((2, 1, 8)).astype(np.float32)
    start = {"memory": memory, "ticks": np.array([5]), "loud": np.array([[True]])}
    (x, y), (other_x, other_y) = pairs(1, start), pairs(2, start)
    arrays = {"x": np.stack([x, other_x]), "y": np.stack([y, other_y])}
    files.run({**arrays, "memory": memory[:, 0], "ticks": np.array(5), "loud": np.array([True])})
    each = {"memory": np.stack([memory[:, 0]] * 2), "ticks": np.array([5, 5])}
    files.run({**arrays, **each, "loud": np.array([[True], [True]])}, force=True)
    assert "differs from step 1 on" in Files(files.folder / "..", looped(), STATES).refusal(arrays)


def test_what_another_run_gave_is_refused_with_the_step(files: Files) -> None:
    """States that were not carried show at step 2, a scaled x at step 1."""
    x, y = pairs()
    forgot = np.concatenate([answers(row[np.newaxis]) for row in x])
    line = files.refusal({"x": x, "y": forgot})
    assert "differs from step 2 on" in line
    assert "--state" in line
    line = files.refusal({"x": 2 * x, "y": y})
    assert "differs from step 1 on" in line
    assert "scaling of x" in line


def test_files_that_are_no_pairs(files: Files) -> None:
    """Each fault has a line that names the array and what it must be."""
    x, y = pairs()
    bad = np.where(np.arange(STEPS)[:, np.newaxis] == 4, np.float32(np.nan), x)
    for arrays, said in (
        ({"x": x}, "has no output, such as y"),
        ({"y": y}, "has no frame, which the file takes"),
        ({"x": x, "y": y, "z": y}, "z of"),
        ({"x": x[:, :3], "y": y}, "frame is [9, 3], must be [T, 4]"),
        ({"x": x, "y": y[:4]}, "score has 1 sequences of 4 steps"),
        ({"x": bad, "y": y}, "frame has NaN"),
        ({"x": x.astype(str), "y": y}, "must be numbers"),
        ({"x": x, "y": y, "ticks": np.array(0.5)}, "ticks is not int64"),
        ({"x": x, "y": y, "memory": np.zeros((2, 9))}, "the state memory is [2, 9]"),
    ):
        line = files.refusal(arrays)
        assert said in line, line
        assert "\n" not in line


def test_sessions_begin_from_a_given_state(files: Files) -> None:
    """A new session of the server has it; states that are not given are zeros."""
    memory = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    files.run({"memory": memory}, "initial_state")
    stream = Stream(read_model(files.folder / "models", "net", 1).network)
    found = stream.initial(2)
    assert np.array_equal(found["memory"], np.stack([memory] * 2))
    assert not found["ticks"].any()


def test_bad_initial_states(files: Files) -> None:
    """Names, shapes and dtypes are those of the states."""
    for arrays, said in (
        ({"hidden": np.zeros((2, 8))}, "the states are memory, ticks, loud"),
        ({"memory": np.zeros((2, 9))}, "the state memory is [2, 9], must be [2, 8]"),
        ({"memory": np.full((2, 8), np.inf)}, "has NaN or infinite values"),
    ):
        line = files.refusal(arrays, "initial_state")
        assert said in line, line


def weights(seed: int = 0) -> dict[str, Array]:
    return {"w": np.random.default_rng(seed).standard_normal((2, 3)).astype(np.float32)}


def test_windows_of_the_user(tmp_path: Path) -> None:
    """x [N, W, 2] and y [N, 3] of a file that reads windows; a wrong y is refused."""
    files = Files(tmp_path, model_of(AVERAGED, weights()))
    x = np.random.default_rng(0).standard_normal((5, 4, 2)).astype(np.float32)
    y = x.mean(axis=1) @ weights()["w"]
    flags = {"window": 4, "window_fill": "wait"}
    assert "does not give your y" in files.refusal({"x": x, "y": y + 1}, **flags)
    assert "each sequence has 4 rows" in files.refusal({"x": x[:, :3], "y": y[:, :3]}, **flags)
    manifest = files.run({"x": x, "y": y}, **flags)
    assert "golden in single steps" in manifest.parity["excess"]


def test_whole_sequences_of_the_user(tmp_path: Path) -> None:
    """x [N, T, 2] and y [N, T, 3] of a file that reads whole sequences; a wrong y is refused."""
    files = Files(tmp_path, model_of(SMOOTHED, weights()))
    x = np.random.default_rng(0).standard_normal((3, 6, 2)).astype(np.float32)
    y = (x - x.mean(axis=1, keepdims=True)) @ weights()["w"]
    assert "does not give your y of sequence 1" in files.refusal({"x": x, "y": y + 1})
    manifest = files.run({"x": x, "y": y})
    assert "golden in whole sequences" in manifest.parity["excess"]


SCALED = """<ir_version: 8, opset_import: ["": 17]>
scaled (float[B, 2] x, float[2] gain, float[B, 2] a) => (float[B, 2] y, float[B, 2] b)
{
    b = Add (a, x)
    y = Mul (b, gain)
}
"""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports run in this process: a child takes half a second to start."""
    monkeypatch.setattr(
        import_api,
        "run_child",
        lambda request, limits: import_onnx(Request.from_json(request.to_json())),
    )


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("gain", [np.array([2, 3]), [2.0, 3], "[2, 3]", "file"], ids=str)
def test_the_function_takes_values_of_python(tmp_path: Path, gain: Any) -> None:
    """Constants are arrays, lists, texts as of the command, or files; states a dict."""
    (tmp_path / "net.onnx").write_bytes(model_of(SCALED, {}))
    if isinstance(gain, str) and gain == "file":
        gain = tmp_path / "gain.npy"
        np.save(gain, np.array([2, 3]))
    imported = lstmserve_export.import_onnx(
        tmp_path / "net.onnx", models=tmp_path, states={"a": "b"}, constants={"gain": gain}
    )
    assert imported.folder == tmp_path / "net" / "1"
    stream = Stream(read_model(tmp_path, "net", 1).network)
    case = Golden({"x": np.ones((1, 2, 2), np.float32)}, np.array([2]), None, {}, {}, 0.0)
    assert stream.run(case, [0, 2])["y"].tolist() == [[[2, 3], [4, 6]]]


ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "rows as text": ({"rows": "3"}, "rows is '3': give an integer of at least 0"),
    "negative rows": ({"rows": -1}, "rows is -1: give an integer of at least 0"),
    "a window of one": ({"window": 1}, "window is 1: give an integer of at least 2 and at most"),
    "a fill alone": ({"window_fill": "zeros"}, "window_fill is 'zeros': give wait or zeros, bes"),
    "another fill": ({"window": 3, "window_fill": "x"}, "window_fill is 'x': give wait or zeros"),
    "too little memory": ({"memory_limit": 0.1}, "memory_limit is 0.1: give a number of at least"),
    "no memory": ({"memory_limit": 0}, "memory_limit is 0: give a number of at least 0.5"),
    "no time": ({"time_limit": 0}, "time_limit is 0: give a number of at least 1"),
    "an axis without a name": ({"batch_axes": "none"}, "batch_axes is 'none': give axes by name"),
    "a text as inputs": (
        {"inputs": "xy"},
        "--input xy: the graph has no such input; it has x, gain, a",
    ),
    "a pair as text": ({"states": "z:y"}, "--state z:y: give IN:OUT"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_function_refuses_in_one_line(name: str, tmp_path: Path) -> None:
    """Arguments that cannot be are Refused, and nothing is written."""
    given, line = ARGUMENTS[name]
    (tmp_path / "net.onnx").write_bytes(model_of(SCALED, {}))
    with pytest.raises(Refused, match=re.escape(line)):
        lstmserve_export.import_onnx(tmp_path / "net.onnx", models=tmp_path / "models", **given)
    assert not (tmp_path / "models").exists()


@pytest.mark.usefixtures("here")
def test_the_function_takes_pairs_as_the_command_does(tmp_path: Path) -> None:
    """So that a flag which a message proposes can be copied."""
    (tmp_path / "net.onnx").write_bytes(model_of(SCALED, {}))
    for states in ("a:b", ["a:b"], {"a": "b"}):
        imported = lstmserve_export.import_onnx(
            tmp_path / "net.onnx",
            models=tmp_path,
            states=states,
            constants={"gain": [1, 2]},
            memory_limit=4,
            dry_run=True,
        )
        assert [each.name for each in imported.manifest.spec.states] == ["a"]


def test_the_function_imports_in_a_process_of_its_own(tmp_path: Path) -> None:
    """What it returns is what the process wrote; what that refuses, it raises."""
    (tmp_path / "net.onnx").write_bytes(model_of(SCALED, {}))
    imported = lstmserve_export.import_onnx(
        tmp_path / "net.onnx", models=tmp_path, states={"a": "b"}, constants={"gain": [2, 3]}
    )
    assert imported.manifest == read_model(tmp_path, "net", 1).manifest
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(Refused, match="is empty: download or export it again"):
        lstmserve_export.import_onnx(tmp_path / "net.onnx", models=tmp_path)
