"""Carries ModelStreamInfer: any models and sequences on one connection. Decides nothing.

Errors are in band and the stream goes on, unless the client asked for Triton's other way.
"""

from __future__ import annotations

from lstmserve.config import Config
from lstmserve.engine.errors import ServeError
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.inbox import Inbox
from lstmserve.server.kserve.dialect import Dialect
from lstmserve.server.kserve.inference import Inference
from lstmserve.server.kserve.telling import SHOWN_MAX, facts, with_text
from lstmserve.server.ordered import OrderedWindow
from lstmserve.server.pending_bytes import Lease, PendingBytes
from lstmserve.server.rpc import Context
from lstmserve.server.status import to_status
from lstmserve.server.window import Stream, converse

METHOD = "ModelStreamInfer"
GRPC_ERROR_KEY = "triton_grpc_error"
LINE = ""  # one for the whole stream, as clients of Triton expect


class StreamCalls:
    """The handler; one for all calls."""

    def __init__(
        self, dialect: Dialect, inbox: Inbox[Inference], pending: PendingBytes, config: Config
    ) -> None:
        self._dialect = dialect
        self._inbox = inbox
        self._pending = pending
        self._config = config

    async def infer(self, context: Context, tenant: Tenant) -> None:
        """Answers come in the order of the requests."""
        window = OrderedWindow(self._config.stream_window)
        metadata = context.invocation_metadata() or ()
        ends_at_error = (GRPC_ERROR_KEY, "true") in [(key, value) for key, value in metadata]
        stream = Stream(context, self._pending, tenant.account, self._config.write_s_max)

        async def accept(content: bytes) -> int:
            message = _Message(window, ends_at_error)
            inference = message.inference = Inference(self._dialect, message, content, tenant)
            del content
            size = inference.size()
            message.lease = inference.lease = await stream.admit(size)
            window.add(message)
            window.enter(message, LINE)
            self._inbox.put(inference)
            return size

        await converse(stream, window, accept)


class _Message:
    """The carrier of one message's answer."""

    method = METHOD
    inference: Inference
    lease: Lease

    def __init__(self, window: OrderedWindow, ends_at_error: bool) -> None:
        self._window = window
        self._ends_at_error = ends_at_error
        self.is_over = False

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
            self._window.fail(self, error)
            return
        response = pb.ModelInferResponse(id="" if request is None else request.id)
        if request is not None:
            response.model_name = request.model_name[:SHOWN_MAX]
        text = facts(request) + to_status(error, method=METHOD).message
        self._answer(pb.ModelStreamInferResponse(error_message=text, infer_response=response))

    def _answer(self, response: pb.ModelStreamInferResponse) -> None:
        self.is_over = True
        self._window.answer(self, response.SerializeToString())

    def cancel(self) -> None:
        """The stream is gone."""
        self.is_over = True
        self.lease.release()
        self.inference.cancel()
