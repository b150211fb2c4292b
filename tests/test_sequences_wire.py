"""Models without states over the contract's own wire: Predict alone, with the rows that each graph
gives.

Every reply has the bits of a plain onnxruntime session on the model's file, one sequence at a time
(tests/sequencegraphs.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode

from lstmserve.rows import RowFormat, Rows
from lstmserve.server.observe.metrics import read_gauges
from lstmserve.tokens import Limits
from lstmserve.v1 import lstm_pb2 as pb
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
from stepgraph import Step
from wire import Wire, serving, tensors

LENGTHS = [9, 4, 30, 5, 70]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the models without states; serving() adds its own."""
    folder = tmp_path_factory.mktemp("sequences")
    make_models(folder)
    return folder


@pytest.fixture
async def wire(folder: Path) -> AsyncIterator[Wire]:
    """A server."""
    async with serving(folder) as wire:
        yield wire


def fields(name: str, xs: list[Rows]) -> dict[str, Any]:
    """The fields of a request of these sequences."""
    form, rows = RowFormat(NETS[name].spec.inputs), np.concatenate(xs)
    floats, ints = form.floats_of(rows), form.ints_of(rows)
    return {
        "model": name,
        "lengths": [len(x) for x in xs],
        "x": [] if floats is None else floats.ravel(),
        "tokens": [] if ints is None else ints.ravel(),
    }


def sequences(name: str, lengths: list[int]) -> list[Rows]:
    """Random sequences of these lengths."""
    return [random_rows(name, np.random.default_rng(i), n) for i, n in enumerate(lengths)]


def check(wire: Wire, name: str, xs: list[Rows], reply: pb.PredictResponse, **kind: bool) -> None:
    """Asserts that the reply has the bits of the oracle, and as many rows of each sequence."""
    oracle = SequenceOracle(wire.folder, name)
    ys = [oracle.rows(x)[-1:] if kind.get("last_only") else oracle.rows(x) for x in xs]
    assert list(reply.lengths) == [len(y) for y in ys]
    form, y = RowFormat(NETS[name].spec.outputs), np.concatenate(ys)
    floats, ints = form.floats_of(y), form.ints_of(y)
    assert np.array_equal(np.array(reply.y, np.float32), [] if floats is None else floats.ravel())
    assert list(reply.y_ints) == ([] if ints is None else ints.ravel().tolist())


@pytest.mark.parametrize("name", NETS)
async def test_the_model_says_that_it_takes_sequences_alone(wire: Wire, name: str) -> None:
    """GetModel and ListModels have no states, and is_streaming is false."""
    model = (await wire.call("GetModel", model=name)).model
    assert (model.spec.kind, model.spec.is_streaming) == ("network", False)
    assert not model.spec.states
    assert (model.spec.is_exact, model.spec.window) == (True, 0)
    listed = {each.name: each for each in (await wire.call("ListModels")).models}
    assert listed[name] == model


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("name", NETS)
async def test_ragged_sequences(wire: Wire, name: str, last_only: bool) -> None:
    """Each sequence has as many rows of y as its graph gives, and the last of them where it alone
    is wanted; `final` stays empty though it is asked for."""
    xs = sequences(name, LENGTHS)
    reply = await wire.call("Predict", **fields(name, xs), last_only=last_only, with_state=True)
    check(wire, name, xs, reply, last_only=last_only)
    wanted = [1 if last_only else rows_of(name, n) for n in LENGTHS]
    assert list(reply.lengths) == wanted
    assert not reply.final
    assert reply.compute_ns > 0


@pytest.mark.parametrize("name", NETS)
async def test_without_lengths_it_is_one_sequence(wire: Wire, name: str) -> None:
    """As with any model; a sequence of the fewest rows that the graph takes is served."""
    for length in (LEAST[name], 11):
        xs = sequences(name, [length])
        reply = await wire.call("Predict", **{**fields(name, xs), "lengths": []})
        check(wire, name, xs, reply)


@pytest.mark.parametrize("name", ["convolution", "labels"])
async def test_a_sequence_that_is_too_short_fails_by_its_index(wire: Wire, name: str) -> None:
    """Too few rows for a convolution, or none left for a GRU, is an error of that message alone:
    the server answers the next one."""
    xs = sequences(name, [9, LEAST[name] - 1, 9])
    request = pb.PredictRequest(**fields(name, xs))
    said = await wire.refused("Predict", request.SerializeToString())
    assert (said.code, said.reason) == (StatusCode.INTERNAL, "MODEL_ERROR")
    length = LEAST[name] - 1
    assert (
        f"failed on sequence 1, which has {length} rows: its network may need more" in said.message
    )
    check(wire, name, xs[::2], await wire.call("Predict", **fields(name, xs[::2])))
    assert wire.engine.predictor.waiting_rows == 0


async def test_a_sequence_may_give_no_row(tmp_path: Path) -> None:
    """Its length is 0, alone and beside others, and also where the last row is wanted."""
    write_sequences(tmp_path, "empty", EMPTY)
    async with serving(tmp_path) as wire:
        xs = [np.ones((n, 3), np.float32) for n in (3, 6, 4)]
        for last_only, lengths in ((False, [0, 2, 0]), (True, [0, 1, 0])):
            reply = await wire.call(
                "Predict",
                model="empty",
                lengths=[3, 6, 4],
                x=np.concatenate(xs).ravel(),
                last_only=last_only,
            )
            assert list(reply.lengths) == lengths
            assert list(reply.y) == [3.0] * 2 * sum(lengths)
        reply = await wire.call("Predict", model="empty", x=[1.0] * 9)
        assert (list(reply.lengths), list(reply.y)) == ([0], [])


DIVIDING = Step(
    NETS["labels"].spec,
    """
x -> Cast+to=7 whole
whole -> ReduceMin+axes=1,+keepdims=0 dividend
whole -> ReduceMax+axes=1,+keepdims=0 divisor
dividend divisor -> Div label
""",
    {},
    opset=17,
)


async def test_no_division_ends_the_process(tmp_path: Path) -> None:
    """The smallest int64 by -1 wraps around; by 0 the sequence fails, and the server lives."""
    write_sequences(tmp_path, "dividing", DIVIDING, shift=20)
    async with serving(tmp_path) as wire:
        low = -(2.0**63)
        reply = await wire.call("Predict", model="dividing", x=[low, -1, -1, 6, 7, 6])
        assert list(reply.y_ints) == [-(1 << 63), 0]
        request = pb.PredictRequest(model="dividing", x=[1, 2, 3, -1, -1, 0])
        said = await wire.refused("Predict", request.SerializeToString())
        assert said.reason == "MODEL_ERROR"
        await (await wire.good()).step()


async def test_sessions_are_refused_with_advice(wire: Wire) -> None:
    """OpenSession says that the model takes whole sequences, and how streams are served."""
    request = pb.OpenSessionRequest(model="answer")
    said = await wire.refused("OpenSession", request.SerializeToString())
    assert (said.code, said.reason) == (StatusCode.FAILED_PRECONDITION, "MODEL_NOT_STEPPABLE")
    assert "answer has no states: it reads whole sequences, use Predict" in said.message
    assert "import it with --window W" in said.message
    both = await wire.refused(
        "OpenSession", pb.OpenSessionRequest(model="both").SerializeToString()
    )
    assert "both is bidirectional" in both.message
    assert len(wire.engine.table) == 0


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "an initial state": (
        {"x": [1.0] * 3, "initial": tensors(h=np.zeros((1, 4)))},
        "BAD_TENSOR",
        "it has no states",
    ),
    "NaN": ({"x": [np.nan] * 3}, "NON_FINITE", "NaN"),
    "half a row": ({"x": [1.0] * 4}, "BAD_TENSOR", "no multiple of 3"),
    "tokens": ({"tokens": [1]}, "BAD_TENSOR", "takes x, not tokens"),
    "no rows": ({}, "EMPTY_INPUT", "there are no rows"),
    "a length of 0": ({"x": [1.0] * 3, "lengths": [1, 0]}, "EMPTY_INPUT", "there are no rows"),
    "other lengths": ({"x": [1.0] * 3, "lengths": [2]}, "BAD_TENSOR", "must have 2 x 3"),
    "too long": ({"x": [1.0] * 3 * 101}, "TOO_LONG", "101 rows, at most 100"),
    "too many": ({"x": [1.0] * 3 * 9, "lengths": [1] * 9}, "TOO_LONG", "9 sequences, at most 8"),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_requests(folder: Path, case: str) -> None:
    """Each gets the error of any model's Predict, and the next request is answered."""
    given, reason, text = BAD[case]
    async with serving(folder, length_max=100, pending_steps_max=8) as wire:
        request = pb.PredictRequest(model="attention", **given)
        said = await wire.refused("Predict", request.SerializeToString())
        assert said.reason == reason
        assert text in said.message
        xs = sequences("attention", [100])
        check(wire, "attention", xs, await wire.call("Predict", **fields("attention", xs)))


async def test_rows_count_against_the_limits(folder: Path) -> None:
    """--predict-rows-max and a tenant's rows a second are of the input's rows, at the limit and
    one beyond it."""
    xs = sequences("answer", [10, 11])
    async with serving(folder, length_max=20, predict_rows_max=21) as wire:
        check(wire, "answer", xs, await wire.call("Predict", **fields("answer", xs)))
        request = pb.PredictRequest(**fields("answer", sequences("answer", [11, 11])))
        said = await wire.refused("Predict", request.SerializeToString())
        assert (said.reason, "22 rows, at most 21" in said.message) == ("TOO_LONG", True)
    async with serving(folder, limits=Limits(rows_per_s=21)) as wire:
        check(wire, "answer", xs, await wire.call("Predict", **fields("answer", xs)))
        said = await wire.refused(
            "Predict", pb.PredictRequest(**fields("answer", xs[:1])).SerializeToString()
        )
        assert said.reason == "QUOTA"


async def test_metrics_count_runs_and_rows(wire: Wire) -> None:
    """Each sequence is a batch of one; the model has no slots, and no bytes of the pool."""
    xs = sequences("answer", [4, 6])
    before = wire.metrics.model("answer", 1).runs
    assert not before
    await wire.call("Predict", **fields("answer", xs))
    counts = wire.metrics.model("answer", 1)
    assert {size: runs for size, (runs, _) in counts.runs.items()} == {1: 2}
    gauges = next(each for labels, each in read_gauges(wire.engine).items() if "answer" in labels)
    assert (gauges.slots_used, gauges.slots_free, gauges.pool_bytes_charged) == (0, 0, 0)


@pytest.mark.parametrize("name", NETS)
async def test_sequences_beside_sessions(wire: Wire, name: str) -> None:
    """Many calls at once, and a session that steps meanwhile: all have their own answers."""
    good = await wire.good()
    batches = [sequences(name, [4 + i, 9]) for i in range(8)]
    calls = [wire.call("Predict", **fields(name, xs)) for xs in batches]
    replies, _ = await asyncio.gather(asyncio.gather(*calls), good.step(3))
    await good.step()
    for xs, reply in zip(batches, replies, strict=True):
        check(wire, name, xs, reply)
    await good.check_state()


async def test_a_caller_that_goes_away_frees_its_rows(wire: Wire) -> None:
    """A cancelled Predict leaves nothing behind, and the next one is right."""
    many = pb.PredictRequest(**fields("attention", sequences("attention", [500] * 20)))
    for _ in range(3):
        call = asyncio.create_task(wire.call("Predict", many))
        await wire.until(lambda: wire.engine.predictor.waiting_rows > 0)
        call.cancel()
        await wire.until(lambda: wire.engine.predictor.waiting_rows == 0)
    xs = sequences("attention", [7])
    check(wire, "attention", xs, await wire.call("Predict", **fields("attention", xs)))
