"""The manifest of a network names its recurrent layers, and only what its step graph has."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import stepgraph
from lstmserve.manifest import MANIFEST, InvalidModelFolder, Manifest, read_model
from lstmserve.spec import InvalidSpec, Tap
from modelmaking import make_model
from stepgraph import SPEC, build, make_golden

RNN = Tap("core.rnn", 1, "rnn", "x", ("h",), {"W": "w", "R": "r", "B": "half"})
LSTM = Tap("encoder.0", 0, "lstm", "floats", ("h", "mean"), {"W": "w", "R": "r", "P": "out"})
PARITY = {
    "rows": 200,
    "seed": 7,
    "torch_error": 1.5e-7,
    "onnx_error": 2.5e-7,
    "excess": {"example": 0.02, "random": 0.1},
    "is_exact": False,
    "difference": 6e-8,
}


def write(folder: Path, *taps: Tap) -> Path:
    """The hand-made network with taps and a report of its proof."""
    return stepgraph.write(folder, SPEC, build(), make_golden(0), taps=taps, parity=PARITY)


def test_taps_and_parity_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Of two layers, and of none, which a network that was made by hand has."""
    for name, taps in (("two", (RNN, LSTM)), ("none", ())):
        folder = write(tmp_path / name, *taps)
        manifest = read_model(tmp_path / name, "n", 1).manifest
        assert manifest.taps == taps
        assert manifest.parity == PARITY
        assert Manifest.from_json(manifest.to_json()) == manifest
        assert len(json.loads((folder / MANIFEST).read_text())["taps"]) == len(taps)


def test_a_tap_of_an_export_is_written_as_ever() -> None:
    """Earlier releases refuse fields that they do not know."""
    assert set(RNN.to_json()) == {"layer", "index", "kind", "input", "states", "weights"}


def test_a_manifest_without_taps_is_read(tmp_path: Path) -> None:
    """So networks look that other tools wrote."""
    folder = write(tmp_path)
    values = json.loads((folder / MANIFEST).read_text())
    del values["taps"]
    (folder / MANIFEST).write_text(json.dumps(values))
    assert read_model(tmp_path, "n", 1).manifest.taps == ()


MISSING: dict[str, tuple[str, Tap]] = {
    "input": ("tap 'core.rnn' 1: model.onnx has no value 'z'", replace(RNN, input="z")),
    "input that is a weight": ("model.onnx has no value 'w'", replace(RNN, input="w")),
    "weight": (
        "tap 'core.rnn' 1: model.onnx has no weight 'u'",
        replace(RNN, weights={"W": "w", "R": "u"}),
    ),
    "weight that is a value": (
        "model.onnx has no weight 'floats'",
        replace(RNN, weights={"W": "w", "R": "floats"}),
    ),
    "state": ("'c' is no float state of the spec", replace(RNN, states=("c",))),
    "state of integers": ("'count' is no float state", replace(RNN, states=("count",))),
    "layer": ("the state 'h' has no layer 2", replace(RNN, index=2)),
    "layer of a flat state": ("the state 'mean' has no layer 1", replace(LSTM, index=1)),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_the_step_graph_lacks_is_refused(tmp_path: Path, name: str) -> None:
    """In one line, which names the tap, what is missing, and what to do."""
    says, tap = MISSING[name]
    folder = write(tmp_path, LSTM, tap)
    with pytest.raises(InvalidModelFolder) as caught:
        read_model(tmp_path, "n", 1)
    line = str(caught.value)
    assert line.startswith(f"{folder}: tap ")
    assert says in line
    assert line.endswith("export the model again")
    assert "\n" not in line


Edit = Callable[[dict[str, Any]], Any]
MALFORMED: dict[str, tuple[str, Edit]] = {
    "kind": ("'tree' is not one of lstm, gru, rnn", lambda tap: tap.update(kind="tree")),
    "kind of no kind": ("malformed tap", lambda tap: tap.update(kind=["rnn"])),
    "layer": ("must be a name and a number", lambda tap: tap.update(layer=3)),
    "index": ("must be a name and a number", lambda tap: tap.update(index=-1)),
    "flag as an index": ("must be a name and a number", lambda tap: tap.update(index=True)),
    "input": ("must be names", lambda tap: tap.update(input=None)),
    "states": ("rnn has 1 states, not 2", lambda tap: tap.update(states=["h", "mean"])),
    "number of states": ("malformed tap", lambda tap: tap.update(states=2)),
    "weights": ("unknown weights Q", lambda tap: tap["weights"].update(Q="w")),
    "no weight": ("no weights R", lambda tap: tap["weights"].pop("R")),
    "list of weights": ("malformed tap", lambda tap: tap.update(weights=["W", "R"])),
    "weight of no name": ("must be names", lambda tap: tap["weights"].update(R=1)),
    "another field": ("malformed tap", lambda tap: tap.update(gates="ifgo")),
    "no field": ("malformed tap", lambda tap: tap.pop("input")),
    "values and states": ("states, and values", lambda tap: tap.update(before=["a"], after=["b"])),
    "values before alone": ("1 values, not 0", lambda tap: tap.update(states=[], before=["a"])),
    "too many values": (
        "rnn has 1 values, not 2",
        lambda tap: tap.update(states=[], before=["a", "c"], after=["b"]),
    ),
    "values of no name": (
        "must be names",
        lambda tap: tap.update(states=[], before=[""], after=["b"]),
    ),
    "number of values": ("malformed tap", lambda tap: tap.update(before=1)),
    "a flag as text": ("must be a flag", lambda tap: tap.update(linear_before_reset="no")),
    "a place of no name": ("and inside a name", lambda tap: tap.update(inside=3)),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_taps_are_refused(tmp_path: Path, name: str) -> None:
    """On their own, and in a manifest."""
    says, edit = MALFORMED[name]
    values = RNN.to_json()
    edit(values)
    with pytest.raises(InvalidSpec, match=says):
        Tap.from_json(values)
    content = json.loads((write(tmp_path) / MANIFEST).read_text()) | {"taps": [values]}
    with pytest.raises(InvalidModelFolder, match=f"manifest.json is malformed: .*{says}"):
        Manifest.from_json(json.dumps(content))


@pytest.mark.parametrize("taps", [{}, [3], ["tap"], None])
def test_taps_are_a_list_of_objects(tmp_path: Path, taps: Any) -> None:
    """Anything else is refused as malformed."""
    content = json.loads((write(tmp_path) / MANIFEST).read_text()) | {"taps": taps}
    with pytest.raises(InvalidModelFolder, match=r"manifest\.json is malformed"):
        Manifest.from_json(json.dumps(content))


def test_kind_lstm_has_no_taps(tmp_path: Path) -> None:
    """Its layers are those of its spec, and its manifest stays as the first edition wrote it."""
    make_model(tmp_path)
    manifest = read_model(tmp_path, "tiny", 1).manifest
    values = json.loads(manifest.to_json())
    assert "taps" not in values
    with pytest.raises(InvalidModelFolder, match="taps, which kind lstm does not have"):
        Manifest.from_json(json.dumps(values | {"taps": [RNN.to_json()]}))
