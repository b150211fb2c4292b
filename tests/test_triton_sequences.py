"""Sequences of the stock Triton client, sent in every way, compared with whole sequences.

The scenarios are those of Triton's own suites for sequences and implicit state that can fail here.
"""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import numpy as np
import pytest
import structlog

from lstmserve.engine.clock import SECOND_NS
from lstmserve.v1 import lstm_pb2 as native
from scenarios import check, folder, inputs, rows, sequence, shuffled, wanted
from tritonserving import MODES, STREAMS, Triton, request
from wire import Wire, serving

__all__ = ["folder"]  # a fixture

MUST_START = "must specify the START flag on the first request of the sequence"


def closings(wire: Wire) -> dict[str, int]:
    """How sessions of "m" have ended, without zeros."""
    return {reason: n for reason, n in wire.metrics.model("m", 1).closings.items() if n}


@pytest.mark.parametrize("mode", MODES)
async def test_simple_ragged_skip_batch_and_preserved_order(
    triton: Triton, folder: Path, mode: str
) -> None:
    """Sequences with integer and text ids and steps of any length, sometimes none, are exact, and a
    stream's replies come in the order of its requests."""
    ids: list[int | str] = [1, "1", 2**63 - 1, "Ω/ü 💧%41" * 11, "a" * 128]
    async with serving(folder) as wire:
        xs = {each: inputs(8, i) for i, each in enumerate(ids)}
        requests = shuffled([sequence(xs[each], each) for each in ids], seed=len(mode))
        answers = await triton.run(mode, wire.target, requests)
        assert [each.id for each in answers] == [each["request_id"] for each in requests]
        for each in ids:
            mine = [a for a, r in zip(answers, requests, strict=True) if r["sequence_id"] == each]
            check(wire, xs[each], mine)
            assert [a.parameters["step"] for a in mine] == list(range(1, 9))
            assert len({a.parameters["incarnation"] for a in mine}) == 1
        assert len(wire.engine.table) == 0
        assert closings(wire) == {"client": len(ids)}


@pytest.mark.parametrize("mode", ["one_by_one", "stream"])
async def test_length1(triton: Triton, folder: Path, mode: str) -> None:
    """START and END in one request, repeated under one id, begin at zero each time."""
    xs = inputs(6, 1)
    async with serving(folder) as wire:
        requests = [request(x, 7, start=True, end=True) for x in xs]
        for x, each in zip(xs, await triton.run(mode, wire.target, requests), strict=True):
            check(wire, [x], [each])
        assert closings(wire) == {"client": len(xs)}


async def test_int_text_and_native_ids_are_distinct(triton: Triton, folder: Path) -> None:
    """42, "42", the native 42 and 42 of another model are different sessions."""
    async with serving(folder) as wire:
        mine = [inputs(3, 1), inputs(3, 2)]
        letters = [rows(2, n, "letters") for n in range(3)]
        good = await wire.open(session_id="42")
        x = rows(1, 9)
        requests = shuffled(
            [
                sequence(mine[0], 42, has_end=False),
                sequence(mine[1], "42", has_end=False),
                sequence(letters, 42, has_end=False, model="letters"),
            ],
            seed=1,
        )
        answers = await triton.run("stream", wire.target, requests)
        for sequence_id, xs, model in ((42, mine[0], "m"), ("42", mine[1], "m")):
            of = [
                a
                for a, r in zip(answers, requests, strict=True)
                if r["sequence_id"] == sequence_id and r["model_name"] == model
            ]
            check(wire, xs, of)
        of = [a for a in answers if a.model == ("letters", "1")]
        check(wire, letters, of, "letters")
        stepped = await wire.call("Step", session_id=good.id, x=x.ravel())
        assert np.array_equal(np.array(stepped.y, np.float32), wanted(wire, [x])[0][0])
        listed = (await wire.call("ListSessions")).sessions
        assert sorted(each.id for each in listed) == [
            "42",
            "kserve/letters/int/42",
            "kserve/m/int/42",
            "kserve/m/str/42",
        ]


async def test_no_correlation_id(triton: Triton, folder: Path) -> None:
    """Without an id a step is refused, whole sequences are answered, and nothing is kept."""
    x = rows(4, 1)
    whole = np.stack([x, rows(4, 2)])
    lengths = {"lengths": np.array([4, 2], np.int32)}
    async with serving(folder) as wire:
        step, batch = await triton.run(
            "one_by_one", wire.target, [request(x, start=True), request(whole, inputs=lengths)]
        )
        assert step.status == "StatusCode.INVALID_ARGUMENT"
        assert step.error is not None
        assert "non-zero or non-empty sequence_id" in step.error
        assert np.array_equal(batch.y[0], wanted(wire, [x])[0])
        assert np.array_equal(batch.y[1, :2], wanted(wire, [whole[1, :2]])[0])
        assert not batch.y[1, 2:].any()
        assert len(wire.engine.table) == 0


async def test_no_sequence_start(triton: Triton, folder: Path) -> None:
    """Without START a new id is refused in Triton's words, and one that has ended in other
    words."""
    async with serving(folder) as wire:
        first, *_, late = await triton.run(
            "one_by_one",
            wire.target,
            [request(rows(1, 0), 5), *sequence(inputs(3, 1), 5), request(rows(1, 0), 5)],
        )
        assert MUST_START in str(first.error)
        assert first.status == "StatusCode.NOT_FOUND"
        assert "has ended" in str(late.error)
        assert late.status == "StatusCode.FAILED_PRECONDITION"


@pytest.mark.parametrize("mode", ["one_by_one", "stream", "asyncio_stream"])
async def test_no_sequence_end(triton: Triton, folder: Path, mode: str) -> None:
    """START on a live id: all requests of the old sequence are answered, and then the id is new."""
    old, new = inputs(5, 1), inputs(4, 2)
    async with serving(folder) as wire:
        with structlog.testing.capture_logs() as lines:
            answers = await triton.run(
                mode,
                wire.target,
                [*sequence(old, 5, has_end=False), *sequence(new, 5), *sequence(old, 5)],
            )
        check(wire, old, answers[:5])
        check(wire, new, answers[5:9])
        check(wire, old, answers[9:])
        assert closings(wire) == {"replaced": 1, "client": 2}
        warnings = [line for line in lines if line["log_level"] == "warning"]
        assert [(line["event"], line["model"]) for line in warnings] == [
            ("sequence replaced: START came before END", "m")
        ]
        assert warnings[0]["session"] != "5", "ids are not in the log"


async def test_restart_can_be_refused(triton: Triton, folder: Path) -> None:
    """With restart=false START changes nothing on a live id, and starts one that is free."""
    xs, kept = inputs(3, 1), {"parameters": {"restart": False}}
    async with serving(folder) as wire:
        requests = sequence(xs, "a")
        requests[0] |= kept
        requests.insert(1, request(rows(1, 9), "a", start=True, **kept))
        answers = await triton.run("one_by_one", wire.target, requests)
        assert answers[1].status == "StatusCode.ALREADY_EXISTS"
        assert "is live" in str(answers.pop(1).error)
        check(wire, xs, answers)
        assert closings(wire) == {"client": 1}


async def test_backlog_fill(triton: Triton, folder: Path) -> None:
    """When all places are taken, START is refused at once with its reason, until a sequence
    ends."""
    settings = {"batch_sessions_max": 16, "batches_in_flight_max": 1, "long_steps_max": 16}
    async with serving(folder, pool_bytes=18_000, **settings) as wire:
        count = wire.engine.model("m", 0).sessions_max
        assert 1 < count < 60
        xs = inputs(2, 1)
        starts = [request(xs[0], each, start=True) for each in range(1, count + 1)]
        assert [a.error for a in await triton.run("stream", wire.target, starts)] == [None] * count
        refused, ended, started = await triton.run(
            "one_by_one",
            wire.target,
            [
                request(xs[0], "new", start=True),
                request(xs[1], 1, end=True),
                request(xs[0], "new", start=True),
            ],
        )
        assert refused.status == "StatusCode.RESOURCE_EXHAUSTED"
        assert f"all {count} sessions of m:1 are in use" in str(refused.error)
        assert np.array_equal(ended.y, wanted(wire, xs)[1])
        check(wire, xs[:1], [started])


@pytest.mark.parametrize("has_end", [True, False])
@pytest.mark.parametrize("mode", STREAMS)
async def test_backlog_same_correlation_id(
    triton: Triton, folder: Path, mode: str, has_end: bool
) -> None:
    """Sequences one after the other under one id, sent before any is computed, are whole."""
    sequences = [inputs(n, n) for n in (4, 1, 3, 2)]
    requests = [each for xs in sequences for each in sequence(xs, "same", has_end=has_end)]
    async with serving(folder, is_running=False) as wire:
        running = asyncio.create_task(triton.run(mode, wire.target, requests))
        await wire.until(lambda: wire.engine.batch_loop.pending_steps > 0)
        wire.run()
        answers = await running
        for xs in sequences:
            check(wire, xs, [answers.pop(0) for _ in xs])
        ends = {"client": 4} if has_end else {"replaced": 3}
        assert closings(wire) == ends


async def test_backlog_sequence_timeout(triton: Triton, folder: Path) -> None:
    """A sequence whose time to live is over gets an error that says so, and its id is free."""
    xs = inputs(3, 1)
    async with serving(folder, session_ttl_s=100) as wire:
        requests = sequence(xs, 5, has_end=False)
        check(wire, xs[:2], await triton.run("one_by_one", wire.target, requests[:2]))
        wire.clock.ahead_ns += 101 * SECOND_NS
        (expired,) = await triton.run("one_by_one", wire.target, requests[2:])
        assert expired.status == "StatusCode.NOT_FOUND"
        assert "has expired" in str(expired.error)
        check(wire, xs, await triton.run("one_by_one", wire.target, requests))
        assert closings(wire) == {"expired": 1}


async def test_timeout_of_a_request(triton: Triton, folder: Path) -> None:
    """A step that waits longer than its timeout is not applied, nor are those after it, but the
    steps before it and other sequences are."""
    xs, other = inputs(4, 1), inputs(2, 2)
    async with serving(folder, is_running=False) as wire:
        requests = sequence(xs, 1, has_end=False) + sequence(other, 2)
        requests[2]["timeout"] = 5_000_000
        running = asyncio.create_task(triton.run("stream", wire.target, requests))
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == 2)
        wire.clock.ahead_ns += 10 * SECOND_NS
        wire.run()
        answers = await running
        check(wire, xs[:2], answers[:2])
        check(wire, other, answers[4:])
        late, behind = answers[2:4]
        assert late.error == (
            "[request id: 1-2, sequence id: 1] the deadline passed before the step was computed"
        )
        assert "[request id: 1-3, sequence id: 1] an earlier step" in str(behind.error)
        again = [request(x, 1, end=x is xs[3]) for x in xs[2:]]
        answers[2:4] = await triton.run("one_by_one", wire.target, again)
        check(wire, xs, answers[:4])


@pytest.mark.parametrize("mode", MODES)
async def test_grpc_deadline(triton: Triton, folder: Path, mode: str) -> None:
    """A call or stream whose deadline passes is cancelled, none of it was applied, and a START
    leaves no sequence."""
    xs = inputs(2, 1)
    deadline = {("stream_timeout" if mode in STREAMS else "client_timeout"): 0.2}
    async with serving(folder, is_running=False) as wire:
        (late,) = await triton.run(mode, wire.target, sequence(xs, 1)[:1], **deadline)
        assert late.status == "StatusCode.DEADLINE_EXCEEDED"
        await wire.until(lambda: wire.metrics.rpcs_started == wire.metrics.rpcs_handled)
        wire.run()
        (lost,) = await triton.run("one_by_one", wire.target, sequence(xs, 1)[1:])
        assert MUST_START in str(lost.error) or "has ended" in str(lost.error)
        assert len(wire.engine.table) == 0
        check(wire, xs, await triton.run("one_by_one", wire.target, sequence(xs, 1)))


async def test_no_update(triton: Triton, folder: Path) -> None:
    """A request that is refused, for whatever reason, changes nothing of its sequence."""
    xs = inputs(3, 1)
    good, x = sequence(xs, 1), rows(2, 9)
    bad = [
        request(np.full((1, 3), np.nan, np.float32), 1),
        request(rows(2, 0)[:, :2], 1),
        request(np.stack([x, x]), 1),
        request(x.astype(np.float64), 1),
        request(x[:0], 1),
        request(None, 1),
        request(x, 1, inputs={"h0": np.zeros((2, 8), np.float32)}),
        request(x, 1, timeout=-1),
        request(x, 1, outputs=["z"]),
    ]
    async with serving(folder) as wire:
        requests = [good[0], *bad, good[1], *bad, good[2]]
        answers = await triton.run("stream", wire.target, requests)
        check(wire, xs, [answers[0], answers[len(bad) + 1], answers[-1]])
        refused = [a.error for a in answers if a.error]
        assert len(refused) == 2 * len(bad)
        assert all(error.startswith("[sequence id: 1] ") for error in refused)
        failed = wire.metrics.model("m", 1).answered["ModelStreamInfer", "InvalidArgument"]
        assert failed == len(refused)


async def test_wrong_names(triton: Triton, folder: Path) -> None:
    """A refusal names inputs and outputs that the model does not have, and a model that is
    unknown."""
    x = rows(2, 0)
    async with serving(folder) as wire:
        said = await triton.run(
            "one_by_one",
            wire.target,
            [
                request(None, 1, start=True, inputs={"X": x}),
                request(x, 1, start=True, inputs={"lengths": np.ones(1, np.int32)}),
                request(x, 1, start=True, outputs=["y", "hidden"]),
                request(x, 1, start=True, model="n"),
                request(x, 1, start=True, model_version="2"),
                request(x, 1, start=True, model_version="one"),
                request(x, 1, start=True, model="letters"),
            ],
        )
        texts = ("'X' for model 'm'", "'lengths' for model 'm'", "'hidden' for model 'm'")
        texts += ("'n'", "'m:2'", "version must be a number", "'x' for model 'letters'")
        for answer, text in zip(said, texts, strict=True):
            assert text in str(answer.error)
        codes = [str(answer.status).removeprefix("StatusCode.") for answer in said]
        assert codes[3:5] == ["NOT_FOUND", "UNAVAILABLE"]  # m:2 may come
        assert {*codes[:3], *codes[5:]} == {"INVALID_ARGUMENT"}
        assert len(wire.engine.table) == 0


async def test_requested_outputs_and_ranks(triton: Triton, folder: Path) -> None:
    """Outputs come in the order in which they are asked for, y has the rank of x, states have a
    batch axis if x has one, and by default only y comes."""
    xs = inputs(3, 1)
    x = np.concatenate(xs)
    names = ["cn", "y_last", "hn", "y"]
    async with serving(folder) as wire:
        y, hn, cn = wire.oracles["m"].run(x)
        requests = [
            request(x[0], 1, start=True),
            request(x[1:-1], 1, outputs=["y_last"]),
            request(x[np.newaxis, -1:], 1, outputs=names),
        ]
        one, last, all_four = await triton.run("one_by_one", wire.target, requests)
        assert [*one.outputs] == ["y"]
        assert np.array_equal(one.y, y[0])
        assert [*last.outputs] == ["y_last"]
        assert np.array_equal(last.outputs["y_last"], y[-2])
        assert [*all_four.outputs] == names
        got = all_four.outputs
        assert np.array_equal(got["y"], y[np.newaxis, -1:])
        assert np.array_equal(got["y_last"], y[np.newaxis, -1])
        assert np.array_equal(got["hn"], hn[:, np.newaxis])
        assert np.array_equal(got["cn"], cn[:, np.newaxis])


async def test_two_states_are_never_swapped(triton: Triton, folder: Path) -> None:
    """hn and cn continue bit for bit as h0 and c0 of another sequence, in all eight orders and
    forms, and swapped they give something else."""
    xs = inputs(2, 1)
    async with serving(folder) as wire:
        goes_on = wanted(wire, xs)[1]
        orders = (["cn", "hn"], ["hn", "cn"]), (("h0", "c0"), ("c0", "h0")), (False, True)
        for outputs, names, has_batch_axis in itertools.product(*orders):
            start = request(xs[0], 1, start=True, outputs=outputs)
            (first,) = await triton.run("stream", wire.target, [start])
            hn, cn = first.outputs["hn"], first.outputs["cn"]
            given = {"h0": hn, "c0": cn}
            states = {
                name: given[name][:, np.newaxis] if has_batch_axis else given[name]
                for name in names
            }
            one = request(xs[1], 2, start=True, end=True, inputs=states)
            (answer,) = await triton.run("one_by_one", wire.target, [one])
            assert np.array_equal(answer.y, goes_on)
        swapped = request(xs[1], 2, start=True, end=True, inputs={"h0": cn, "c0": hn})
        (answer,) = await triton.run("one_by_one", wire.target, [swapped])
        assert not np.array_equal(answer.y, goes_on)
        whole = request(
            xs[1][np.newaxis],
            inputs={"h0": hn[:, np.newaxis], "c0": cn[:, np.newaxis]},
            outputs=["y", "hn", "cn", "y_last"],
        )
        (answer,) = await triton.run("one_by_one", wire.target, [whole])
        _, h_end, c_end = wire.oracles["m"].run(np.concatenate(xs))
        assert np.array_equal(answer.y[0], goes_on)
        assert np.array_equal(answer.outputs["y_last"][0], goes_on[-1])
        assert np.array_equal(answer.outputs["hn"][:, 0], h_end)
        assert np.array_equal(answer.outputs["cn"][:, 0], c_end)


@pytest.mark.parametrize("model", ["letters", "both"])
async def test_tokens_and_bidirectional_models(triton: Triton, folder: Path, model: str) -> None:
    """Tokens step like x, and a bidirectional model has no sequences and answers whole ones."""
    async with serving(folder) as wire:
        if model == "letters":
            xs = [rows(n, n, "letters") for n in (2, 1, 3)]
            requests = sequence(xs, "ab", model="letters")
            check(wire, xs, await triton.run("stream", wire.target, requests), "letters")
            wrong = [request(np.array([27]), 1, start=True, model="letters")]
            (answer,) = await triton.run("one_by_one", wire.target, wrong)
            assert "not in [0, 27)" in str(answer.error)
        else:
            x = rows(4, 1)
            step, whole = await triton.run(
                "one_by_one",
                wire.target,
                [request(x, 1, start=True, model=model), request(x[np.newaxis], model=model)],
            )
            assert step.status == "StatusCode.FAILED_PRECONDITION"
            assert "bidirectional" in str(step.error)
            reply = await wire.call("Predict", native.PredictRequest(model=model, x=x.ravel()))
            assert np.array_equal(whole.y.ravel(), np.array(reply.y, np.float32))
