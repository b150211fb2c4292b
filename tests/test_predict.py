"""Predict over the wire: whole sequences, ragged, with states in and out, both directions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from grpc import StatusCode

from lstmserve.v1 import lstm_pb2 as pb
from modelmaking import random_input, random_state
from wire import SPECS, Wire, arrays, serving, tensors

LENGTHS = [1, 70, 3, 16]
MODELS = pytest.mark.parametrize("model", ["m", "letters", "both"])


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    """A server with small slices."""
    async with serving(tmp_path, slice_rows_max=16) as wire:
        yield wire


class Batch:
    """Random sequences of a model, and what the portable graph computes of each alone."""

    def __init__(self, wire: Wire, model: str, with_state: bool) -> None:
        spec = SPECS[model]
        path = wire.folder / model / "1" / "model.onnx"
        session = ort.InferenceSession(str(path))
        self.xs = [random_input(spec, (length,), i) for i, length in enumerate(LENGTHS)]
        self.h0, self.c0 = random_state(spec, len(LENGTHS), 7)
        if not with_state:
            self.h0, self.c0 = np.zeros_like(self.h0), np.zeros_like(self.c0)
        self.hn, self.cn = np.empty_like(self.h0), np.empty_like(self.c0)
        kind = "tokens" if spec.num_embeddings else "x"
        self.ys = []
        for i, x in enumerate(self.xs):
            one = slice(i, i + 1)
            feed = {
                kind: x[np.newaxis],
                "lengths": np.array([len(x)], np.int32),
                "h0": np.ascontiguousarray(self.h0[:, one]),
                "c0": np.ascontiguousarray(self.c0[:, one]),
            }
            y, self.hn[:, one], self.cn[:, one] = session.run(["y", "hn", "cn"], feed)
            self.ys.append(y[0])
        flat = np.concatenate(self.xs).reshape(-1)
        self.fields: dict[str, Any] = {"model": model, "lengths": LENGTHS, kind: flat}
        if with_state:
            h0, c0 = np.swapaxes(self.h0, 0, 1), np.swapaxes(self.c0, 0, 1)
            self.fields["initial"] = tensors(h=h0, c=c0)


def same(actual: Any, wanted: Any) -> bool:
    """Equal bits, whatever the shape."""
    return np.array_equal(np.array(actual, np.float32), np.asarray(wanted).reshape(-1))


@MODELS
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("last_only", [False, True])
async def test_every_layout(wire: Wire, model: str, with_state: bool, last_only: bool) -> None:
    """Ragged sequences, from zeros or given states: y, h and c are the portable graph's bits."""
    batch = Batch(wire, model, with_state)
    response = await wire.call("Predict", **batch.fields, last_only=last_only, with_state=True)
    wanted = [y[-1:] if last_only else y for y in batch.ys]
    assert same(response.y, np.concatenate(wanted))
    assert list(response.lengths) == [len(y) for y in wanted]
    final = arrays(response.final)
    assert list(final) == ["h", "c"]
    assert np.array_equal(final["h"], np.swapaxes(batch.hn, 0, 1))
    assert np.array_equal(final["c"], np.swapaxes(batch.cn, 0, 1))
    assert response.version == 1


@MODELS
async def test_without_lengths_it_is_one_sequence(wire: Wire, model: str) -> None:
    """All rows are one sequence, and states are sent only if they were asked for."""
    batch = Batch(wire, model, with_state=False)
    kind = "tokens" if model == "letters" else "x"
    response = await wire.call("Predict", model=model, **{kind: batch.xs[1].reshape(-1)})
    assert same(response.y, batch.ys[1])
    assert list(response.lengths) == [70]
    assert not response.final


async def test_nothing_is_kept(wire: Wire) -> None:
    """The same call twice gives the same reply, and a session beside it does not change."""
    batch = Batch(wire, "m", with_state=True)
    good = await wire.good()
    await good.step()
    replies = [await wire.call("Predict", **batch.fields) for _ in range(2)]
    assert replies[0].y == replies[1].y
    await good.step()
    await good.check_state()
    assert len(wire.engine.table) == 1


async def test_states_carry_over(wire: Wire) -> None:
    """The final states of a call, as the initial ones of the next, go on where it ended."""
    good = await wire.good()
    first = await wire.call("Predict", model="m", x=good.rows(20).reshape(-1), with_state=True)
    second = await wire.call("Predict", model="m", x=good.rows(30).reshape(-1), initial=first.final)
    good.check(first.y, 0)
    good.check(second.y, 1)


async def test_waiting_rows_are_bounded(tmp_path: Path) -> None:
    """predict_rows_max rows of all calls may wait, and one row more is refused with a delay."""
    limits = {"length_max": 10, "predict_rows_max": 20}
    async with serving(tmp_path, is_running=False, **limits) as wire:
        good = await wire.good()
        ten = pb.PredictRequest(model="m", x=[0.5] * 30)
        waiting = [asyncio.create_task(wire.call("Predict", ten)) for _ in range(2)]
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == 2)
        said = await wire.refused(
            "Predict", pb.PredictRequest(model="m", x=[0.5] * 3).SerializeToString()
        )
        assert (said.code, said.reason) == (StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert said.retry_s is not None
        assert said.pushback == str(round(1000 * said.retry_s))
        wire.run()
        first, second = [await each for each in waiting]
        assert first.y == second.y
        await wire.call("Predict", ten)
        await good.step()


async def test_sequences_that_wait_refuse_no_session_its_step(tmp_path: Path) -> None:
    """A Predict that fills its own queue leaves the queue of steps to the sessions."""
    async with serving(tmp_path, is_running=False, pending_steps_max=3) as wire:
        good = await wire.good()
        request = pb.PredictRequest(model="m", x=[0.5] * 9, lengths=[1, 1, 1])
        waiting = asyncio.create_task(wire.call("Predict", request))
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == 3)
        stepping = asyncio.create_task(good.step())
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == 4)
        wire.run()
        await stepping
        await waiting


@pytest.mark.parametrize("model", ["m", "both"])
async def test_a_caller_that_goes_away_frees_its_rows(wire: Wire, model: str) -> None:
    """A cancelled Predict leaves nothing behind, and the next one is right."""
    batch = Batch(wire, model, with_state=False)
    many = pb.PredictRequest(model=model, x=[0.5] * 30_000, lengths=[1000] * 10)
    for _ in range(5):
        call = asyncio.create_task(wire.call("Predict", many))
        await wire.until(lambda: wire.engine.predictor.waiting_rows > 0)
        call.cancel()
        await wire.until(lambda: wire.engine.predictor.waiting_rows == 0)
    response = await wire.call("Predict", **batch.fields)
    assert same(response.y, np.concatenate(batch.ys))
