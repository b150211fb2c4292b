"""Floods of long messages: the server's memory stays within the formula of docs/SCALING.md.

Each form is a flood of its own on a server of its own. The peak of its resident memory comes from
the kernel (VmHWM), which misses no moment. Beside the flood one session steps, and is compared with
the oracle.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np

from lstmserve.config import Config
from lstmserve.head_layers import Linear
from lstmserve.kserve.v2 import inference_pb2 as kserve
from lstmserve.spec import LstmSpec
from lstmserve.wire.v1 import lstm_pb2 as wire
from serving import Serving
from soak.calls import PATH, Calls, Refused
from soak.conversation import Conversation
from soak.fleet import MODEL, Fleet, fleet_of
from soak.timing import pause

WIDE_IN = LstmSpec(input_size=64, hidden_size=64, head=(Linear(8),))
WIDE_OUT = LstmSpec(input_size=8, hidden_size=64, head=(Linear(64),))
ROWS = 10_000
FLOODERS = 60
POOL_BYTES = 16 << 20
PENDING_BYTES_MAX: int = Config().pending_bytes_max
FIXED_BYTES = 300 << 20
K = 6  # docs/SCALING.md
KSERVE_PATH = "/inference.GRPCInferenceService/"
WANTED = {"PENDING_BYTES", "OVERLOADED"}
QUIET_S_MAX = 30.0
TICK_S = 0.1


@dataclass
class Found:
    """What the flood of one form gave: the memory of the server, and how the calls ended."""

    form: str
    peak_bytes: int = 0
    before_bytes: int = 0
    rest_bytes: float = 0.0  # bytes that are still counted when no call is under way
    pending_bytes_most: float = 0.0
    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    hints_missing: int = 0
    neighbour_steps: int = 0
    scrapes_missed: int = 0
    wrong: int = 0

    @property
    def limit_bytes(self) -> int:
        """What the formula allows, in bytes."""
        return POOL_BYTES + FIXED_BYTES + K * PENDING_BYTES_MAX

    @property
    def factor(self) -> float:
        """The measured K: what the flood added, in multiples of the budget."""
        return (self.peak_bytes - self.before_bytes) / PENDING_BYTES_MAX

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        assert self.peak_bytes <= self.limit_bytes, self
        assert self.rest_bytes == 0, self
        assert self.refused.keys() <= WANTED, self
        assert self.hints_missing == 0, self
        assert self.wrong == 0, self
        assert self.answered > 0, self

    def figures(self) -> str:
        """The figures in one line, for people."""
        return (
            f"{self.form}: {self.before_bytes >> 20} -> {self.peak_bytes >> 20} MiB "
            f"(K {self.factor:.2f}), counted at most {int(self.pending_bytes_most) >> 20} MiB, "
            f"{self.answered} answered, {self.refused.total()} refused"
        )


@dataclass
class All:
    """What the floods of every form gave."""

    forms: list[Found]

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        for found in self.forms:
            found.check()

    def figures(self) -> str:
        """The figures of every form in one line, for people."""
        allowed = (self.forms[0].limit_bytes if self.forms else 0) >> 20
        worst = max(found.factor for found in self.forms)
        return (
            f"{FLOODERS} floods of messages of {ROWS} rows at once; resident memory at its peak, "
            f"of {allowed} MiB that the formula allows, K at most {worst:.2f}; "
            + "; ".join(found.figures() for found in self.forms)
        )


class Flood:
    """The senders of one form; each has a connection of its own."""

    def __init__(self, fleet: Fleet, found: Found, calls: list[Calls]) -> None:
        self.serving = fleet.pods[0].serving
        self.found = found
        self.calls = calls
        self.is_over = False
        self.ended: Counter[str] = Counter()
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((ROWS, fleet.spec.input_size), np.float32).tobytes()
        self.input_size = fleet.spec.input_size

    async def unary(
        self, i: int, method: str, request: Any, kind: type[Any], path: str = PATH
    ) -> None:
        """Makes one call after the other until the flood is over."""
        while not self.is_over:
            try:
                await self.calls[i].call(self.serving, method, request, kind, path=path)
            except Refused as error:
                self.refused(error)
            else:
                self.found.answered += 1

    def refused(self, error: Refused) -> None:
        """Counts a refusal."""
        self.found.refused[error.reason or f"{error.code.name} {error.text}"] += 1
        self.found.hints_missing += error.retry_s is None or error.pushback_ms is None

    async def streamed(
        self, i: int, method: str, request: bytes, *, path: str = PATH, reads: bool = True
    ) -> None:
        """Sends messages as fast as they are taken; with `reads` it reads the replies, too."""
        call = self.calls[i].open_stream(self.serving, path + method)
        sending = asyncio.create_task(self._send(call, request))
        try:
            if reads:
                while not self.is_over and await call.read() is not grpc.aio.EOF:
                    self.found.answered += 1
            else:
                while not self.is_over:  # the server ends such a stream, and the sender goes on
                    await pause(TICK_S)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            self.ended[str(error)[:80]] += 1
        finally:
            sending.cancel()
            call.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, call: Any, request: bytes) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while not self.is_over:
                await call.write(request)

    async def session(self, i: int) -> wire.Session:
        """A session for this sender."""
        request = wire.OpenSessionRequest(
            model=MODEL, session_id=f"flood-{i}", if_exists=wire.IF_EXISTS_RESUME
        )
        kind = wire.OpenSessionResponse
        reply = await self.calls[i].call(self.serving, "OpenSession", request, kind)
        opened: wire.Session = reply.session
        return opened

    def inference(self, i: int) -> kserve.ModelInferRequest:
        """A step of a sequence that begins and ends with it."""
        request = kserve.ModelInferRequest(model_name=MODEL, raw_input_contents=[self.x])
        request.inputs.add(name="x", datatype="FP32", shape=[1, ROWS, self.input_size])
        request.parameters["sequence_id"].string_param = f"flood-{i}"
        for name in ("sequence_start", "sequence_end"):
            request.parameters[name].bool_param = True
        return request


async def step(flood: Flood, i: int) -> None:
    """Floods with Step."""
    session = await flood.session(i)
    request = wire.StepRequest(session_id=session.id, length=ROWS, x=flood.x)
    await flood.unary(i, "Step", request, wire.StepResponse)


async def step_stream(flood: Flood, i: int, *, reads: bool = True) -> None:
    """Floods with StepStream."""
    session = await flood.session(i)
    request = wire.StepRequest(session_id=session.id, length=ROWS, x=flood.x)
    await flood.streamed(i, "StepStream", request.SerializeToString(), reads=reads)


async def step_many(flood: Flood, i: int) -> None:
    """Floods with StepMany."""
    session = await flood.session(i)
    request = wire.StepManyRequest(session_ids=[session.id], lengths=[ROWS], x=flood.x)
    await flood.streamed(i, "StepMany", request.SerializeToString())


async def predict(flood: Flood, i: int) -> None:
    """Floods with Predict."""
    request = wire.PredictRequest(model=MODEL, lengths=[ROWS], x=flood.x)
    await flood.unary(i, "Predict", request, wire.PredictResponse)


async def infer(flood: Flood, i: int) -> None:
    """Floods with ModelInfer."""
    kind = kserve.ModelInferResponse
    await flood.unary(i, "ModelInfer", flood.inference(i), kind, KSERVE_PATH)


async def infer_stream(flood: Flood, i: int) -> None:
    """Floods with ModelStreamInfer."""
    request = flood.inference(i).SerializeToString()
    await flood.streamed(i, "ModelStreamInfer", request, path=KSERVE_PATH)


async def deaf(flood: Flood, i: int) -> None:
    """Floods with StepStream and reads no reply, each of eight times the bytes of the input."""
    await step_stream(flood, i, reads=i % 2 == 0)


async def repeats(flood: Flood, i: int) -> None:
    """Floods with StepStream and the same few numbers, which join the pending steps."""
    with contextlib.suppress(Refused):
        session = await flood.session(i)
        await _repeat(flood, i, session)


async def _repeat(flood: Flood, i: int, session: wire.Session) -> None:
    call = flood.calls[i].open_stream(flood.serving, f"{PATH}StepStream")
    reading = asyncio.create_task(_read(flood, call))
    request = wire.StepRequest(
        session_id=session.id, incarnation=session.incarnation, length=ROWS, x=flood.x
    )
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        number = 0
        while not flood.is_over:
            number += 1
            request.step = number
            content = request.SerializeToString()
            for _ in range(REPEATS):
                await call.write(content)
    reading.cancel()
    call.cancel()
    await asyncio.gather(reading, return_exceptions=True)


REPEATS = 20


async def _read(flood: Flood, call: Any) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        while await call.read() is not grpc.aio.EOF:
            flood.found.answered += 1


Form = Callable[[Flood, int], Awaitable[None]]
FORMS: dict[str, tuple[Form, LstmSpec]] = {
    "Step": (step, WIDE_IN),
    "StepStream": (step_stream, WIDE_IN),
    "StepMany": (step_many, WIDE_IN),
    "Predict": (predict, WIDE_IN),
    "ModelInfer": (infer, WIDE_IN),
    "ModelStreamInfer": (infer_stream, WIDE_IN),
    "long replies": (step, WIDE_OUT),
    "long replies of Predict": (predict, WIDE_OUT),
    "replies unread": (deaf, WIDE_OUT),
    "repeats": (repeats, WIDE_IN),
}


def run(folder: Path, *, seconds: float, forms: tuple[str, ...] = tuple(FORMS)) -> All:
    """Floods a server in each form, for `seconds` each."""
    found = []
    for form in forms:
        found.append(Found(form))
        _, spec = FORMS[form]
        place = folder / form.replace(" ", "-")
        with fleet_of(place, 1, "--pool-bytes", str(POOL_BYTES), spec=spec) as fleet:
            asyncio.run(_run(fleet, found[-1], seconds))
    return All(found)


async def _run(fleet: Fleet, found: Found, seconds: float) -> None:
    serving = fleet.pods[0].serving
    send, _ = FORMS[found.form]
    async with contextlib.AsyncExitStack() as stack:
        calls = [await stack.enter_async_context(Calls()) for _ in range(FLOODERS + 1)]
        talk = Conversation(fleet, calls[-1], "neighbour")
        await talk.open()
        found.before_bytes = resident(serving, "VmRSS")
        flood = Flood(fleet, found, calls)
        sending = [asyncio.create_task(send(flood, i)) for i in range(FLOODERS)]
        neighbour = asyncio.create_task(_step_beside(flood, talk))
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s and not all(task.done() for task in sending):
            await _sample(serving, found)
            await pause(TICK_S)
        flood.is_over = True
        await asyncio.gather(neighbour, *sending)
        await _until_quiet(serving, found)
        await talk.verify()
        found.wrong = talk.violations.wrong + talk.violations.lost + talk.violations.doubled
    found.peak_bytes = resident(serving, "VmHWM")


async def _step_beside(flood: Flood, talk: Conversation) -> None:
    """Sends short steps, which must be applied exactly, or refused."""
    rng = np.random.default_rng(1)
    while not flood.is_over:
        try:
            await talk.try_once(flood.serving, rng, 1)
        except Refused as error:
            flood.refused(error)
        else:
            flood.found.neighbour_steps += 1


async def _sample(serving: Serving, found: Found) -> None:
    try:
        value = await asyncio.to_thread(serving.metric, "lstm_pending_bytes")
    except ValueError:  # no metrics: the event loop was late
        found.scrapes_missed += 1
        return
    found.pending_bytes_most = max(found.pending_bytes_most, value)
    found.rest_bytes = value


async def _until_quiet(serving: Serving, found: Found) -> None:
    end_s = time.monotonic() + QUIET_S_MAX
    while time.monotonic() < end_s:
        await _sample(serving, found)
        if not (found.rest_bytes or await asyncio.to_thread(serving.metric, "lstm_pending_steps")):
            return
        await pause(TICK_S)


def resident(serving: Serving, name: str) -> int:
    """VmRSS in bytes, or VmHWM, which is its peak."""
    text = Path(f"/proc/{serving.process.pid}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10
