"""Carries ModelInfer, one request per call. Decides nothing."""

from __future__ import annotations

from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.inbox import Inbox
from lstmserve.server.kserve.dialect import Dialect
from lstmserve.server.kserve.inference import Inference
from lstmserve.server.rpc import Frame
from lstmserve.server.status import code, reason
from lstmserve.server.transport import UnaryCall

METHOD = "ModelInfer"


class InferCalls:
    """The method; one for all calls."""

    def __init__(self, dialect: Dialect, inbox: Inbox[Inference], frame: Frame) -> None:
        self._dialect = dialect
        self._inbox = inbox
        self._frame = frame

    def receive(self, calls: list[UnaryCall]) -> None:
        """Calls that arrived together: they are read together."""
        self._inbox.put_all([self._inference(call) for call in calls])

    def _inference(self, call: UnaryCall) -> Inference:
        carrier = _Call(self._frame, call)
        inference = Inference(self._dialect, carrier, call.take(), call.tenant)
        inference.lease = call.lease
        call.on_gone = inference.cancel  # a step that is cancelled before it runs has not happened
        return inference

    def count_failed(self, error: Exception) -> None:
        """Of a request that was refused before it was read."""
        self._dialect.counters(None).failed(METHOD, code(error), reason(error))


class _Call:
    """The carrier of one call's answer."""

    method = METHOD

    def __init__(self, frame: Frame, call: UnaryCall) -> None:
        self._frame = frame
        self._call = call

    @property
    def is_over(self) -> bool:
        """As Carrier.is_over."""
        return self._call.is_over

    def answer(self, response: pb.ModelInferResponse) -> None:
        """As Carrier.answer."""
        self._frame.reply(self._call, response.SerializeToString())

    def refuse(self, error: Exception, request: pb.ModelInferRequest | None) -> None:
        """As Carrier.refuse."""
        self._frame.abort(self._call, error, METHOD)
