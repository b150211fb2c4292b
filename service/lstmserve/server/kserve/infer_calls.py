"""Carries ModelInfer, one request per call. Decides nothing."""

from __future__ import annotations

import asyncio

from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.inbox import Inbox
from lstmserve.server.kserve.dialect import Dialect
from lstmserve.server.kserve.inference import Inference
from lstmserve.server.overtime import TooSlow
from lstmserve.server.rpc import Frame, Incoming
from lstmserve.server.status import code, reason

METHOD = "ModelInfer"


class InferCalls:
    """The handler; one for all calls."""

    def __init__(self, dialect: Dialect, inbox: Inbox[Inference], frame: Frame) -> None:
        self._dialect = dialect
        self._inbox = inbox
        self._frame = frame

    async def infer(self, incoming: Incoming) -> bytes:
        """A step that is cancelled before its last slice runs has not happened."""
        call = _Call()
        call.inference = Inference(self._dialect, call, incoming.take(), incoming.tenant)
        call.inference.lease = incoming.lease
        if incoming.context.time_remaining() is None:
            self._frame.overtime.watch(call)
        self._inbox.put(call.inference)
        return await call.answered()

    def count_failed(self, error: Exception) -> None:
        """Of a request that was refused before it was read."""
        self._dialect.counters(None).failed(METHOD, code(error), reason(error))


class _Call:
    """The carrier of one call's answer, which is watched for its time."""

    method = METHOD
    inference: Inference

    def __init__(self) -> None:
        self._reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def answered(self) -> bytes:
        """The response. Raises what the call ends with."""
        try:
            return await self._reply
        except asyncio.CancelledError:
            self.inference.cancel()
            raise
        finally:
            del self.inference  # which holds this

    @property
    def is_over(self) -> bool:
        """As Carrier.is_over, and Watched.is_over."""
        return self._reply.done()

    def answer(self, response: pb.ModelInferResponse) -> None:
        """As Carrier.answer."""
        self._reply.set_result(response.SerializeToString())

    def refuse(self, error: Exception, request: pb.ModelInferRequest | None) -> None:
        """As Carrier.refuse."""
        self._reply.set_exception(error)

    def expire(self, error: TooSlow) -> None:
        """As Watched.expire; what its step did is unknown."""
        self.inference.cancel()
        self._reply.set_exception(error)
