"""Models with a window served to the stock Triton client: outputs with an axis of 0 until the
window is full, `missing_rows` in the parameters, states, whole sequences.

Every answer is read by tritonclient's as_numpy, and has the bits of a plain onnxruntime session on
the rows of one window (tests/windowed.py).
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmserve.rows import RowFormat, Rows
from lstmserve.spec import KNOWN, NEXT
from serving import Serve
from tritonserving import MODES, Answer, Triton, request
from windowed import SPECS, TOKENS, W, WindowOracle, make_models, random_rows
from wire import Wire, serving

CUTS = [1, 2, 1, 3, 1]  # lengths of the chunks of a sequence; the window is full within the fourth


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the windowed models; serving() adds its own."""
    folder = tmp_path_factory.mktemp("windows")
    make_models(folder)
    return folder


@pytest.fixture
async def wire(folder: Path) -> AsyncIterator[Wire]:
    """A server."""
    async with serving(folder) as wire:
        yield wire


def chunk(name: str, rows: Rows, sequence: int | str, *axes: int, **others: Any) -> dict[str, Any]:
    """A request of a chunk, whose inputs have these axes before their own; [T] where none is
    given."""
    states = others.pop("states", {})
    shape = axes or (len(rows),)
    inputs = {
        key: values.reshape(*shape, *values.shape[1:])
        for key, values in RowFormat(SPECS[name].inputs).split(rows).items()
    }
    return request(None, sequence, model=name, inputs={**inputs, **states}, **others)


def chunks(
    name: str, rows: Rows, sequence: int | str, *, has_end: bool = True
) -> list[dict[str, Any]]:
    """A sequence in the chunks of CUTS; every other one has a batch axis."""
    found, start = [], 0
    for i, length in enumerate(CUTS):
        part = rows[start : start + length]
        axes = (1, length) if i % 2 else (length,)
        is_last = i == len(CUTS) - 1
        found.append(chunk(name, part, sequence, *axes, start=i == 0, end=is_last and has_end))
        start += length
    return found


def check(name: str, oracle: WindowOracle, rows: Rows, answers: list[Answer]) -> None:
    """Each answer has the rows of its chunk that have a whole window, in the chunk's axes."""
    start = 0
    for i, answer in enumerate(answers):
        assert answer.error is None, answer.error
        stop = start + CUTS[i]
        wanted = oracle.run(rows[:stop], start)
        lead = (1, len(wanted.y)) if i % 2 else (len(wanted.y),)
        named = RowFormat(SPECS[name].outputs).split(wanted.y)
        assert list(answer.outputs) == list(named)
        for key, each in named.items():
            assert same(answer.outputs[key], each.reshape(*lead, *each.shape[1:]))
        if SPECS[name].waits:
            assert answer.parameters["missing_rows"] == wanted.missing_rows
        else:
            assert "missing_rows" not in answer.parameters
        start = stop


def same(found: Any, wanted: Any) -> bool:
    """Of one dtype and shape, bit for bit."""
    return (found.dtype, found.shape) == (wanted.dtype, wanted.shape) and np.array_equal(
        found, wanted
    )


@pytest.mark.parametrize("name", SPECS)
async def test_sequences(triton: Triton, wire: Wire, name: str) -> None:
    """A sequence in chunks of any lengths, with and without a batch axis, has outputs with an axis
    of 0 until its window is full."""
    rows = random_rows(name, np.random.default_rng(1), sum(CUTS))
    answers = await triton.run("one_by_one", wire.target, chunks(name, rows, 1))
    check(name, WindowOracle(wire.folder, name), rows, answers)
    assert len(wire.engine.table) == 0


@pytest.mark.parametrize("mode", MODES)
async def test_every_way_to_call(triton: Triton, wire: Wire, mode: str) -> None:
    """Unary, callbacks, streams and asyncio read an output without values."""
    rows = random_rows("net", np.random.default_rng(2), sum(CUTS))
    answers = await triton.run(mode, wire.target, chunks("net", rows, "s"))
    check("net", WindowOracle(wire.folder, "net"), rows, answers)


@pytest.mark.parametrize("axes", [(1,), (1, 1)])
async def test_the_shapes_of_nothing(triton: Triton, wire: Wire, axes: tuple[int, ...]) -> None:
    """With and without a batch axis: an output without a row has an axis of 0, and the last row of
    none is [0, *shape]; a whole window has the axes of the input again."""
    rows = random_rows("net", np.random.default_rng(3), W)
    asked = [["score", "best", "score_last", "best_last"], ["best_last", "score_last"]]
    requests = [
        chunk("net", rows[t : t + 1], 1, *axes, start=t == 0, outputs=asked[t % 2])
        for t in range(W)
    ]
    for t, answer in enumerate(await triton.run("one_by_one", wire.target, requests)):
        assert answer.error is None, answer.error
        assert answer.parameters["missing_rows"] == W - 1 - t
        is_full = t == W - 1
        lead = axes if is_full else (*axes[:-1], 0)
        last = axes[:-1] if is_full else (0,)
        shapes = {"score": (*lead, 3), "best": lead, "score_last": (*last, 3), "best_last": last}
        assert {key: each.shape for key, each in answer.outputs.items()} == {
            key: shapes[key] for key in asked[t % 2]
        }


async def test_one_row_without_an_axis(triton: Triton, wire: Wire) -> None:
    """x [I] gives y [0, O] until the window is full, and y [O] then, as y_last does."""
    rows = random_rows("wait", np.random.default_rng(4), W + 1)
    oracle = WindowOracle(wire.folder, "wait")
    requests = [
        request(row, 1, model="wait", start=t == 0, outputs=[["y"], ["y_last"]][t % 2])
        for t, row in enumerate(rows)
    ]
    answers = await triton.run("one_by_one", wire.target, requests)
    for t, answer in enumerate(answers):
        y = oracle.run(rows[: t + 1], t).y
        wanted = y[0] if len(y) else y
        assert same(answer.outputs[["y", "y_last"][t % 2]], wanted)


@pytest.mark.parametrize("has_batch_axis", [True, False])
@pytest.mark.parametrize("name", ["wait", "net", "tokens", "zeros"])
async def test_states(triton: Triton, wire: Wire, name: str, has_batch_axis: bool) -> None:
    """A request may ask for the window as NAME.next, and a START that gives it as NAME goes on from
    there, also before it is full."""
    oracle = WindowOracle(wire.folder, name)
    rows = random_rows(name, np.random.default_rng(5), 2 + W)
    outputs = [each.name for each in SPECS[name].outputs]
    states = [each.name for each in SPECS[name].states]
    axes = (1, 2) if has_batch_axis else (2,)
    asked = [*(each + NEXT for each in states), *outputs]
    (first,) = await triton.run(
        "stream",
        wire.target,
        [chunk(name, rows[:2], 1, *axes, start=True, end=True, outputs=asked)],
    )
    assert first.error is None, first.error
    given = {}
    for key, wanted in oracle.states(rows[:2]).items():
        given[key] = first.outputs[key + NEXT]
        assert same(given[key], wanted[np.newaxis] if has_batch_axis else wanted)
    given = {key: each if each.shape else each.reshape(1) for key, each in given.items()}
    (after,) = await triton.run(
        "stream", wire.target, [chunk(name, rows[2:], 2, start=True, end=True, states=given)]
    )
    assert after.error is None, after.error
    for key, wanted in RowFormat(SPECS[name].outputs).split(oracle.run(rows, 2).y).items():
        assert same(after.outputs[key], wanted)


BAD_STATES: dict[str, tuple[str, dict[str, Any], str]] = {
    "too many rows": ("wait", {KNOWN: np.array([W])}, f"must be in [0, {W - 1}]"),
    "a negative length": ("net", {KNOWN: np.array([-1])}, KNOWN),
    "NaN": (
        "wait",
        {"x.window": np.full((W - 1, 3), np.nan, np.float32)},
        "x.window has NaN or infinite values",
    ),
    "a token too large": (
        "tokens",
        {"tokens.window": np.full(W - 1, TOKENS)},
        f"a token of tokens.window is not in [0, {TOKENS})",
    ),
    "h0": ("wait", {"h0": np.zeros((2, 5), np.float32)}, "unexpected inference input 'h0'"),
}


@pytest.mark.parametrize("case", BAD_STATES)
async def test_bad_states(triton: Triton, wire: Wire, case: str) -> None:
    """A START and a request of whole sequences refuse a state that no session can have; nothing
    lives afterwards."""
    name, changed, text = BAD_STATES[case]
    rows = random_rows(name, np.random.default_rng(6), 2)
    states = {each.name: np.zeros(each.shape, each.dtype) for each in SPECS[name].states}
    given = {key: each if each.shape else each.reshape(1) for key, each in states.items()} | changed
    batch = {key: each if key == KNOWN else each[np.newaxis] for key, each in given.items()}
    requests = [
        chunk(name, rows, 1, start=True, states=given),
        chunk(name, rows, 0, 1, 2, states=batch),
    ]
    for answer in await triton.run("one_by_one", wire.target, requests):
        assert text in str(answer.error)
        assert answer.status == "StatusCode.INVALID_ARGUMENT"
    assert len(wire.engine.table) == 0


@pytest.mark.parametrize("name", SPECS)
async def test_whole_sequences(triton: Triton, wire: Wire, name: str) -> None:
    """Sequences of many lengths: the rows that each gives come first, zeros after them, and the
    parameter `lengths` says how many they are."""
    lengths, longest, oracle = [9, 2, W], 9, WindowOracle(wire.folder, name)
    rows = [random_rows(name, np.random.default_rng(i), longest) for i in range(3)]
    inputs = RowFormat(SPECS[name].inputs).split(np.stack(rows))
    inputs["lengths"] = np.array(lengths, np.int32)
    (answer,) = await triton.run(
        "one_by_one", wire.target, [request(None, model=name, inputs=inputs)]
    )
    assert answer.error is None, answer.error
    wanted = [oracle.run(each[:n]).y for each, n in zip(rows, lengths, strict=True)]
    counts = [len(each) for each in wanted]
    if SPECS[name].waits:
        assert counts == [5, 0, 1]
        assert answer.parameters["lengths"] == "5,0,1"
    for i, y in enumerate(wanted):
        for key, each in RowFormat(SPECS[name].outputs).split(y).items():
            found = answer.outputs[key]
            assert found.shape[:2] == (3, max(counts))
            assert same(found[i, : len(y)], each)
            assert not found[i, len(y) :].any()


async def test_whole_sequences_without_any_row(triton: Triton, wire: Wire) -> None:
    """All shorter than the window: [B, 0, *shape]; where only the last time step is asked for, it
    is refused, since each sequence has a place for one."""
    rows = np.stack([random_rows("wait", np.random.default_rng(i), 2) for i in range(3)])
    none, refused, states, last = await triton.run(
        "one_by_one",
        wire.target,
        [
            request(rows, model="wait"),
            request(rows, model="wait", outputs=["y_last"]),
            request(rows, model="wait", outputs=["window.length.next"]),
            request(
                rows,
                model="wait",
                outputs=["y_last"],
                inputs={
                    "x.window": np.zeros((3, W - 1, 3), np.float32),
                    KNOWN: np.array([W - 2, W - 1, W - 1]),
                },
            ),
        ],
    )
    assert same(none.y, np.zeros((3, 0, 2), np.float32))
    assert none.parameters["lengths"] == "0,0,0"
    assert f"sequence 0 has 2 rows, too few for a window of {W}" in str(refused.error)
    assert refused.status == "StatusCode.INVALID_ARGUMENT"
    assert states.outputs["window.length.next"].tolist() == [2, 2, 2]
    assert last.outputs["y_last"].shape == (3, 2)


async def test_the_metadata_and_config_are_those_of_a_sequence(triton: Triton, wire: Wire) -> None:
    """Clients see inputs and outputs as of any model, the window among the parameters, and its
    states by name; a bidirectional model with a window takes sequences."""
    for name, spec in SPECS.items():
        metadata, config = await triton.tell(
            wire.target,
            ("get_model_metadata", {"model_name": name}),
            ("get_model_config", {"model_name": name}),
        )
        assert [each["name"] for each in metadata["outputs"]] == [e.name for e in spec.outputs]
        found = config["config"]
        states = found["sequence_batching"]["state"]
        assert [each["input_name"] for each in states] == [each.name for each in spec.states]
        assert [each["output_name"] for each in states] == [e.name + NEXT for e in spec.states]
        facts = {key: each["string_value"] for key, each in found["parameters"].items()}
        assert (facts["window"], facts["window_fill"]) == (str(W), spec.window_fill)
        assert found["max_batch_size"] == 1
    (plain,) = await triton.tell(wire.target, ("get_model_config", {"model_name": "m"}))
    assert "window" not in plain["config"]["parameters"]


async def test_a_window_outlives_kill_9(
    triton: Triton, serve: Serve, folder: Path, tmp_path: Path
) -> None:
    """With a store a sequence goes on before and after its window is full, and a repeat says the
    same `missing_rows`."""
    flags = ("--store", f"file:{tmp_path / 'store'}")
    rows = random_rows("net", np.random.default_rng(8), sum(CUTS))
    requests = chunks("net", rows, "kept", has_end=False)
    for number, each in enumerate(requests, 1):
        each["parameters"] = {"step": number}
    answers: list[Answer] = []
    for some in (requests[:2], requests[2:3], requests[3:]):
        server = serve(*flags, models=folder)
        if answers:
            last = requests[len(answers) - 1]
            (again,) = await triton.run("one_by_one", server.target, [last])
            assert again.parameters["replayed"] is True
            assert again.parameters["missing_rows"] == answers[-1].parameters["missing_rows"]
            for key, values in answers[-1].outputs.items():
                assert same(again.outputs[key], values)
        answers += await triton.run("stream", server.target, some)
        server.signal(signal.SIGKILL)
        server.wait()
    check("net", WindowOracle(folder, "net"), rows, answers)
