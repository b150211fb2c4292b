"""The KServe dialect with clients that are not Triton's: typed contents, odd and hostile
requests."""

from __future__ import annotations

import ast
import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode

from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.pending_bytes import SHORT_BYTES
from refusals import Refusal, leaks, refusal
from scenarios import Array, folder, rows, wanted
from serving import ROOT, environment
from tenancy import limited
from wire import Wire, serving

__all__ = ["folder"]  # a fixture
PATH = "/inference.GRPCInferenceService/"
CONTENTS = {
    "FP32": "fp32_contents",
    "INT64": "int64_contents",
    "INT32": "int_contents",
    "BOOL": "bool_contents",
}
DATATYPES = {"float32": "FP32", "int64": "INT64", "int32": "INT32", "bool": "BOOL"}


@pytest.fixture
async def wire(folder: Path) -> AsyncIterator[Wire]:
    """A server with the three models."""
    async with serving(folder) as wire:
        yield wire


def put(message: pb.ModelInferRequest, name: str, values: Array, *, is_raw: bool = True) -> None:
    """Adds an input."""
    datatype = DATATYPES[str(values.dtype)]
    header = message.inputs.add(name=name, datatype=datatype, shape=values.shape)
    if is_raw:
        message.raw_input_contents.append(values.tobytes())
    else:
        getattr(header.contents, CONTENTS[datatype]).extend(values.ravel().tolist())


def infer(
    x: Array | None = None, *, model: str = "m", is_raw: bool = True, **parameters: Any
) -> pb.ModelInferRequest:
    """A request with x or tokens; parameters by name, each an InferParameter or a plain value."""
    message = pb.ModelInferRequest(model_name=model, id="r")
    if x is not None:
        put(message, "x" if x.dtype == np.float32 else "tokens", x, is_raw=is_raw)
    for name, value in parameters.items():
        field = {bool: "bool_param", int: "int64_param", str: "string_param"}.get(type(value))
        if field is not None:
            value = pb.InferParameter(**{field: value})
        message.parameters[name].CopyFrom(value)
    return message


async def sent(wire: Wire, message: pb.ModelInferRequest | bytes) -> pb.ModelInferResponse:
    """The response of a unary call. Raises AioRpcError."""
    content = message if isinstance(message, bytes) else message.SerializeToString()
    return pb.ModelInferResponse.FromString(
        await wire.channel.unary_unary(PATH + "ModelInfer")(content, timeout=30)
    )


async def refused(wire: Wire, message: pb.ModelInferRequest | bytes) -> Refusal:
    """The refusal of a call that fails."""
    try:
        reply = await sent(wire, message)
    except grpc.aio.AioRpcError as error:
        said = refusal(error)
        leaks(said, wire.folder)
        return said
    raise AssertionError(f"accepted: {reply}")


def output(response: pb.ModelInferResponse, name: str = "y") -> Array:
    """An output by name."""
    (index,) = (i for i, each in enumerate(response.outputs) if each.name == name)
    values = np.frombuffer(response.raw_output_contents[index], "<f4")
    return values.reshape(tuple(response.outputs[index].shape))


async def test_typed_contents(wire: Wire) -> None:
    """Typed contents give the bits of raw ones, alone and mixed with them; answers are raw."""
    x, lengths = np.stack([rows(3, 1), rows(3, 2)]), np.array([3, 2], np.int32)
    for x_raw, lengths_raw in ((True, True), (False, True), (True, False), (False, False)):
        message = pb.ModelInferRequest(model_name="m")
        put(message, "lengths", lengths, is_raw=lengths_raw)
        put(message, "x", x, is_raw=x_raw)
        y = output(await sent(wire, message))
        assert np.array_equal(y[0], wanted(wire, [x[0]])[0])
        assert np.array_equal(y[1, :2], wanted(wire, [x[1, :2]])[0])
    tokens = rows(4, 3, "letters")
    start = infer(tokens, model="letters", is_raw=False, sequence_id="t", sequence_start=True)
    assert np.array_equal(output(await sent(wire, start)), wanted(wire, [tokens], "letters")[0])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("sequence_id", True, "expected int64_param or uint64_param or string_param"),
        ("sequence_start", 1, "expected bool_param"),
        ("sequence_end", "true", "expected bool_param"),
        ("restart", 0, "expected bool_param"),
        ("timeout", "5", "expected int64_param"),
        ("step", "1", "expected int64_param"),
        ("incarnation", True, "expected int64_param"),
        ("priority", True, "expected int64_param or uint64_param"),
        ("step", pb.InferParameter(), "invalid value type for 'step' parameter"),
        ("triton_speed", 1, "'triton_speed' is unknown"),
        ("timeout", -1, "'timeout' is negative"),
        ("incarnation", -1, "'incarnation' is negative"),
    ],
)
async def test_wrong_parameters(wire: Wire, name: str, value: object, expected: str) -> None:
    """A parameter of the wrong type or range is refused in Triton's words, as are triton_ ones."""
    given = {"sequence_id": 1, "sequence_start": True, name: value}
    said = await refused(wire, infer(rows(1, 0), **given))
    assert said.code is StatusCode.INVALID_ARGUMENT
    assert expected in said.message
    assert len(wire.engine.table) == 0


async def test_parameters_of_the_user_s_own_are_let_through(wire: Wire) -> None:
    """Unknown parameters, a priority and the one for empty final responses change nothing."""
    x = rows(1, 0)
    others = {"mine": "x", "priority": 3, "triton_enable_empty_final_response": True}
    message = infer(x, sequence_id=1, sequence_start=True, sequence_end=True, **others)
    assert np.array_equal(output(await sent(wire, message)), wanted(wire, [x])[0])


async def test_ids_at_their_limits(wire: Wire) -> None:
    """An id has up to 128 characters, a negative number is the unsigned one of its bits, and
    without an id there is no START, no END and no step."""
    x = rows(1, 0)
    assert await sent(wire, infer(x, sequence_id="ü" * 128, sequence_start=True))
    said = await refused(wire, infer(x, sequence_id="ü" * 129, sequence_start=True))
    assert (said.reason, said.fields) == ("BAD_SESSION_ID", ["sequence_id"])
    assert await sent(wire, infer(x, sequence_id=-1, sequence_start=True))
    unsigned = pb.InferParameter(uint64_param=2**64 - 1)
    response = await sent(wire, infer(x, sequence_id=unsigned))
    assert response.parameters["step"].int64_param == 2
    for nothing in (0, "", pb.InferParameter(uint64_param=0)):
        for name, value in (("sequence_start", True), ("sequence_end", True), ("step", 1)):
            said = await refused(wire, infer(x, sequence_id=nothing, **{name: value}))
            assert "must specify a non-zero or non-empty correlation ID" in said.message


def without_data(message: pb.ModelInferRequest) -> None:
    """Adds an input without contents."""
    del message.raw_input_contents[:]


Change = Callable[[pb.ModelInferRequest], object]


@pytest.mark.parametrize(
    ("change", "reason", "text"),
    [
        (without_data, "BAD_TENSOR", "unable to find data for input tensor 'x'"),
        (
            lambda m: m.raw_input_contents.append(b""),
            "MALFORMED",
            "raw_input_contents has more entries",
        ),
        (lambda m: put(m, "x", rows(1, 0)), "MALFORMED", "input 'x' is sent twice"),
        (lambda m: put(m, "h0", np.zeros((2, 8), np.float32)),
         "BAD_TENSOR", "input 'c0' is missing: give every state or none, that is h0, c0"),
        (lambda m: m.inputs[0].shape.append(-1), "BAD_TENSOR", "an impossible shape"),
        (lambda m: m.inputs[0].shape.extend([1] * 9), "BAD_TENSOR", "an impossible shape"),
        (lambda m: m.inputs[0].shape.append(2**62), "BAD_TENSOR", "input 'x' has 3 values"),
        (lambda m: m.raw_input_contents.extend([m.raw_input_contents.pop() + b"\0"]),
         "BAD_TENSOR", "input 'x' ends within a value"),
        (lambda m: setattr(m.inputs[0], "datatype", "FP16"),
         "BAD_TENSOR", "data-type 'FP16', must be FP32"),
        (lambda m: m.inputs[0].parameters["shared_memory_region"],
         "NOT_IMPLEMENTED", "shared_memory_region is not served"),
        (lambda m: m.outputs.add(name="y").parameters["classification"],
         "NOT_IMPLEMENTED", "classification is not served"),
        (lambda m: m.raw_input_contents.extend([(m.raw_input_contents.pop(), b"\xff" * 12)[1]]),
         "NON_FINITE", "NaN or infinite"),
    ],
)  # fmt: skip
async def test_wrong_tensors(wire: Wire, change: Change, reason: str, text: str) -> None:
    """The refusal says what is wrong with a request's tensors, and no sequence begins."""
    message = infer(rows(1, 0), sequence_id=1, sequence_start=True)
    change(message)
    said = await refused(wire, message)
    assert said.reason == reason
    assert text in said.message
    assert len(wire.engine.table) == 0


@pytest.mark.parametrize("length", [9, 2 * SHORT_BYTES])
async def test_not_a_message(wire: Wire, length: int) -> None:
    """Bytes that are no request are refused, however many, and a stream refuses them in band and
    goes on."""
    assert (await refused(wire, b"\xff" * length)).reason == "MALFORMED"
    stream = wire.channel.stream_stream(PATH + "ModelStreamInfer")(timeout=30)
    await stream.write(b"\xff" * length)
    said = pb.ModelStreamInferResponse.FromString(await stream.read())
    assert said.error_message == "not a ModelInferRequest"
    await stream.write(infer(rows(1, 0), sequence_id=1, sequence_start=True).SerializeToString())
    said = pb.ModelStreamInferResponse.FromString(await stream.read())
    assert said.infer_response.id == "r"
    await stream.done_writing()
    assert await stream.code() is StatusCode.OK


async def test_random_bytes_never_reach_the_server_s_inside(wire: Wire) -> None:
    """A request whose bytes are changed gets an answer of the contract, and the sequences beside it
    keep their bits."""
    seed = 7
    print(f"seed {seed}")
    rng, x = random.Random(seed), rows(6, 1)
    whole = wanted(wire, [x])[0]
    codes = set()
    for i, row in enumerate(x):
        for _ in range(60):
            broken = bytearray(infer(x[:2], sequence_id=2, sequence_start=True).SerializeToString())
            for _ in range(rng.randint(1, 4)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            try:
                await sent(wire, bytes(broken))
            except grpc.aio.AioRpcError as error:
                codes.add(error.code())
        step = infer(row[np.newaxis], sequence_id="kept", sequence_start=not i)
        assert np.array_equal(output(await sent(wire, step))[0], whole[i])
    assert StatusCode.INVALID_ARGUMENT in codes
    assert not codes & {StatusCode.INTERNAL, StatusCode.UNKNOWN}


async def test_how_many_may_stand_in_line(folder: Path) -> None:
    """After a START, session_pending_max requests of its sequence may wait, itself included, one
    more is refused, and the others are answered."""
    async with serving(folder, is_running=False, session_pending_max=4) as wire:
        stream = wire.channel.stream_stream(PATH + "ModelStreamInfer")(timeout=30)
        x = [rows(1, i) for i in range(5)]
        for i, each in enumerate(x):
            message = infer(each, sequence_id=1, sequence_start=i == 0)
            await stream.write(message.SerializeToString())
        await wire.until(lambda: wire.metrics.model("m", 1).errors["OVERLOADED"] == 1)
        wire.run()
        said = [pb.ModelStreamInferResponse.FromString(await stream.read()) for _ in x]
        assert "4 requests of the sequence are waiting, the limit is 4" in said[4].error_message
        for each, y in zip(said[:4], wanted(wire, x[:4]), strict=True):
            assert np.array_equal(output(each.infer_response), y)
        await stream.done_writing()


async def test_a_start_that_is_refused_leaves_no_sequence(folder: Path) -> None:
    """A START that finds no room among the waiting steps, or no time, has not happened."""
    limits = {"pending_steps_max": 1, "call_s_max": 0.3}
    async with serving(folder, is_running=False, **limits) as wire:
        call = wire.channel.unary_unary(PATH + "ModelInfer")
        late = call(infer(rows(1, 0), sequence_id=1, sequence_start=True).SerializeToString())
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == 1)
        said = await refused(wire, infer(rows(1, 1), sequence_id=2, sequence_start=True))
        assert (said.reason, said.code) == ("OVERLOADED", StatusCode.RESOURCE_EXHAUSTED)
        assert said.retry_s is not None
        await wire.until(lambda: len(wire.engine.table) == 1)
        assert await late.code() is StatusCode.DEADLINE_EXCEEDED
        wire.run()
        await wire.until(lambda: len(wire.engine.table) == 0)
        for sequence_id in (1, 2):
            assert (await refused(wire, infer(rows(1, 0), sequence_id=sequence_id))).reason in (
                "SESSION_CLOSED",
                "SESSION_NOT_FOUND",
            )


@pytest.mark.parametrize(("names", "more"), [(["y"], 0), (["y", "cn", "y_last"], 128 + 8)])
async def test_states_count_as_bytes_of_the_answer(
    folder: Path, names: list[str], more: int
) -> None:
    """A step that waits holds the bytes of its input and of its answer, with the states and the
    last row where it asks for them beside y."""
    async with serving(folder, is_running=False) as wire:
        message = infer(rows(1, 0), sequence_id=1, sequence_start=True)
        for name in names:
            message.outputs.add(name=name)
        content = message.SerializeToString()
        answer = asyncio.ensure_future(sent(wire, content))
        await wire.until(lambda: wire.engine.batch_loop.pending_steps == 1)
        assert wire.pending.held == max(len(content), 3 * 4 + 2 * 4 + more)
        wire.run()
        await answer


async def test_limits_of_a_tenant(models: Path, tmp_path: Path) -> None:
    """Rows a second are limited for sequences and for whole ones, and a repeat of a numbered step
    is admitted."""
    async with limited(models, tmp_path, "rows_per_s=4") as running, running.channel() as channel:
        running.clock.add(0)
        call = channel.unary_unary(PATH + "ModelInfer")

        async def code(message: pb.ModelInferRequest) -> StatusCode:
            content = message.SerializeToString()
            sending = call(content, metadata=running.metadata("acme"), timeout=30)
            return await sending.code()

        x = rows(4, 0)
        last = infer(x[2:], model="tiny", sequence_id=1, step=2)
        start = infer(x[:2], model="tiny", sequence_id=1, sequence_start=True)
        assert await code(start) is StatusCode.OK
        assert await code(last) is StatusCode.OK
        assert await code(last) is StatusCode.OK, "a repeat"
        more = [infer(x[:1], model="tiny", sequence_id=1), infer(x[np.newaxis], model="tiny")]
        more.append(infer(x[:1], model="tiny", sequence_id=2, sequence_start=True))
        assert [await code(each) for each in more] == [StatusCode.RESOURCE_EXHAUSTED] * 3
        assert len(running.engine.table) == 1


def test_only_the_server_knows_the_dialect() -> None:
    """Its stubs would clash with others of `inference.*`, so client and command line import none of
    them."""
    importers = {
        str(path.relative_to(ROOT / "service" / "lstmserve").parent)
        for path in (ROOT / "service").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lstmserve.kserve")
    }
    assert importers == {"server", "server/kserve"}
    code = "import sys, lstmserve.client, lstmserve.cli; print('lstmserve.kserve' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert run.stdout == "False\n"
