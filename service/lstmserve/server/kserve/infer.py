"""ModelInfer and ModelStreamInfer: one request for each call or message of a stream.

Messages that arrive together are read together, and their steps go to the engine together. This
module decides nothing: it must not know what a sequence is.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

from lstmserve.engine import Engine, Model
from lstmserve.engine.clock import Now
from lstmserve.engine.errors import ServeError
from lstmserve.kserve.v2 import inference_pb2 as pb
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import parse
from lstmserve.server.inbox import Inbox
from lstmserve.server.kserve.predict import predict
from lstmserve.server.kserve.request import find_model, read_request, reply_bytes
from lstmserve.server.kserve.responses import (
    error_prefix,
    error_response,
    with_text,
    without_tensors,
)
from lstmserve.server.kserve.sequence import Sequences, SequenceStep
from lstmserve.server.message_sizes import MessageSizes
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.ordered import OrderedWindow
from lstmserve.server.pending_bytes import SHORT_BYTES, Lease, PendingBytes
from lstmserve.server.rpc import Frame
from lstmserve.server.status import to_status
from lstmserve.server.steps import Steps
from lstmserve.server.transport import StreamCall, UnaryCall

UNARY, STREAM = "ModelInfer", "ModelStreamInfer"
GRPC_ERROR_KEY = "triton_grpc_error"
LINE = ""  # one for the whole stream: Triton's clients expect answers in the order of requests


class InferCalls:
    """The calls ModelInfer and ModelStreamInfer of one port."""

    def __init__(self, engine: Engine, metrics: Metrics, pending: PendingBytes) -> None:
        self.engine = engine
        self.metrics = metrics
        self.pending = pending
        self.sizes = MessageSizes(engine.registry, engine.config, has_states=True)
        self.steps = Steps(engine, metrics)
        self.sequences = Sequences(engine, self.steps)
        self.inbox: Inbox[InferMessage] = Inbox(engine.batch_loop, self.read)

    def receive(self, frame: Frame, calls: list[UnaryCall]) -> None:
        """Takes calls of ModelInfer."""
        self.inbox.put_all([UnaryInfer(self, frame, call) for call in calls])

    def begin(self, stream: StreamCall, tenant: Tenant) -> InferStream:
        """Makes the handler of a ModelStreamInfer."""
        return InferStream(self, stream, tenant)

    def read(self, messages: Sequence[InferMessage]) -> None:
        """Begins messages that arrived together."""
        now = self.engine.clock()
        steps = [step for message in messages if (step := message.read(now)) is not None]
        if steps:
            self.steps.accept(steps)


class InferMessage(ABC):
    """One message, from its bytes to its answer: an InferResponder."""

    method: str
    lease: Lease  # once it was admitted

    def __init__(self, calls: InferCalls, tenant: Tenant, content: bytes) -> None:
        self.tenant = tenant
        self.arrival_ns = calls.engine.monotonic_ns()
        self._calls = calls
        self._content = content  # until it is parsed
        self._message: pb.ModelInferRequest | None = None  # from then on, until it is read
        self._model: Model | None = None
        self._work: SequenceStep | asyncio.Task[None] | None = None

    @property
    @abstractmethod
    def is_over(self) -> bool:
        """Whether the caller has its answer, or has gone."""

    @abstractmethod
    def answer(self, response: pb.ModelInferResponse) -> None:
        """Sends the response; the request was done."""

    @abstractmethod
    def send_error(self, error: Exception) -> None:
        """Sends the error, which was counted."""

    def size(self) -> int:
        """The most bytes that it takes with its answer; a long message is parsed for that."""
        calls, length = self._calls, len(self._content)
        if (bound := calls.sizes.bound(length)) <= SHORT_BYTES:
            return bound
        try:
            message = self._message = self.parse()
            model = find_model(calls.engine, message.model_name, message.model_version)
        except ServeError:
            return length  # it is refused when it is read
        return length * model.spec.cells + reply_bytes(model, message)

    def parse(self) -> pb.ModelInferRequest:
        """The message, whose bytes are not kept. Raises Malformed, PendingBytesFull."""
        message = parse(pb.ModelInferRequest, self._content)
        self._content = b""
        return message

    def read(self, now: Now) -> SequenceStep | None:
        """Begins the work; returns its step where the engine may have that now. Does not raise."""
        if self.is_over:
            return None
        calls, engine = self._calls, self._calls.engine
        try:
            message = self.parse() if self._message is None else self._message
            self._model = find_model(engine, message.model_name, message.model_version)
            request = read_request(self._model, message)
            self._message = None
            if request.parameters.sequence is None:
                work = predict(engine, calls.metrics, self, request)
                self._work = asyncio.create_task(work, name="whole sequences")
                return None
            self._work = step = SequenceStep(calls.sequences, self, request)
            return step if step.begin(now) else None
        except Exception as error:
            self.refuse(error)
            return None

    def refuse(self, error: Exception) -> None:
        """Counts the error and sends it, unless the caller has gone."""
        self.let_go()
        if self.is_over:
            return
        self._calls.steps.count_failed(self.method, error, self._model)
        if isinstance(error, ServeError):
            error = error.with_traceback(None)  # its frames hold the message
        self.send_error(error)

    def let_go(self) -> None:
        """Drops the message and the work, which holds this: memory is freed without a collector."""
        self._work = self._message = None
        self._content = b""

    def cancel(self) -> None:
        """Ends the work, as the caller has gone."""
        work = self._work
        self.let_go()
        if work is not None:
            work.cancel()


class UnaryInfer(InferMessage):
    """A call of ModelInfer."""

    method = UNARY

    def __init__(self, calls: InferCalls, frame: Frame, call: UnaryCall) -> None:
        super().__init__(calls, call.tenant, call.take())
        self._frame = frame
        self._call = call
        self.lease = call.lease
        call.on_gone = self.cancel  # a step that is cancelled before it runs has not happened

    @property
    def is_over(self) -> bool:
        return self._call.is_over

    def answer(self, response: pb.ModelInferResponse) -> None:
        self.let_go()
        self._frame.reply(self._call, response.SerializeToString())

    def send_error(self, error: Exception) -> None:
        self._frame.abort(self._call, error, UNARY)


class InferStream(OrderedWindow["StreamInfer"]):
    """A ModelStreamInfer: any models and sequences on one connection.

    Errors are in band and the stream goes on, unless its client asked for Triton's other way.
    """

    def __init__(self, calls: InferCalls, stream: StreamCall, tenant: Tenant) -> None:
        super().__init__(stream, calls.pending, tenant)
        self.calls = calls
        metadata = stream.invocation_metadata() or ()
        self.ends_at_error = (GRPC_ERROR_KEY, "true") in [(key, value) for key, value in metadata]

    def open(self, content: bytes) -> StreamInfer:
        return StreamInfer(self, content)

    def accept(self, message: StreamInfer) -> None:
        self.enter(message, LINE)
        self.calls.inbox.put(message)


class StreamInfer(InferMessage):
    """A message of a ModelStreamInfer."""

    method = STREAM

    def __init__(self, stream: InferStream, content: bytes) -> None:
        super().__init__(stream.calls, stream.tenant, content)
        self._stream = stream
        self._is_over = False
        self._shown: pb.ModelInferRequest | None = None  # what an error shows of the message

    @property
    def is_over(self) -> bool:
        return self._is_over

    def parse(self) -> pb.ModelInferRequest:
        """Does what InferMessage.parse() does, and keeps what an error shows of the message."""
        message = super().parse()
        self._shown = without_tensors(message)
        return message

    def answer(self, response: pb.ModelInferResponse) -> None:
        self.let_go()
        if not self._is_over:
            response.parameters["triton_final_response"].bool_param = True
            self._send(pb.ModelStreamInferResponse(infer_response=response))

    def send_error(self, error: Exception) -> None:
        if not self._stream.ends_at_error:
            self._send(error_response(self._shown, to_status(error, method=STREAM).message))
            return
        if isinstance(error, ServeError):
            error = with_text(error, error_prefix(self._shown) + error.message)
        self._is_over = True
        self._stream.fail(self, error)

    def _send(self, response: pb.ModelStreamInferResponse) -> None:
        self._is_over = True
        self._stream.answer(self, response.SerializeToString())

    def cancel(self) -> None:
        """Ends the work and releases the bytes, as the stream has gone."""
        self._is_over = True
        self.lease.release()
        super().cancel()
