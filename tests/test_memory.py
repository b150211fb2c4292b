"""What a call leaves behind when it has ended: nothing that waits for the garbage collector.

For a call that its client cancels, the test counts only the server's own objects. Client and server
are one process here, and grpc.aio's client keeps those calls until its channel is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc.aio
import numpy as np
import pytest

from lstmserve.engine.arrays import Output
from lstmserve.engine.model import Model
from lstmserve.engine.scheduling.batch import Batch
from lstmserve.kserve.v2 import inference_pb2 as kserve
from lstmserve.server.kserve.infer import StreamInfer, UnaryInfer
from lstmserve.v1 import lstm_pb2 as public
from lstmserve.wire.v1 import lstm_pb2 as pb
from serving import environment
from wire import Wire, serving

SERVICE = "inference.GRPCInferenceService"
LENGTH = 8000
X = np.random.default_rng(0).standard_normal(3 * LENGTH, np.float32).tobytes()
NAN = np.full(3 * LENGTH, np.nan, np.float32).tobytes()
CALLS = 8
KEPT_BYTES_MAX = len(X) // 4  # for one call, whose message and reply are three times that


async def step(wire: Wire, session: public.Session, **fields: object) -> None:
    """Makes a unary Step, which may be refused."""
    request = pb.StepRequest(**{"session_id": session.id, "x": X, "length": LENGTH, **fields})
    with contextlib.suppress(grpc.aio.AioRpcError):
        await wire.send("Step", request.SerializeToString())


async def conversation(wire: Wire, method: str, request: object) -> None:
    """Makes a stream of one message."""
    stream = wire.stream(method)
    await stream.write(request.SerializeToString())  # type: ignore[attr-defined]  # a message
    assert await stream.read() is not grpc.aio.EOF
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF


async def streamed(wire: Wire, session: public.Session, x: bytes = X) -> None:
    """Makes a StepStream."""
    request = pb.StepRequest(session_id=session.id, x=x, length=LENGTH)
    await conversation(wire, "StepStream", request)


async def many(wire: Wire, session: public.Session, x: bytes = X, other: str = "") -> None:
    """Makes a StepMany, perhaps with another session for the last row."""
    ids, lengths = [session.id], [LENGTH]
    if other:
        ids, lengths = [session.id, other], [LENGTH - 1, 1]
    request = pb.StepManyRequest(session_ids=ids, x=x, lengths=lengths)
    await conversation(wire, "StepMany", request)


async def predict(wire: Wire, session: public.Session) -> None:
    """Makes a Predict."""
    request = pb.PredictRequest(model="m", x=X, lengths=[LENGTH])
    await wire.send("Predict", request.SerializeToString())


def inference(session: public.Session, x: bytes, sequence: str) -> kserve.ModelInferRequest:
    """A ModelInfer request: a whole sequence at once, or a step of an unknown one."""
    request = kserve.ModelInferRequest(model_name="m", raw_input_contents=[x])
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, LENGTH, 3])
    assert tensor.name == "x"
    if sequence:
        request.parameters["sequence_id"].string_param = sequence + session.id
        for name in ("sequence_start", "sequence_end"):
            request.parameters[name].bool_param = True
    return request


async def infer(wire: Wire, session: public.Session, x: bytes = X, sequence: str = "s") -> None:
    """Makes a ModelInfer."""
    request = inference(session, x, sequence).SerializeToString()
    call = wire.channel.unary_unary(f"/{SERVICE}/ModelInfer")
    with contextlib.suppress(grpc.aio.AioRpcError):
        await call(request, timeout=30)


async def infer_stream(wire: Wire, session: public.Session) -> None:
    """Makes a ModelStreamInfer."""
    stream = wire.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(timeout=30)
    await stream.write(inference(session, X, "s").SerializeToString())
    assert await stream.read() is not grpc.aio.EOF
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF


Call = Callable[[Wire, public.Session], Awaitable[None]]
ENDS: dict[str, Call] = {
    "step": step,
    "stream": streamed,
    "many": many,
    "predict": predict,
    "not finite": lambda wire, session: step(wire, session, x=NAN),
    "not finite, stream": lambda wire, session: streamed(wire, session, NAN),
    "not finite, many": lambda wire, session: many(wire, session, NAN),
    "unknown, many": lambda wire, session: many(wire, session, X, "nobody"),
    "gap": lambda w, session: step(w, session, step=7, incarnation=session.incarnation),
    "sequence": infer,
    "sequence, stream": infer_stream,
    "whole sequence": lambda wire, session: infer(wire, session, sequence=""),
    "not finite, sequence": lambda wire, session: infer(wire, session, NAN),
    "late": lambda wire, session: step(wire, session, timeout_ms=1),
}


@pytest.mark.parametrize("end", ENDS)
async def test_a_call_frees_its_memory_at_once(tmp_path: Path, end: str) -> None:
    """However a call and its session end, no cycle holds its message or its reply."""
    async with serving(tmp_path) as wire:

        async def once() -> None:
            session = await wire.open()
            await ENDS[end](wire, session)
            await wire.call("CloseSession", session_id=session.id)

        for _ in range(3):
            await once()
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(CALLS):
                await once()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
        print(f"{(after - before) // CALLS} bytes a call")
        assert after - before < CALLS * KEPT_BYTES_MAX


def messages_held() -> int:
    """The number of ModelInfer requests that some object still holds."""
    # isinstance() would ask every object for its __class__, and some of torch's warn of that.
    kinds = (UnaryInfer, StreamInfer)
    messages = [each for each in gc.get_objects() if type(each) in kinds]
    return sum(bool(each._content or each._message is not None) for each in messages)


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
async def test_a_message_that_nobody_reads_is_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """If the caller leaves while its message waits for a batch to end, the message is freed with
    it."""
    async with serving(tmp_path) as wire:
        session, busy, going = await wire.good(), asyncio.Event(), asyncio.Event()
        computing = wire.engine.batch_loop.executor
        run = computing.run

        async def slow(model: Model, batch: Batch) -> Output:
            busy.set()
            await going.wait()
            return await run(model, batch)

        monkeypatch.setattr(computing, "run", slow)
        monkeypatch.setattr(wire.engine.batch_loop, "run_now", lambda: False)
        stepping = asyncio.create_task(session.step())
        await busy.wait()
        gc.collect()
        gc.disable()
        try:
            content = inference(session.session, X, "s").SerializeToString()
            if method == "ModelInfer":
                call = wire.channel.unary_unary(f"/{SERVICE}/{method}")(content, timeout=30)
            else:
                call = wire.channel.stream_stream(f"/{SERVICE}/{method}")(timeout=30)
                await call.write(content)
            await wire.until(lambda: messages_held() == 1)
            call.cancel()
            await wire.until(lambda: wire.metrics.rpcs_handled == wire.metrics.rpcs_started - 1)
            assert messages_held() == 0
        finally:
            gc.enable()
            going.set()
        await stepping


HEAPS = """
import ctypes, sys, threading
from lstmserve.server import machine

if sys.argv[1] == "shared":
    machine.share_one_heap()
barrier = threading.Barrier(4)

def allocate():
    barrier.wait()
    kept = [bytes(5000) for _ in range(100)]
    barrier.wait()

threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_all_threads_share_one_heap() -> None:
    """With a heap for each thread, memory that one thread allocates and another frees stays in
    use."""
    counts = {}
    for how in ("shared", "own"):
        command = [sys.executable, "-c", HEAPS, how]
        done = subprocess.run(command, env=environment(), capture_output=True, check=True)
        counts[how] = done.stdout.count(b"<heap nr")
    assert counts["shared"] == 1 < counts["own"]
