"""The model folder: what is written is read, and incomplete or foreign content is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lstmserve.golden import InvalidGolden
from lstmserve.graph import InvalidModel, LstmNetwork, build_portable, check_weights, read_weights
from lstmserve.head_layers import BatchNorm, Elu, LayerNorm, LeakyRelu, Linear
from lstmserve.lstm_golden import dump_lstm_golden, load_lstm_golden
from lstmserve.manifest import (
    GOLDEN,
    MANIFEST,
    MODEL,
    InvalidModelFolder,
    Manifest,
    ModelFiles,
    list_versions,
    read_model,
    sha256,
    write_model,
)
from lstmserve.spec import InvalidSpec, LstmSpec, ModelSpec
from modelmaking import TINY, make_golden, make_model, random_weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """models/tiny/1 in a folder that may be broken."""
    make_model(tmp_path / "models")
    return tmp_path / "models" / "tiny" / "1"


def read(folder: Path) -> ModelFiles:
    """Reads the folder as the server does."""
    return read_model(folder.parent.parent, folder.parent.name, int(folder.name))


def edit_manifest(folder: Path, **values: Any) -> None:
    """Replaces fields of manifest.json."""
    file = folder / MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Replaces a file and its sha256, so that only the checks of the content are left."""
    (folder / name).write_bytes(content)
    sums = json.loads((folder / MANIFEST).read_text())["sha256"]
    edit_manifest(folder, sha256={**sums, name: sha256(content)})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Weights, spec, golden vectors and every field of the manifest are read as they were
    written."""
    weights = make_model(tmp_path)
    files = read_model(tmp_path, "tiny", 1)
    assert isinstance(files.network, LstmNetwork)
    assert files.manifest.spec == ModelSpec.of_lstm(TINY)
    assert Manifest.from_json(files.manifest.to_json()) == files.manifest
    for name, tensor in weights.items():
        np.testing.assert_array_equal(files.network.weights[name], tensor)
    expected, found = make_golden(TINY, weights, 0).named(TINY), files.golden["random"]
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    for group in ("inputs", "initial", "outputs", "finals"):
        assert set(getattr(found, group)) == set(getattr(expected, group))
        for name, array in getattr(expected, group).items():
            np.testing.assert_array_equal(getattr(found, group)[name], array)


def test_a_manifest_of_the_first_edition_is_written_as_it_was() -> None:
    """Old readers read what the export writes of an nn.LSTM now."""
    files = sorted((Path(__file__).parent / "fixtures" / "edition1").rglob(MANIFEST))
    assert files
    for file in files:
        assert Manifest.from_json(file.read_text()).to_json() == file.read_text()


Fault = Callable[[Path], object]
FAULTS: dict[str, tuple[str, Fault]] = {
    "no manifest": ("cannot be read", lambda f: (f / MANIFEST).unlink()),
    "no model": ("cannot be read", lambda f: (f / MODEL).unlink()),
    "no golden vectors": ("cannot be read", lambda f: (f / GOLDEN).unlink()),
    "manifest cut short": (
        "malformed",
        lambda f: (f / MANIFEST).write_text((f / MANIFEST).read_text()[:-20]),
    ),
    "manifest of bytes": ("cannot be read", lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe")),
    "manifest that is a list": ("malformed", lambda f: (f / MANIFEST).write_text("[]")),
    "manifest nested without end": (
        "malformed",
        lambda f: (f / MANIFEST).write_text("[" * 100_000),
    ),
    "another format": ("this release reads 1 to 4", lambda f: edit_manifest(f, format=5)),
    "no spec": ("malformed", lambda f: edit_manifest(f, spec=None)),
    "a spec of another release": (
        "unknown fields: dilation",
        lambda f: edit_manifest(f, spec={**TINY.to_json(), "dilation": 2}),
    ),
    "an impossible spec": (
        "hidden_size is 0",
        lambda f: edit_manifest(f, spec={**TINY.to_json(), "hidden_size": 0}),
    ),
    "a size as text": (
        "malformed",
        lambda f: edit_manifest(f, spec={**TINY.to_json(), "hidden_size": "5"}),
    ),
    "a flag as text": (
        "bias is 'no'",
        lambda f: edit_manifest(f, spec={**TINY.to_json(), "bias": "no"}),
    ),
    "another spec": (
        "lstm.0.W is not float32",
        lambda f: edit_manifest(f, spec={**TINY.to_json(), "hidden_size": 6}),
    ),
    "another fingerprint": (
        "the fingerprint does not match",
        lambda f: edit_manifest(f, fingerprint="0" * 64),
    ),
    "another name": ("holds other:1", lambda f: edit_manifest(f, name="other")),
    "another version": ("holds tiny:2", lambda f: edit_manifest(f, version=2)),
    "model of another export": (
        "not the file that was exported",
        lambda f: (f / MODEL).write_bytes((f / MODEL).read_bytes() + b"\0"),
    ),
    "no sha256": ("not the file that was exported", lambda f: edit_manifest(f, sha256={})),
    "a model of text": (
        "is not an ONNX file",
        lambda f: replace_file(f, MODEL, b"once upon a time"),
    ),
    "an empty model": ("has no tensor", lambda f: replace_file(f, MODEL, b"")),
    "golden vectors of text": (
        "golden.npz cannot be read",
        lambda f: replace_file(f, GOLDEN, b"once upon a time"),
    ),
    "golden vectors cut short": (
        "golden.npz cannot be read",
        lambda f: replace_file(f, GOLDEN, (f / GOLDEN).read_bytes()[:-50]),
    ),
}


@pytest.mark.parametrize(("says", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_folder_that_is_not_whole_is_refused(folder: Path, says: str, fault: Fault) -> None:
    """The message names the folder and the fault."""
    fault(folder)
    with pytest.raises(InvalidModelFolder) as error:
        read(folder)
    assert says in str(error.value)
    assert str(folder) in str(error.value)


def test_golden_vectors_are_never_unpickled(tmp_path: Path) -> None:
    """An array of objects would be a program, and is refused."""
    np.savez(tmp_path / "golden.npz", **{"case/x": np.array([{"a": 1}])}, allow_pickle=True)
    with pytest.raises(InvalidGolden, match="allow_pickle"):
        load_lstm_golden((tmp_path / "golden.npz").read_bytes())


def test_golden_vectors_without_states_stay_so() -> None:
    """Golden vectors without states are read without states."""
    case = make_golden(TINY, random_weights(TINY, 0), 0)
    last = case.y[np.arange(3), case.lengths - 1]
    loaded = load_lstm_golden(dump_lstm_golden({"user": replace(case, y=last, hn=None, cn=None)}))[
        "user"
    ]
    assert loaded.hn is None
    assert loaded.cn is None
    np.testing.assert_array_equal(loaded.y, last)


def edited(edit: Callable[[onnx.TensorProto], object]) -> bytes:
    """A good model.onnx except for lstm.0.W."""
    model = build_portable(TINY, random_weights(TINY, 0))
    (tensor,) = (t for t in model.graph.initializer if t.name == "lstm.0.W")
    edit(tensor)
    return model.SerializeToString()


def external(tensor: onnx.TensorProto) -> None:
    """Puts the weights into a file of the attacker's choice."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    tensor.ClearField("raw_data")


TENSORS: dict[str, tuple[str, Callable[[onnx.TensorProto], object]]] = {
    "in another file": ("lies in another file", external),
    "of another type": (
        "is not float32",
        lambda t: setattr(t, "data_type", onnx.TensorProto.DOUBLE),
    ),
    "of another shape": ("is not float32", lambda t: t.dims.append(1)),
    "short of bytes": ("has 4 bytes", lambda t: setattr(t, "raw_data", b"\0" * 4)),
    "by another name": ("has no tensor lstm.0.W", lambda t: setattr(t, "name", "x")),
    "with NaN": (
        "has NaN or infinite",
        lambda t: setattr(t, "raw_data", b"\xff" * len(t.raw_data)),
    ),
}


@pytest.mark.parametrize(("says", "edit"), TENSORS.values(), ids=TENSORS)
def test_a_tensor_that_is_not_what_the_spec_promises(
    says: str, edit: Callable[[onnx.TensorProto], object]
) -> None:
    """It is judged before it is decoded, and the graph around it is never run."""
    with pytest.raises(InvalidModel, match=says):
        read_weights(edited(edit), TINY)


def test_the_graph_of_an_nn_lstm_is_never_run(folder: Path) -> None:
    """Other nodes between the named tensors change nothing, even with their sha256."""
    before = read(folder)
    model = onnx.load_model_from_string((folder / MODEL).read_bytes())
    del model.graph.node[:]
    model.graph.node.add(op_type="EPContext", domain="com.microsoft", output=["y"])
    replace_file(folder, MODEL, model.SerializeToString())
    assert read(folder).network.build_chunk() == before.network.build_chunk()


def test_weights_that_do_not_fit_their_spec_are_told_apart() -> None:
    """Missing, unknown and non-finite tensors, and those of another type or shape, get different
    errors."""
    good = dict(random_weights(TINY, 0))
    tensor = good["lstm.0.W"]
    for says, weights in {
        "missing tensors: lstm.0.W": {k: v for k, v in good.items() if k != "lstm.0.W"},
        "unknown tensors: odd": {**good, "odd": tensor},
        "is float64": {**good, "lstm.0.W": tensor.astype(np.float64)},
        "must be float32": {**good, "lstm.0.W": tensor[:, :, :1]},
        "has NaN": {**good, "lstm.0.W": tensor * np.float32(np.inf)},
    }.items():
        with pytest.raises(ValueError, match=says):
            check_weights(TINY, weights)


def test_specs_are_json_and_back() -> None:
    """A spec is the same after JSON, also with every field set."""
    head = (LayerNorm(1e-3, False), Linear(5), "tanh", BatchNorm(), Elu(0.3), Linear(2, False))
    spec = LstmSpec(4, 6, 2, 3, False, False, (*head, LeakyRelu()), 0, True, True, (3, 0), True)
    assert LstmSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_spec_of_the_first_edition_has_its_json() -> None:
    """Fields that the first edition did not have are left out at their defaults, since the
    fingerprint covers the JSON."""
    spec = LstmSpec(4, 6, head=(Linear(5), "tanh"))
    assert json.dumps(spec.to_json()) == (
        '{"input_size": 4, "hidden_size": 6, "num_layers": 1, "proj_size": 0, '
        '"bidirectional": false, "bias": true, "head": [{"linear": 5, "bias": true}, "tanh"], '
        '"num_embeddings": 0, "input_norm": false, "output_norm": false}'
    )


@pytest.mark.parametrize(
    "values",
    [
        {"input_size": 0},
        {"hidden_size": 1 << 17},
        {"num_layers": 65},
        {"proj_size": 5},
        {"num_embeddings": -1},
        {"head": ["mish"]},
        {"head": [{"elu": {}, "linear": 3}]},
        {"head": [{"elu": {"alpha": float("inf")}}]},
        {"head": [{"elu": {"beta": 1.0}}]},
        {"head": [{"leaky_relu": {"negative_slope": 1e39}}]},
        {"head": [{"layer_norm": {"eps": 0.0}}]},
        {"head": [{"layer_norm": {"bias": 1}}]},
        {"head": [{"batch_norm": {"eps": 1e-5}}]},
        {"head": [{}]},
        {"residual": [0, 1, 2]},
        {"residual": [0, 1, 2, 0, 3]},
        {"residual": [0, 1, 2, 0, -1]},
        {"residual": [0, 1, 2, 0, True]},
        {"residual": 3},
        {"initial_state": 1},
        {"head": [{"linear": 0, "bias": True}]},
        {"head": [{"linear": float("nan"), "bias": True}]},
        {"head": [{"out": 3}]},
        {"head": 3},
        {"bidirectional": 1},
        {"num_embeddings": 3, "input_norm": True},
    ],
    ids=str,
)
def test_impossible_specs_are_refused(values: dict[str, Any]) -> None:
    """An impossible spec is refused before anything is built from it."""
    with pytest.raises(InvalidSpec):
        LstmSpec.from_json({"input_size": 3, "hidden_size": 5, **values})


def test_versions_are_listed_and_strangers_passed_over(tmp_path: Path) -> None:
    """Only NAME/N/manifest.json counts, with N an integer >= 1 in its usual form."""
    make_model(tmp_path)
    for stranger in ("tiny/02", "tiny/0", "tiny/latest", "tiny/3", ".hidden/1", "two words/1"):
        target = tmp_path / stranger
        shutil.copytree(tmp_path / "tiny" / "1", target)
    (tmp_path / "tiny" / "3" / MANIFEST).unlink()
    make_model(tmp_path, version=10)
    assert list_versions(tmp_path) == [("tiny", 1), ("tiny", 10)]
    assert list_versions(tmp_path / "nowhere") == []


def test_a_version_is_written_once(tmp_path: Path) -> None:
    """Another version with the same number needs force, and then replaces it whole."""
    make_model(tmp_path)
    files = read_model(tmp_path, "tiny", 1)
    with pytest.raises(FileExistsError):
        write_model(tmp_path, files.manifest, {MODEL: b"new"}, force=False)
    read_model(tmp_path, "tiny", 1)
    folder = write_model(tmp_path, files.manifest, {MODEL: b"new"}, force=True)
    assert sorted(os.listdir(folder)) == sorted([MANIFEST, MODEL])
    assert os.listdir(tmp_path / "tiny") == ["1"]
