"""What a server does with the folder of an imported file: it runs what the manifest names, and only
if that still gives what it gave.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

import onnxfiles
from imported import Imports, imports, run_import
from lstmserve import Client
from lstmserve.config import Config
from lstmserve.engine import Model, load_models
from lstmserve.graph.step_graph import fingerprint, read_step_graph
from lstmserve.manifest import (
    MANIFEST,
    MODEL,
    InvalidModelFolder,
    Manifest,
    RefusedFolder,
    sha256,
)
from serving import Serve
from test_cli import Shell

__all__ = ["imports"]  # a fixture


@pytest.fixture
def folder(imports: Imports, tmp_path: Path) -> Path:
    """A models folder of one's own with the file without a batch axis, its version."""
    shutil.copytree(imports[0] / "branched", tmp_path / "models" / "branched")
    return tmp_path / "models" / "branched" / "1"


def weights(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """All initializers, those of subgraphs too."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            found += weights(attribute.g) if attribute.HasField("g") else []
    return found


def change(folder: Path, *renewed: str) -> None:
    """Moves each copy of one weight by a little. The manifest then has the new value of the fields
    that are `renewed`."""
    manifest = json.loads((folder / MANIFEST).read_text())
    model = onnx.load_model(folder / MODEL)
    changed = [each for each in weights(model.graph) if list(each.dims) == [8, 8]]
    assert changed
    for each in changed:
        values = numpy_helper.to_array(each).copy()
        values[3, 4] += 0.01
        each.CopyFrom(numpy_helper.from_array(values, each.name))
    content = model.SerializeToString()
    spec = Manifest.from_json((folder / MANIFEST).read_text()).spec
    if "sha256" in renewed:
        manifest["sha256"][MODEL] = sha256(content)
    if "fingerprint" in renewed:
        manifest["fingerprint"] = fingerprint(spec, read_step_graph(content, spec))
    (folder / MODEL).write_bytes(content)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def load(folder: Path) -> list[Model]:
    """The models of a server of this folder's models."""
    return load_models(Config(models=folder.parent.parent, pool_bytes=1 << 20))


@pytest.mark.parametrize(
    ("renewed", "says"),
    [
        ((), "sha256"),
        (("sha256",), "fingerprint"),
        (("sha256", "fingerprint"), "golden vectors 'random': the outputs are"),
    ],
)
def test_a_changed_weight_is_refused(folder: Path, renewed: tuple[str, ...], says: str) -> None:
    """By the sha256 of the file, by the fingerprint, and at last by what the model answers."""
    load(folder)
    change(folder, *renewed)
    with pytest.raises(InvalidModelFolder) as caught:
        load(folder)
    assert says in str(caught.value)


def test_no_file_is_served_that_no_manifest_names(folder: Path) -> None:
    """Not one beside model.onnx, not one in a folder without a manifest, and not one among the
    models; and where a manifest names a file of others as it is, it is refused."""
    models, other = folder.parent.parent, onnxfiles.looped()
    (folder / "other.onnx").write_bytes(other)
    (folder.parent / "other.onnx").write_bytes(other)
    for name in ("looped.onnx", "looped"):
        (models / name).write_bytes(other)
    (models / "bare" / "1").mkdir(parents=True)
    (models / "bare" / "1" / MODEL).write_bytes(other)
    refused: list[RefusedFolder] = []
    found = load_models(Config(models=models, pool_bytes=1 << 20), refused.append)
    assert [(each.name, each.version) for each in found] == [("branched", 1)]
    assert [each.folder for each in refused] == ["bare/1"]
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MODEL).write_bytes(onnxfiles.branched())
    manifest["sha256"][MODEL] = sha256(onnxfiles.branched())
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InvalidModelFolder):
        load(folder)


def test_a_file_that_rounds_in_batches_says_so(serve: Serve, tmp_path: Path) -> None:
    """Its manifest, the client, the metric and the command line have the difference that was
    measured; imported without a batch it is exact."""
    models = tmp_path / "models"
    path = tmp_path / "rounded.onnx"
    path.write_bytes(onnxfiles.rounded())
    parity = run_import(path, onnxfiles.PAIRS, models, "rounded").parity
    assert not parity["is_exact"]
    assert 0 < parity["difference"] < 1e-5
    run_import(path, onnxfiles.PAIRS, models, "alone", "--batch-axis", "none")
    serving = serve(models=models)
    with Client(serving.target) as client:
        alone, found = client.models()
    assert (alone.name, alone.is_exact, alone.difference) == ("alone", True, 0)
    assert not found.is_exact
    assert 0 < found.difference < 1e-5
    assert serving.metric("lstm_model_difference", model="rounded") == found.difference
    assert serving.metric("lstm_model_difference", model="alone") == 0
    lines = [line.split() for line in Shell(serving.target, tmp_path).out("models").splitlines()]
    assert lines[1][3:5] == ["network", "yes"]
    assert lines[2][3:6] == ["network", "to", f"{found.difference:.1g}"]
