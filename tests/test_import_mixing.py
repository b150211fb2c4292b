"""Nodes that mix sessions are found where no answer that an import tries shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmserve.golden import Golden
from lstmserve.manifest import read_model
from lstmserve_export.onnx_file.importer import import_onnx
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.streaming import Stream
from mixedfiles import APART, MIXED, MixedFile
from onnxfiles import FileOracle


def imported(file: MixedFile, folder: Path, **flags: Any) -> tuple[Stream, tuple[str, ...]]:
    """The file as it is served, and the notes of its import."""
    path = folder / "mixed.onnx"
    path.write_bytes(file.content())
    request = Request(path, "mixed", states=file.pairs, models=folder / "models", **flags)
    notes = import_onnx(request).manifest.notes
    return Stream(read_model(folder / "models", "mixed", 1).network), notes


def is_right(file: MixedFile, stream: Stream) -> bool:
    """Whether a batch gives the bits of the file, session by session and step by step."""
    rng = np.random.default_rng(16)
    count, steps = file.size, file.steps
    rows = {
        each.name: rng.integers(0, file.numbers, (count, steps, *each.shape))
        if each.dtype == "int64"
        else np.float32(file.scale * rng.standard_normal((count, steps, *each.shape)))
        for each in stream.spec.inputs
    }
    lengths = np.full(count, steps, np.int32)
    found, after = stream.answers(Golden(rows, lengths, None, {}, {}, 0.0), [0, 1, steps])
    oracle = FileOracle(file.content(), dict(pair.split(":") for pair in file.pairs))
    for row in range(count):
        states = oracle.start()
        for step in range(steps):
            wanted, states = oracle.step(states, **{n: x[row, step] for n, x in rows.items()})
            if wanted["y"].tobytes() != found["y"][row, step].tobytes():
                return False
        if any(each.tobytes() != after[name][row].tobytes() for name, each in states.items()):
            return False
    return True


@pytest.mark.parametrize("name", MIXED)
def test_sessions_get_what_the_file_gives_them_alone(name: str, tmp_path: Path) -> None:
    """The graph is rewritten, or takes one session a run."""
    file = MIXED[name]
    stream, notes = imported(file, tmp_path)
    assert is_right(file, stream)
    assert any("no batch: " in each or "operators were changed" in each for each in notes)


@pytest.mark.parametrize("name", APART)
def test_rows_that_only_seem_to_meet_stay_a_batch(name: str, tmp_path: Path) -> None:
    """Nothing is rewritten either."""
    stream, notes = imported(APART[name], tmp_path)
    assert is_right(APART[name], stream)
    assert not any("no batch: " in each or "operators were changed" in each for each in notes)


def test_an_operator_may_take_such_a_batch(tmp_path: Path) -> None:
    """A note says which node mixes rows; and the batch is wrong, as the test above must find."""
    file = MIXED["row 0 in a batch of 64"]
    stream, notes = imported(file, tmp_path, batch_axes={"x": 0, "s": 0})
    wanted = "Slice first has no values for each row, although no answer that was tried shows it"
    assert wanted in notes
    assert not is_right(file, stream)
