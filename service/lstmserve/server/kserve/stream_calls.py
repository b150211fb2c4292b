"""Carries ModelStreamInfer: any models and sequences on one connection. Decides nothing.

Errors are in band and the stream goes on, unless the client asked for Triton's other way.
"""

from __future__ import annotations

from lstmserve.engine.errors import ServeError
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.inbox import Inbox
from lstmserve.server.kserve.dialect import Dialect
from lstmserve.server.kserve.inference import Inference
from lstmserve.server.kserve.telling import SHOWN_MAX, facts, with_text
from lstmserve.server.ordered import OrderedWindow
from lstmserve.server.pending_bytes import Lease, PendingBytes
from lstmserve.server.status import to_status
from lstmserve.server.transport import StreamCall

METHOD = "ModelStreamInfer"
GRPC_ERROR_KEY = "triton_grpc_error"
LINE = ""  # one for the whole stream, as clients of Triton expect


class StreamCalls:
    """The method; one for all streams."""

    def __init__(self, dialect: Dialect, inbox: Inbox[Inference], pending: PendingBytes) -> None:
        self.dialect = dialect
        self.inbox = inbox
        self.pending = pending

    def begin(self, stream: StreamCall, tenant: Tenant) -> _Stream:
        """As Begin. Answers come in the order of the requests."""
        return _Stream(self, stream, tenant)


class _Stream(OrderedWindow["_Message"]):
    """One stream."""

    def __init__(self, calls: StreamCalls, stream: StreamCall, tenant: Tenant) -> None:
        super().__init__(stream, calls.pending, tenant)
        self._calls = calls
        metadata = stream.invocation_metadata() or ()
        self._ends_at_error = (GRPC_ERROR_KEY, "true") in [(key, value) for key, value in metadata]

    def open(self, content: bytes) -> _Message:
        """As Window.open."""
        message = _Message(self, self._ends_at_error)
        message.inference = Inference(self._calls.dialect, message, content, self.tenant)
        return message

    def accept(self, message: _Message) -> None:
        """As Window.accept."""
        message.inference.lease = message.lease
        self.enter(message, LINE)
        self._calls.inbox.put(message.inference)


class _Message:
    """The carrier of one message's answer."""

    method = METHOD
    inference: Inference
    lease: Lease

    def __init__(self, stream: _Stream, ends_at_error: bool) -> None:
        self._stream = stream
        self._ends_at_error = ends_at_error
        self.is_over = False

    def size(self) -> int:
        """As Message.size."""
        return self.inference.size()

    def answer(self, response: pb.ModelInferResponse) -> None:
        """As Carrier.answer."""
        response.parameters["triton_final_response"].bool_param = True
        self._answer(pb.ModelStreamInferResponse(infer_response=response))

    def refuse(self, error: Exception, request: pb.ModelInferRequest | None) -> None:
        """As Carrier.refuse."""
        if self._ends_at_error:
            if isinstance(error, ServeError):
                error = with_text(error, facts(request) + error.message)
            self.is_over = True
            self._stream.fail(self, error)
            return
        response = pb.ModelInferResponse(id="" if request is None else request.id)
        if request is not None:
            response.model_name = request.model_name[:SHOWN_MAX]
        text = facts(request) + to_status(error, method=METHOD).message
        self._answer(pb.ModelStreamInferResponse(error_message=text, infer_response=response))

    def _answer(self, response: pb.ModelStreamInferResponse) -> None:
        self.is_over = True
        self._stream.answer(self, response.SerializeToString())

    def cancel(self) -> None:
        """The stream is gone."""
        self.is_over = True
        self.lease.release()
        self.inference.cancel()
