"""Models with a window over the contract's own wire: rows of y, missing_rows, states.

Every reply has the bits of a plain onnxruntime session on the rows of one window
(tests/windowed.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmserve.config import Config
from lstmserve.engine import load_models
from lstmserve.engine.predict import PredictJob
from lstmserve.kserve.v2 import inference_pb2
from lstmserve.manifest import InvalidModelFolder
from lstmserve.rows import RowFormat
from lstmserve.server.kserve import service as kserve
from lstmserve.server.message_sizes import predict_bytes
from lstmserve.server.native import service as native
from lstmserve.spec import KNOWN
from lstmserve.v1 import lstm_pb2 as pb
from windowed import (
    SPECS,
    Talk,
    W,
    WindowOracle,
    check_tensors,
    fields,
    make_models,
    outputs,
    random_rows,
    tensors,
)
from wire import Wire, serving

LENGTHS = [1, 2, 1, 1, 9, 1, 30, 3]
LIMITS = {"slice_rows_max": 4 * W, "session_pending_max": 64}  # 4 time steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the windowed models; serving() adds its own."""
    folder = tmp_path_factory.mktemp("windows")
    make_models(folder)
    return folder


@pytest.fixture
async def wire(folder: Path) -> AsyncIterator[Wire]:
    """A server."""
    async with serving(folder, **LIMITS) as wire:
        yield wire


@pytest.fixture
async def elsewhere(folder: Path) -> AsyncIterator[Wire]:
    """Another server of the same models."""
    async with serving(folder, **LIMITS) as wire:
        yield wire


async def open_talk(wire: Wire, name: str, seed: int = 0, **others: Any) -> Talk:
    """A new session."""
    return Talk(WindowOracle(wire.folder, name), name, await wire.open(name, **others), seed)


@pytest.mark.parametrize("name", SPECS)
async def test_the_model_says_its_window(wire: Wire, name: str) -> None:
    """GetModel and ListModels have the window, and its states; also a bidirectional model steps."""
    model = (await wire.call("GetModel", model=name)).model
    spec, wanted = model.spec, SPECS[name]
    assert (spec.window, spec.window_fill, spec.is_streaming) == (W, wanted.window_fill, True)
    assert [(each.name, tuple(each.shape), each.dtype) for each in spec.states] == [
        (each.name, each.shape, each.dtype) for each in wanted.states
    ]
    assert [each.name for each in spec.outputs] == [each.name for each in wanted.outputs]
    listed = {each.name: each for each in (await wire.call("ListModels")).models}
    assert listed[name] == model
    assert (listed["m"].spec.window, listed["m"].spec.window_fill) == (0, "")


@pytest.mark.parametrize("last_only", [True, False])
@pytest.mark.parametrize("name", SPECS)
async def test_steps(wire: Wire, name: str, last_only: bool) -> None:
    """In any chunks: a row of y for each whole window, and how many rows it lacks; a numbered
    repeat has the same, before the window is full and after."""
    talk = await open_talk(wire, name)
    for length in LENGTHS:
        request = talk.request(length, last_only=last_only)
        reply = await wire.call("Step", request)
        talk.check(reply, last_only=last_only)
        again = await wire.call("Step", request)
        assert again.replayed
        talk.check(again, last_only=last_only)
        talk.check_state((await wire.call("GetState", session_id=talk.id)).state)


async def test_a_repeat_of_another_input_is_refused(wire: Wire) -> None:
    """Also where the step gave no y."""
    talk = await open_talk(wire, "wait")
    request = talk.request()
    talk.check(await wire.call("Step", request))
    other = request.__deepcopy__()
    other.x[0] += 1
    assert (await wire.refused("Step", other.SerializeToString())).reason == "STEP_PAYLOAD_MISMATCH"


async def test_a_client_that_ignores_missing_rows_gets_no_y(wire: Wire) -> None:
    """Until the window is full a reply has length 0 and no values, not even zeros."""
    talk = await open_talk(wire, "net")
    for _ in range(W - 1):
        reply = await wire.call("Step", talk.request(is_numbered=False))
        assert (reply.length, len(reply.y), len(reply.y_ints)) == (0, 0, 0)
    reply = await wire.call("Step", talk.request(is_numbered=False))
    assert (reply.length, len(reply.y), len(reply.y_ints)) == (1, 3, 1)


@pytest.mark.parametrize("name", SPECS)
async def test_streams(wire: Wire, name: str) -> None:
    """Many sessions on one StepStream, sent before any reply, each with repeats."""
    talks = {each.id: each for each in [await open_talk(wire, name, i) for i in range(8)]}
    stream = wire.stream("StepStream")
    for length in LENGTHS[:5]:
        for place, talk in enumerate(talks.values()):
            request = talk.request(length + place % 2)
            await stream.write(request.SerializeToString())
            await stream.write(request.SerializeToString())
        for _ in range(2 * len(talks)):
            reply = pb.StepResponse.FromString(await stream.read())
            assert not reply.HasField("error"), reply.error
            talks[reply.session_id].check(reply)
    await stream.done_writing()


async def many(stream: Any, message: pb.StepManyRequest) -> pb.StepManyResponse:
    """The reply to a message."""
    await stream.write(message.SerializeToString())
    return pb.StepManyResponse.FromString(await stream.read())


def message_of(talks: list[Talk], lengths: list[int], **others: Any) -> pb.StepManyRequest:
    """The next step of each session."""
    name = talks[0].name
    rows = [talk.rows(length) for talk, length in zip(talks, lengths, strict=True)]
    return pb.StepManyRequest(
        session_ids=[talk.id for talk in talks],
        incarnations=[talk.incarnation for talk in talks],
        steps=[talk.step for talk in talks],
        lengths=lengths,
        **fields(name, np.concatenate(rows)),
        **others,
    )


def check_many(reply: pb.StepManyResponse, talks: list[Talk], *, last_only: bool = False) -> None:
    """The reply has the columns of what each session's step gives."""
    assert not reply.errors
    wanted = [talk.wanted(last_only=last_only) for talk in talks]
    assert list(reply.lengths or [1] * len(talks)) == [len(each.y) for each in wanted]
    lacks = [each.missing_rows for each in wanted]
    assert list(reply.missing_rows) == (lacks if any(lacks) else [])
    found = outputs(talks[0].name, reply)
    assert found.tobytes() == np.concatenate([each.y for each in wanted]).tobytes()


@pytest.mark.parametrize("last_only", [True, False])
@pytest.mark.parametrize("is_single", [True, False])
@pytest.mark.parametrize("name", ["wait", "net", "grow"])
async def test_messages_of_many_sessions(
    wire: Wire, name: str, is_single: bool, last_only: bool
) -> None:
    """Sessions whose windows lack different numbers of rows: `lengths` says who gives how many, 0
    too; a repeat has the same columns, and so has the step alone."""
    talks = [await open_talk(wire, name, i) for i in range(7)]
    for i, talk in enumerate(talks[1:], 1):
        talk.check(await wire.call("Step", talk.request(i)))
    stream = wire.stream("StepMany")
    for turn in range(W + 1):
        lengths = [1 if is_single else 1 + (turn + i) % 3 for i in range(len(talks))]
        message = message_of(talks, lengths, last_only=last_only)
        reply = await many(stream, message)
        check_many(reply, talks, last_only=last_only)
        again = await many(stream, message)
        assert list(again.replayed) == list(range(len(talks)))
        check_many(again, talks, last_only=last_only)
        one = pb.StepRequest(
            session_id=talks[0].id,
            incarnation=talks[0].incarnation,
            step=talks[0].step,
            length=lengths[0],
            last_only=last_only,
            **fields(name, talks[0].past[talks[0].ends[-2] :]),
        )
        talks[0].check(await wire.call("Step", one), last_only=last_only)
    if is_single and SPECS[name].waits:
        assert not reply.lengths, "once all windows are full a message is as short as any other"


@pytest.mark.parametrize("is_single", [True, False])
async def test_a_message_with_failed_sessions(wire: Wire, is_single: bool) -> None:
    """The rows of a failed session are NaN, and nothing is missing from its window; the lengths
    of the others say what they give."""
    talks = [await open_talk(wire, "wait", i) for i in range(4)]
    talks[2].check(await wire.call("Step", talks[2].request(W)))
    lengths = [1] * 4 if is_single else [2, 3, 1, 2]
    message = message_of(talks, lengths)
    message.session_ids[1] = "nobody"
    message.x[3 * (sum(lengths) - 1)] = np.nan
    reply = await many(wire.stream("StepMany"), message)
    assert [each.index for each in reply.errors] == [1, 3]
    wanted = [talks[0].wanted(), None, talks[2].wanted(), None]
    rows = [lengths[i] if each is None else len(each.y) for i, each in enumerate(wanted)]
    assert list(reply.lengths) == rows
    assert list(reply.missing_rows) == [W - lengths[0], 0, 0, 0]
    y = outputs("wait", reply)
    assert np.isnan(y[: rows[1]]).all()
    assert y[rows[1]].tobytes() == talks[2].wanted().y.tobytes()
    assert np.isnan(y[rows[1] + 1 :]).all()


async def test_a_message_without_any_y(wire: Wire) -> None:
    """New sessions give nothing at all: every length is 0, which no reader takes for 1."""
    talks = [await open_talk(wire, "net", i) for i in range(3)]
    reply = await many(wire.stream("StepMany"), message_of(talks, [1, 1, 1]))
    assert (list(reply.lengths), list(reply.missing_rows)) == ([0] * 3, [W - 1] * 3)
    assert not len(reply.y) + len(reply.y_ints)
    nobody = pb.StepManyRequest(session_ids=["nobody"], **fields("net", talks[0].rows(1)))
    reply = await many(wire.stream("StepMany"), nobody)
    assert (len(reply.errors), len(reply.y), len(reply.missing_rows)) == (1, 0, 0)


@pytest.mark.parametrize("last_only", [True, False])
@pytest.mark.parametrize("name", SPECS)
async def test_predict_is_the_steps_of_new_sessions(wire: Wire, name: str, last_only: bool) -> None:
    """Ragged sequences, some shorter than the window: `lengths` says the rows that each gives, and
    the final states are those of a session."""
    rng, oracle = np.random.default_rng(3), WindowOracle(wire.folder, name)
    rows = [random_rows(name, rng, length) for length in (1, W, 31, 2, W - 1, W + 1)]
    reply = await wire.call(
        "Predict",
        model=name,
        lengths=[len(each) for each in rows],
        last_only=last_only,
        with_state=True,
        **fields(name, np.concatenate(rows)),
    )
    wanted = [oracle.run(each, len(each) - 1 if last_only else 0).y for each in rows]
    assert list(reply.lengths) == [len(each) for each in wanted]
    assert outputs(name, reply).tobytes() == np.concatenate(wanted).tobytes()
    states = [oracle.states(each) for each in rows]
    check_tensors(
        reply.final,
        {each.name: np.stack([own[each.name] for own in states]) for each in SPECS[name].states},
    )
    if not last_only:
        talk = await open_talk(wire, name)
        talk.past = rows[2][:0]
        for row in rows[2]:
            step = await wire.call("Step", session_id=talk.id, **fields(name, np.stack([row])))
            talk.past = np.concatenate([talk.past, np.stack([row])])
            talk.ends.append(len(talk.past))
            talk.step += 1
            talk.check(step)


@pytest.mark.parametrize("name", ["wait", "grow", "zeros", "net"])
async def test_predict_goes_on_from_a_window(wire: Wire, name: str) -> None:
    """Initial states that know some rows: the first output comes as soon as the window is full."""
    rng, oracle = np.random.default_rng(4), WindowOracle(wire.folder, name)
    older = [random_rows(name, rng, length) for length in (0, 1, W - 2, W + 3)]
    rows = [random_rows(name, rng, 3) for _ in older]
    states = [oracle.states(each) for each in older]
    initial = {each.name: np.stack([s[each.name] for s in states]) for each in SPECS[name].states}
    reply = await wire.call(
        "Predict",
        model=name,
        lengths=[3] * 4,
        initial=tensors(initial),
        **fields(name, np.concatenate(rows)),
    )
    wanted = [
        oracle.run(np.concatenate([past, new]), len(past)).y
        for past, new in zip(older, rows, strict=True)
    ]
    assert list(reply.lengths) == [len(each) for each in wanted]
    assert outputs(name, reply).tobytes() == np.concatenate(wanted).tobytes()


@pytest.mark.parametrize("name", SPECS)
async def test_a_state_moves(wire: Wire, elsewhere: Wire, name: str) -> None:
    """Exported before and after the window is full, imported here and elsewhere, forked: each goes
    its own way, and gives its first y when it has as many rows as any other."""
    talk = await open_talk(wire, name)
    for i, length in enumerate([2, 1, 9]):
        talk.check(await wire.call("Step", talk.request(length)))
        state = (await wire.call("GetState", session_id=talk.id)).state
        others = [
            (wire, await open_talk(wire, name, i, state=state)),
            (wire, await open_talk(wire, name, 10 + i, fork_of=talk.id)),
            (elsewhere, await open_talk(elsewhere, name, 20 + i, state=state)),
        ]
        for where, other in others:
            assert other.step == talk.step
            other.past, other.ends = talk.past, [len(talk.past)]
            assert (await where.call("GetState", session_id=other.id)).state == state
            other.check(await where.call("Step", other.request(3)))
            other.check_state((await where.call("GetState", session_id=other.id)).state)


def bad(name: str, states: dict[str, Any], **changed: Any) -> list[pb.Tensor]:
    """The messages of the states with some values changed."""
    known = {each.name: np.zeros(each.shape, each.dtype) for each in SPECS[name].states}
    return tensors({each: np.asarray(v) for each, v in {**known, **states, **changed}.items()})


X = np.zeros((W - 1, 3), np.float32)
IDS = np.zeros(W - 1, np.int64)
BAD_STATES: dict[str, tuple[str, str, str, list[pb.Tensor]]] = {
    "one row too many": (
        "wait",
        "BAD_TENSOR",
        f"window.length counts the rows that a session has given: it must be in [0, {W - 1}]",
        bad("wait", {KNOWN: np.array(W)}),
    ),
    "a negative length": ("grow", "BAD_TENSOR", KNOWN, bad("grow", {KNOWN: np.array(-1)})),
    "a huge length": ("net", "BAD_TENSOR", KNOWN, bad("net", {KNOWN: np.array(1 << 62)})),
    "no length": ("wait", "BAD_TENSOR", f"has no {KNOWN}", tensors({"x.window": X})),
    "a length that zeros has not": (
        "zeros",
        "BAD_TENSOR",
        KNOWN,
        bad("zeros", {KNOWN: np.array(0)}),
    ),
    "another window": (
        "wait",
        "BAD_TENSOR",
        "x.window has the shape [5, 3]",
        bad("wait", {"x.window": np.zeros((W, 3), np.float32)}),
    ),
    "NaN": (
        "wait",
        "NON_FINITE",
        "x.window",
        bad("wait", {"x.window": np.full_like(X, np.nan)}),
    ),
    "infinity": ("zeros", "NON_FINITE", "x.window", bad("zeros", {"x.window": X + np.inf})),
    "a token too large": (
        "tokens",
        "BAD_TENSOR",
        "a token of tokens.window is not in [0, 9)",
        bad("tokens", {"tokens.window": IDS + 9, KNOWN: np.array(W - 1)}),
    ),
    "a negative token": (
        "tokens",
        "BAD_TENSOR",
        "a token of tokens.window",
        bad("tokens", {"tokens.window": IDS - 1}),
    ),
}


@pytest.mark.parametrize("case", BAD_STATES)
async def test_bad_states(wire: Wire, case: str) -> None:
    """A state that no session can have is refused by OpenSession and by Predict, by its name."""
    name, reason, text, given = BAD_STATES[case]
    request = pb.OpenSessionRequest(model=name, state=pb.State(tensors=given))
    said = await wire.refused("OpenSession", request.SerializeToString())
    assert (said.reason, said.fields) == (reason, ["state.tensors"])
    assert text in said.message
    batch = [pb.Tensor(name=each.name, shape=[1, *each.shape]) for each in given]
    for one, each in zip(batch, given, strict=True):
        one.floats.extend(each.floats)
        one.ints.extend(each.ints)
    rows = random_rows(name, np.random.default_rng(0), 1)
    predict = pb.PredictRequest(model=name, initial=batch, **fields(name, rows))
    said = await wire.refused("Predict", predict.SerializeToString())
    assert (said.reason, said.fields) == (reason, ["initial"])
    assert len(wire.engine.table) == 0


async def test_an_imported_row_keeps_its_bits(wire: Wire) -> None:
    """Denormal numbers and zeros with a sign are rows of the user's: a state has them as they
    were given."""
    rows = np.array([[-0.0, 1e-40, -1e-40]] * (W - 1), np.float32)
    given = {"x.window": rows, KNOWN: np.array(W - 1)}
    session = await wire.open("wait", state=pb.State(tensors=tensors(given)))
    state = (await wire.call("GetState", session_id=session.id)).state
    assert np.array(state.tensors[0].floats, np.float32).tobytes() == rows.tobytes()


async def test_waiting_bytes_count_every_row_of_a_window(folder: Path) -> None:
    """A step, a message of many and a Predict each count their x for every row of a window."""
    async with serving(folder, is_running=False) as wire:
        model = wire.engine.model("wait", 0)
        talks = [await open_talk(wire, "wait", i) for i in range(3)]
        rows = 300  # a small lease would not be made smaller
        x_bytes = rows * model.inputs.bytes
        calls = [asyncio.create_task(wire.call("Step", talks[0].request(rows)))]
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == 1)
        reply_bytes = rows * model.outputs.wire_bytes
        assert wire.pending.held >= x_bytes * W + reply_bytes
        before = wire.pending.held
        stream = wire.stream("StepMany")
        await stream.write(message_of(talks[1:], [rows, rows]).SerializeToString())
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == 3)
        assert wire.pending.held >= before + 2 * (x_bytes * W + reply_bytes)
        wire.run()
        await asyncio.gather(*calls)
        await stream.read()
    job = PredictJob(
        np.zeros((rows, 3), np.float32), np.array([rows], np.int32), None, False, False, 0
    )
    assert predict_bytes(model, job, 0) == x_bytes * W


def content_of(method: str, talk: Talk, rows: int) -> bytes:
    """A message of so many rows, which is the session's next step or a whole sequence."""
    if method == "StepStream":
        return bytes(talk.request(rows).SerializeToString())
    if method == "StepMany":
        return message_of([talk], [rows]).SerializeToString()
    x = talk.rows(rows)
    message = inference_pb2.ModelInferRequest(model_name=talk.name)
    message.inputs.add(name="x", datatype="FP32", shape=[1, *x.shape])
    message.raw_input_contents.append(x.tobytes())
    return message.SerializeToString()


def errors_of(method: str, content: bytes) -> list[str]:
    """The errors that a reply has."""
    if method == "StepStream":
        reply = pb.StepResponse.FromString(content)
        return [reply.error.message] if reply.HasField("error") else []
    if method == "StepMany":
        many_reply = pb.StepManyResponse.FromString(content)
        whole = [many_reply.error.message] if many_reply.HasField("error") else []
        return whole + [each.status.message for each in many_reply.errors]
    said = inference_pb2.ModelStreamInferResponse.FromString(content).error_message
    return [said] if said else []


@pytest.mark.parametrize("method", ["StepStream", "StepMany", "ModelStreamInfer"])
async def test_a_stream_waits_for_the_bytes_of_its_windows(folder: Path, method: str) -> None:
    """Messages whose rows would fit and whose windows do not are read one after the other, and
    each is answered: none is refused for what others hold."""
    async with serving(folder, pending_bytes_max=1 << 20, message_bytes_max=1 << 17) as wire:
        talks = [await open_talk(wire, "wait", i) for i in range(24)]
        service = kserve.SERVICE if method == "ModelStreamInfer" else native.SERVICE
        stream = wire.channel.stream_stream(f"/{service}/{method}")(timeout=30)

        async def send() -> None:
            for talk in talks:
                await stream.write(content_of(method, talk, 1000))

        sending = asyncio.create_task(send())
        for _ in talks:
            assert errors_of(method, await stream.read()) == []
        await sending


async def test_no_record_of_format_1_has_a_window(folder: Path) -> None:
    """That format has h and c alone, so a server that writes it refuses the model."""
    with pytest.raises(InvalidModelFolder, match="bidirectional:1: --store-format 1"):
        load_models(Config(models=folder, store_format=1))


async def test_rows_of_results_are_what_the_replies_keep(wire: Wire) -> None:
    """A saved reply has how many rows are missing beside the outputs."""
    model = wire.engine.model("net", 0)
    assert RowFormat(SPECS["net"].results).bytes == model.outputs.bytes + 8
    assert model.results.bytes == model.outputs.bytes + 8
