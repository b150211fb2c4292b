"""Models without states served to the stock Triton client: whole sequences, whose outputs have the
rows that each graph gives.

Every answer is read by tritonclient's as_numpy, and has the bits of a plain onnxruntime session on
the model's file, one sequence at a time (tests/sequencegraphs.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmserve.rows import RowFormat, Rows
from sequencegraphs import (
    EMPTY,
    LEAST,
    NETS,
    SequenceOracle,
    make_models,
    random_rows,
    rows_of,
    write_sequences,
)
from tritonserving import MODES, Triton, request
from wire import Wire, serving

LENGTHS = [9, 4, 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the models without states; serving() adds its own."""
    folder = tmp_path_factory.mktemp("sequences")
    make_models(folder)
    write_sequences(folder, "empty", EMPTY)
    return folder


@pytest.fixture
async def wire(folder: Path) -> AsyncIterator[Wire]:
    """A server."""
    async with serving(folder) as wire:
        yield wire


def sequences(name: str, count: int = 3, length: int = 30) -> Rows:
    """Random sequences [count, length, ...] of one length."""
    return np.stack([random_rows(name, np.random.default_rng(i), length) for i in range(count)])


def whole(name: str, rows: Rows, lengths: list[int] | None = None, **others: Any) -> dict[str, Any]:
    """The request of these sequences [B, T, ...]."""
    inputs = RowFormat(NETS[name].spec.inputs).split(rows)
    if lengths is not None:
        inputs["lengths"] = np.array(lengths, np.int32)
    return request(None, model=name, inputs=inputs, **others)


def same(found: Any, wanted: Any) -> bool:
    """Of one dtype and shape, bit for bit."""
    return (found.dtype, found.shape) == (wanted.dtype, wanted.shape) and np.array_equal(
        found, wanted
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NETS)
async def test_ragged_sequences(triton: Triton, wire: Wire, name: str, mode: str) -> None:
    """The rows that each sequence gives come first, zeros after them; the parameter `lengths` says
    how many they are."""
    oracle, rows = SequenceOracle(wire.folder, name), sequences(name)
    (answer,) = await triton.run(mode, wire.target, [whole(name, rows, LENGTHS)])
    assert answer.error is None, answer.error
    counts = [rows_of(name, n) for n in LENGTHS]
    assert answer.parameters["lengths"] == ",".join(map(str, counts))
    assert list(answer.outputs) == [each.name for each in NETS[name].spec.outputs]
    for i, n in enumerate(LENGTHS):
        for key, wanted in oracle.run(rows[i, :n]).items():
            found = answer.outputs[key]
            assert found.shape == (3, max(counts), *wanted.shape[1:])
            assert same(found[i, : counts[i]], wanted)
            assert not found[i, counts[i] :].any()


async def test_the_last_rows(triton: Triton, wire: Wire) -> None:
    """NAME_last has one row of each sequence, alone and beside all rows."""
    oracle, rows = SequenceOracle(wire.folder, "convolution"), sequences("convolution")
    requests = [
        whole("convolution", rows, LENGTHS, outputs=o) for o in (["y_last"], ["y", "y_last"])
    ]
    for answer in await triton.run("one_by_one", wire.target, requests):
        assert answer.error is None, answer.error
        lasts = [oracle.run(rows[i, :n])["y"][-1] for i, n in enumerate(LENGTHS)]
        assert same(answer.outputs["y_last"], np.stack(lasts))
    assert answer.outputs["y"].shape == (3, rows_of("convolution", 30), 6)


async def test_sequences_that_give_no_row(triton: Triton, wire: Wire) -> None:
    """Beside others, and alone with an axis of 0; they have no last row, which is said with the
    sequence's index."""
    rows = np.ones((3, 6, 3), np.float32)
    asked = {"model": "empty", "inputs": {"x": rows, "lengths": np.array([6, 3, 5], np.int32)}}
    some, last, both, none = await triton.run(
        "one_by_one",
        wire.target,
        [
            request(None, **asked),
            request(None, **asked, outputs=["y_last"]),
            request(None, **asked, outputs=["y", "y_last"]),
            request(None, model="empty", inputs={"x": rows[:, :4]}),
        ],
    )
    assert some.parameters["lengths"] == "2,0,1"
    assert same(some.y[..., 0], np.array([[3, 3], [0, 0], [3, 0]], np.float32))
    for answer in (last, both):
        assert "sequence 1 gives no row of outputs" in str(answer.error)
        assert answer.status == "StatusCode.INVALID_ARGUMENT"
    assert none.parameters["lengths"] == "0,0,0"
    assert same(none.y, np.zeros((3, 0, 2), np.float32))


async def test_refusals(triton: Triton, wire: Wire) -> None:
    """A step of a sequence, a state, a shape without the axis of time and a sequence that is too
    short each get one line, and the server goes on."""
    rows, short = sequences("labels"), LEAST["labels"] - 1
    step = whole("labels", rows[:1, :1])
    step |= {"sequence_id": 7, "sequence_start": True}
    state = whole("labels", rows)
    state["inputs"]["h"] = ("float32", (3, 4), [0.0] * 12)
    flat = request(None, model="labels", inputs={"x": rows[0]})
    few = whole("labels", rows, [30, 30, short])
    texts = {
        "labels has no states: it reads whole sequences": step,
        "unexpected inference input 'h'": state,
        "must have [B, T, 3]": flat,
        f"the model failed on sequence 2, which has {short} rows": few,
    }
    answers = await triton.run("one_by_one", wire.target, [*texts.values(), whole("labels", rows)])
    for text, answer in zip(texts, answers, strict=False):
        assert text in str(answer.error)
    assert answers[0].status == "StatusCode.FAILED_PRECONDITION"
    assert answers[-1].error is None
    assert len(wire.engine.table) == 0


@pytest.mark.parametrize("name", NETS)
async def test_metadata_config_and_statistics(triton: Triton, wire: Wire, name: str) -> None:
    """Clients see whole sequences: axes of batch and time, no sequence_batching; each sequence is
    an execution."""
    await triton.run("one_by_one", wire.target, [whole(name, sequences(name))])
    metadata, config, statistics = await triton.tell(
        wire.target,
        ("get_model_metadata", {"model_name": name}),
        ("get_model_config", {"model_name": name}),
        ("get_inference_statistics", {"model_name": name}),
    )
    spec = NETS[name].spec
    for side, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        shapes = {each["name"]: list(map(int, each["shape"])) for each in metadata[side]}
        assert shapes == {each.name: [-1, -1, *each.shape] for each in tensors}
    found = config["config"]
    assert "sequence_batching" not in found
    facts = {key: each["string_value"] for key, each in found["parameters"].items()}
    assert facts["optional_inputs"] == "lengths"
    assert found["max_batch_size"] > 1
    (model,) = statistics["model_stats"]
    assert (model["inference_count"], model["execution_count"]) == ("3", "3")
