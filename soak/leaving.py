"""Calls of every kind, by a client that may leave each of them at any moment.

A step of the client's own session is numbered and sent again until it is answered, so its history
stays known. The state of the spare session and sequence is unknown; their ids are used again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
import numpy as np

from lstmserve.kserve.v2 import inference_pb2 as kserve
from lstmserve.wire.v1 import lstm_pb2 as wire
from soak.calls import TIMEOUT_S, Calls, Refused
from soak.conversation import Conversation
from soak.fleet import MODEL, Fleet

KSERVE = "/inference.GRPCInferenceService/"
MOMENT_S_MIN, MOMENT_S_MAX = 5e-5, 5e-2
ITS_OWN = "Internal error from Core"  # grpc.aio's text for a write to a stream that has ended


class Leaver:
    """One client: its session, a spare one, a sequence, and a connection."""

    def __init__(self, fleet: Fleet, calls: Calls, rng: np.random.Generator, index: int) -> None:
        self.talk = Conversation(fleet, calls, f"own-{index}")
        self.spare = f"spare-{index}"
        self.calls = calls
        self.rng = rng
        self.serving = fleet.pods[0].serving
        self._fleet = fleet

    async def step(self, calls: Calls, timeout_s: float) -> None:
        """Sends the next step of its session."""
        await self._unary(calls, "Step", self._own(), timeout_s)

    async def step_stream(self, calls: Calls, timeout_s: float) -> None:
        """Sends the next step of its session on a stream."""
        await self._stream(calls, "StepStream", self._own(), wire.StepResponse, timeout_s)

    async def step_many(self, calls: Calls, timeout_s: float) -> None:
        """Sends the next step of its session in a message of columns."""
        own = self._own()
        request = wire.StepManyRequest(
            session_ids=[own.session_id],
            steps=[own.step],
            incarnations=[own.incarnation],
            lengths=[own.length],
            x=own.x,
        )
        await self._stream(calls, "StepMany", request, wire.StepManyResponse, timeout_s)

    async def step_spare(self, calls: Calls, timeout_s: float) -> None:
        """Sends a step without a number to the spare session."""
        request = wire.StepRequest(session_id=self.spare, x=self._x(1))
        await self._unary(calls, "Step", request, timeout_s)

    async def open(self, calls: Calls, timeout_s: float) -> None:
        """Opens the spare session, or restarts it."""
        request = wire.OpenSessionRequest(
            model=MODEL, session_id=self.spare, if_exists=wire.IF_EXISTS_RESTART
        )
        await self._unary(calls, "OpenSession", request, timeout_s)

    async def close(self, calls: Calls, timeout_s: float) -> None:
        """Closes the spare session."""
        request = wire.CloseSessionRequest(session_id=self.spare)
        await self._unary(calls, "CloseSession", request, timeout_s)

    async def predict(self, calls: Calls, timeout_s: float) -> None:
        """Sends a Predict, which has no session."""
        rows = int(self.rng.integers(1, 200))
        request = wire.PredictRequest(model=MODEL, lengths=[rows], x=self._x(rows))
        await self._unary(calls, "Predict", request, timeout_s)

    async def infer(self, calls: Calls, timeout_s: float) -> None:
        """Sends a request of the sequence: the first, another or the last."""
        request = self.inference(is_start=self.rng.random() < 0.5, is_end=self.rng.random() < 0.2)
        reply = kserve.ModelInferResponse
        await calls.call(self.serving, "ModelInfer", request, reply, timeout_s, KSERVE)

    async def infer_stream(self, calls: Calls, timeout_s: float) -> None:
        """Sends two requests of the sequence on a stream."""
        requests = [self.inference(is_start=True), self.inference()]
        reply = kserve.ModelStreamInferResponse
        await calls.stream(self.serving, "ModelStreamInfer", requests, reply, timeout_s, KSERVE)

    def inference(self, *, is_start: bool = False, is_end: bool = False) -> Any:
        """A request of one row of the sequence, which has the name of the spare session."""
        shape = [1, 1, self._fleet.spec.input_size]
        request = kserve.ModelInferRequest(model_name=MODEL, raw_input_contents=[self._x(1)])
        request.inputs.add(name="x", datatype="FP32", shape=shape)
        request.parameters["sequence_id"].string_param = self.spare
        request.parameters["sequence_start"].bool_param = is_start
        request.parameters["sequence_end"].bool_param = is_end
        return request

    async def fill(self, count: int) -> int:
        """Steps `count` sessions in one message. Returns how many were refused."""
        names = [f"full-{i}" for i in range(count)]
        for name in names:
            await self._ask("OpenSession", session_id=name, model=MODEL)
        request = wire.StepManyRequest(session_ids=names, x=self._x(count))
        kind = wire.StepManyResponse
        (reply,) = await self.calls.stream(self.serving, "StepMany", [request], kind)
        for name in names:
            await self._ask("CloseSession", session_id=name)
        return len(reply.errors) + reply.HasField("error")

    async def end(self) -> None:
        """Ends every session that it may have."""
        await self._ask("CloseSession", session_id=self.talk.name)
        with contextlib.suppress(Refused):  # it may never have been opened
            await self._ask("CloseSession", session_id=self.spare)
        last = self.inference(is_start=True, is_end=True)
        await self.calls.call(
            self.serving, "ModelInfer", last, kserve.ModelInferResponse, path=KSERVE
        )

    def call(self, calls: Calls, timeout_s: float = TIMEOUT_S) -> asyncio.Task[str]:
        """Starts a call of any kind. The task returns its code."""
        kind = KINDS[int(self.rng.integers(len(KINDS)))]
        return asyncio.create_task(_code(lambda: kind(self, calls, timeout_s)))

    def moment_s(self) -> float:
        """A random time; its logarithm is uniform."""
        return float(np.exp(self.rng.uniform(np.log(MOMENT_S_MIN), np.log(MOMENT_S_MAX))))

    def _own(self) -> wire.StepRequest:
        return self.talk.request(len(self.talk.inputs))

    def _x(self, rows: int) -> bytes:
        shape = rows, self._fleet.spec.input_size
        return self.rng.standard_normal(shape).astype(np.float32).tobytes()

    async def _ask(self, method: str, **fields: Any) -> None:
        request = getattr(wire, f"{method}Request")(**fields)
        await self._unary(self.calls, method, request, TIMEOUT_S)

    async def _unary(self, calls: Calls, method: str, request: Any, timeout_s: float) -> None:
        reply = getattr(wire, f"{method}Response")
        await calls.call(self.serving, method, request, reply, timeout_s)

    async def _stream(
        self, calls: Calls, method: str, request: Any, kind: type[Any], timeout_s: float
    ) -> None:
        await calls.stream(self.serving, method, [request], kind, timeout_s)


async def _code(call: Callable[[], Awaitable[None]]) -> str:
    try:
        await call()
    except Refused as error:
        return "ENDED" if error.text == ITS_OWN else error.code.name
    except (grpc.aio.InternalError, asyncio.InvalidStateError):
        return "ENDED"
    return "OK"


Kind = Callable[[Leaver, Calls, float], Awaitable[None]]
KINDS: tuple[Kind, ...] = (
    Leaver.step,
    Leaver.step_stream,
    Leaver.step_many,
    Leaver.step_spare,
    Leaver.open,
    Leaver.close,
    Leaver.predict,
    Leaver.infer,
    Leaver.infer_stream,
)
