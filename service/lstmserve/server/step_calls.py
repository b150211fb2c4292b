"""Translates Step and StepStream: one session's step per message. Decides nothing."""

from __future__ import annotations

import asyncio

import grpc.aio

from lstmserve.engine import Engine
from lstmserve.engine.sessions import session_key
from lstmserve.engine.step import Sink, Step
from lstmserve.errors import BadStep, Malformed, NotImplementedYet, ServeError
from lstmserve.server.codec import check_finite, check_length, input_rows, parse
from lstmserve.server.metrics import Metrics
from lstmserve.server.rpc import Context
from lstmserve.server.status import code, to_status
from lstmserve.server.window import Window
from lstmserve.wire.v1 import lstm_pb2 as pb

MILLISECOND_NS = 1_000_000


class StepCalls:
    """The handlers; one for all calls."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    async def step(self, request: pb.StepRequest, context: Context) -> pb.StepResponse:
        """A step that is cancelled before its last slice runs has not happened."""
        reply = _Reply(asyncio.get_running_loop().create_future())
        try:
            if not request.session_id:
                raise Malformed("session_id is missing", field="session_id")
            step = self.submit(request, request.session_id, reply)
        except ServeError as error:
            self.count_refused("Step", error)
            raise
        try:
            await reply.future
        except asyncio.CancelledError:
            step.is_cancelled = True
            raise
        except ServeError as error:
            self.count_failed("Step", step, error)
            raise
        self.count_applied("Step", step)
        return response(step, request.tag)

    async def step_stream(self, context: Context) -> None:
        """Replies come in the order of each session; errors are in band, the stream goes on."""
        window: Window[_StreamReply] = Window(self._engine.config.stream_window)
        writer = asyncio.create_task(self._write(window, context))
        session_id = ""
        try:
            while (content := await context.read()) is not grpc.aio.EOF:
                session_id = self._accept(content, session_id, window)
                await window.room()
            window.end()
            await writer
        finally:
            writer.cancel()
            for reply in window.unanswered:
                reply.cancel()

    def submit(self, request: pb.StepRequest, session_id: str, sink: Sink) -> Step:
        """Checks the request and hands it to the engine. Raises ServeError."""
        engine = self._engine
        now = engine.clock()
        if request.HasField("step"):
            if request.step < 1:
                raise BadStep(f"step is {request.step}, must be 1 or more, or unset", field="step")
            raise NotImplementedYet(
                "numbered steps are not in this release: leave step unset", field="step"
            )
        if request.timeout_ms < 0:
            raise Malformed("timeout_ms is negative", field="timeout_ms")
        row = engine.sessions.find(session_key("", session_id), request.incarnation, now)
        model = engine.model_of(row)
        length = request.length or 1
        check_length(length, engine.config.length_max)
        x = input_rows(model.spec, request.x, request.tokens, length)
        check_finite(x, "x")
        arrival_ns = now.monotonic_ns
        step = Step(
            row,
            x,
            sink,
            arrival_ns=arrival_ns,
            last_only=request.last_only,
            deadline_ns=deadline_ns(arrival_ns, request.timeout_ms),
        )
        engine.submit(model, step)
        return step

    def _accept(self, content: bytes, session_id: str, window: Window[_StreamReply]) -> str:
        """Submits one message of a stream; returns the id that the next one may leave out."""
        reply = _StreamReply(window)
        try:
            request = parse(pb.StepRequest, content)
            reply.tag = request.tag
            reply.session_id = session_id = request.session_id or session_id
            window.add(reply)
            if not session_id:
                raise Malformed("the first message of a stream needs its session_id")
            reply.step = self.submit(request, session_id, reply)
        except ServeError as error:
            window.add(reply)
            reply.error = error
            self.count_refused("StepStream", error)
            window.answer(reply)
        return session_id

    async def _write(self, window: Window[_StreamReply], context: Context) -> None:
        async for reply in window:
            message = self._message(reply)
            message.session_id = reply.session_id
            await context.write(message.SerializeToString())

    def _message(self, reply: _StreamReply) -> pb.StepResponse:
        step = reply.step
        if reply.error is None:
            assert step is not None
            self.count_applied("StepStream", step)
            return response(step, reply.tag)
        if step is not None:
            self.count_failed("StepStream", step, reply.error)
        return pb.StepResponse(tag=reply.tag, error=to_status(reply.error))

    def count_applied(self, method: str, step: Step) -> None:
        """Into lstm_steps_total and the times."""
        model = self._engine.model_of(step.row)
        total_ns = self._engine.clock().monotonic_ns - step.arrival_ns
        self._metrics.model(model.name, model.version).steps(method, 1, total_ns, step.queue_ns)

    def count_failed(self, method: str, step: Step, error: ServeError) -> None:
        """A step that was accepted."""
        model = self._engine.model_of(step.row)
        self._metrics.model(model.name, model.version).failed(method, code(error), error.reason)

    def count_refused(self, method: str, error: ServeError) -> None:
        """A step that was refused at the door, perhaps of no session at all."""
        self._metrics.model("", 0).failed(method, code(error), error.reason)


class _Reply:
    """A unary call's sink; a caller that went away has a cancelled future."""

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future

    def applied(self, step: Step) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def failed(self, step: Step, error: ServeError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _StreamReply:
    """A streamed message's sink."""

    def __init__(self, window: Window[_StreamReply]) -> None:
        self._window = window
        self.tag = 0
        self.session_id = ""
        self.step: Step | None = None
        self.error: ServeError | None = None

    def applied(self, step: Step) -> None:
        self.step = step
        self._window.answer(self)

    def failed(self, step: Step, error: ServeError) -> None:
        self.step = step
        self.error = error
        self._window.answer(self)

    def cancel(self) -> None:
        """The stream is gone."""
        if self.step is not None:
            self.step.is_cancelled = True


def deadline_ns(arrival_ns: int, timeout_ms: int) -> int:
    """Of the start of compute; 0 for none."""
    return arrival_ns + timeout_ms * MILLISECOND_NS if timeout_ms else 0


def response(step: Step, tag: int) -> pb.StepResponse:
    """The reply of an applied step."""
    y = step.output()
    return pb.StepResponse(
        step=step.number,
        length=len(y),
        y=y.tobytes(),
        queue_ns=step.queue_ns,
        compute_ns=step.compute_ns,
        tag=tag,
    )
