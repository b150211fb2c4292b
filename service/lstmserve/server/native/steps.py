"""Step and StepStream: each message is one step of one session.

It parses a message, finds its session and reads its input; then `server/steps.py` joins it with the
others that arrived together. Replies of a stream, errors too, keep the order of each session's
messages; those of different sessions may overtake one another. It must not know how steps are
ordered, batched or stored.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from lstmserve.engine import Engine, Model
from lstmserve.engine.clock import Now
from lstmserve.engine.errors import BadStep, Malformed, ServeError
from lstmserve.engine.keys import ID_LENGTH_MAX
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import check_length, check_reply, input_rows, parse
from lstmserve.server.conversation import InTurn
from lstmserve.server.inbox import Inbox
from lstmserve.server.message_sizes import MessageSizes
from lstmserve.server.native.tensors import put_outputs
from lstmserve.server.ordered import OrderedWindow
from lstmserve.server.pending_bytes import SHORT_BYTES, PendingBytes
from lstmserve.server.rpc import Frame
from lstmserve.server.status import to_status
from lstmserve.server.steps import AppliedStep, PendingStep, Steps, refuse
from lstmserve.server.transport import StreamCall, UnaryCall
from lstmserve.wire.v1 import lstm_pb2 as pb

UNARY, STREAM = "Step", "StepStream"
MILLISECOND_NS = 1_000_000
INT64_BYTES = 8
NOTHING = pb.StepRequest()  # in place of one that is not needed any more


class StepCalls:
    """Both methods of one port. Messages that arrive together are read and submitted together."""

    def __init__(self, engine: Engine, steps: Steps, pending: PendingBytes) -> None:
        self.pending = pending
        self.sizes = MessageSizes(engine.registry, engine.config, has_states=False)
        self.now_ns = engine.monotonic_ns
        self.steps = steps
        self.inbox: Inbox[NativeStep] = Inbox(engine.batch_loop, self.read)
        self._engine = engine

    def receive(self, frame: Frame, calls: list[UnaryCall]) -> None:
        """Takes calls of Step."""
        self.inbox.put_all([UnaryStep(self, frame, call) for call in calls])

    def begin(self, stream: StreamCall, tenant: Tenant) -> StepStream:
        """Makes the handler of a StepStream."""
        return StepStream(self, stream, tenant)

    def read(self, messages: Sequence[NativeStep]) -> None:
        """Submits messages, but for those that are over, malformed, or need a store first."""
        self.submit([message for message in messages if message.read()])

    def submit(self, messages: Sequence[NativeStep]) -> None:
        """Hands messages to the engine, or refuses them. No store is asked for their sessions."""
        ready = []
        now = self._engine.clock()  # one for all: no session ends between two of its steps
        for message in messages:
            try:
                self._prepare(message, now)
            except Exception as error:
                refuse(message, error)
            else:
                ready.append(message)
        if ready:
            self.steps.accept(ready)

    def is_here(self, message: NativeStep) -> bool:
        """Whether no store need be asked before its session can be stepped or refused."""
        asked, key = message.message, message.tenant.prefix + message.session_id
        return self._engine.lifecycle.is_certain(key, asked.incarnation, asked.step)

    async def bring(self, message: NativeStep) -> None:
        """Brings its session here from the store, or makes certain of a refusal.

        The caller submits the message before it awaits anything else: the session may leave again.
        Raises ServeError.
        """
        asked, key = message.message, message.tenant.key(message.session_id)
        await self._engine.lifecycle.bring(key, asked.incarnation, asked.step)

    def size(self, tenant: Tenant, asked: pb.StepRequest, session_id: str, length: int) -> int:
        """The most bytes that a message of `length` bytes will take with its reply."""
        table = self._engine.table
        row = table.find(tenant.prefix + session_id)
        model = None if row is None else self._engine.model_of(row)
        rows = min(max(1, asked.length), self._engine.config.length_max)
        if asked.tokens:
            length += INT64_BYTES * len(asked.tokens)
        return self.sizes.of(length, 1 if asked.last_only else rows, model)

    def _prepare(self, message: NativeStep, now: Now) -> None:
        """Finds its session and reads its input. Raises ServeError."""
        engine, table, config = self._engine, self._engine.table, self._engine.config
        asked, message.message = message.message, NOTHING
        if asked.HasField("step"):
            check_number(asked.step, asked.incarnation)
        key = message.tenant.prefix + message.session_id
        if table.find(key) is None:
            key = message.tenant.key(message.session_id)  # an id that is found was checked before
        message.row = engine.sessions.find(key, asked.incarnation, now)
        model = engine.model_of(message.row)
        length = asked.length or 1
        if length != 1:
            check_length(length, config.length_max)
        message.x = input_rows(model, asked.x, asked.tokens, length)
        height = 1 if asked.last_only else length
        check_reply(height, model, config.message_bytes_max, "length")
        message.last_only = asked.last_only
        message.reply_bytes = height * model.outputs.wire_bytes
        message.deadline_ns = _earlier(
            timeout_ns(message.arrival_ns, asked.timeout_ms), message.deadline_ns
        )


class NativeStep(PendingStep):
    """A message of Step or StepStream, from its bytes to its reply."""

    __slots__ = ("calls", "message", "session_id", "tag")

    def __init__(self, calls: StepCalls, tenant: Tenant, method: str) -> None:
        super().__init__(tenant, calls.now_ns(), method)
        self.calls = calls
        self.message = NOTHING  # from when it was parsed until it was submitted
        self.session_id = ""
        self.tag = 0

    @abstractmethod
    def read(self) -> bool:
        """Parses the message. Returns whether to submit it now.

        If not, it is over, or it has its answer, or fetch() submits it later.
        """

    def parse(self, content: bytes) -> None:
        """Parses the bytes. Raises Malformed."""
        self.message = message = parse(pb.StepRequest, content)
        self.session_id, self.tag, self.number = message.session_id, message.tag, message.step

    async def fetch(self) -> None:
        """Fetches its session from the store, then submits it."""
        try:
            await self.calls.bring(self)
        except Exception as error:
            refuse(self, error)
        else:
            if not self.is_over:
                self.calls.submit([self])

    def drop_input(self) -> None:
        self.message = NOTHING
        super().drop_input()

    def cancel(self) -> None:
        self.message = NOTHING
        super().cancel()


class UnaryStep(NativeStep):
    """A call of Step."""

    __slots__ = ("_call", "_frame")

    def __init__(self, calls: StepCalls, frame: Frame, call: UnaryCall) -> None:
        super().__init__(calls, call.tenant, UNARY)
        self._frame = frame
        self._call = call
        self.lease = call.lease
        if call.deadline_ns is not None:  # on the engine's clock
            self.deadline_ns = self.arrival_ns + call.deadline_ns - call.arrival_ns
        call.on_gone = self.cancel

    @property
    def is_over(self) -> bool:
        return self._call.is_over

    def read(self) -> bool:
        if self.is_over:
            return False
        try:
            self.parse(self._call.take())
        except Exception as error:
            refuse(self, error)
            return False
        if self.calls.is_here(self):
            return True
        self._frame.start(self._call, self._fetch, self.method)
        return False

    async def _fetch(self, call: UnaryCall) -> None:
        await self.fetch()
        if not call.is_over:
            call.on_gone = self.cancel  # in place of this task's

    def applied(self, step: AppliedStep) -> None:
        self._frame.reply(self._call, step_response(self, step).SerializeToString())

    def failed(self, error: Exception, model: Model | None) -> None:
        self.calls.steps.count_failed(self.method, error, model)
        self._frame.abort(self._call, error, self.method)


class StepStream(OrderedWindow["StreamStep"]):
    """One call of StepStream. Its replies keep one order for each session."""

    def __init__(self, calls: StepCalls, stream: StreamCall, tenant: Tenant) -> None:
        super().__init__(stream, calls.pending, tenant)
        self.calls = calls
        self.session_id = ""  # of the newest message that was read
        self.fetching = InTurn(self._end_if_done, self.end_by)  # of sessions that a store has

    def open(self, content: bytes) -> StreamStep:
        return StreamStep(self, content)

    def accept(self, message: StreamStep) -> None:
        self.calls.inbox.put(message)

    def gone(self) -> None:
        self.fetching.cancel()
        super().gone()


class StreamStep(NativeStep):
    """A message of a StepStream. An empty session_id means that of the message before it."""

    __slots__ = ("_content", "_stream")

    def __init__(self, stream: StepStream, content: bytes) -> None:
        super().__init__(stream.calls, stream.tenant, STREAM)
        self._stream = stream
        self._content = content  # until it was parsed

    @property
    def is_over(self) -> bool:
        return self._stream.is_closed

    def size(self) -> int:
        """The bytes to admit it with; a long message is read for that."""
        calls, length = self.calls, len(self._content)
        if (bound := calls.sizes.bound(length)) <= SHORT_BYTES:
            return bound
        try:
            self.parse(self._content)
        except ServeError:
            return length  # it is refused when its turn comes
        return calls.size(
            self.tenant, self.message, self.session_id or self._stream.session_id, length
        )

    def parse(self, content: bytes) -> None:
        """Parses the bytes. Raises Malformed."""
        super().parse(content)
        self._content = b""

    def read(self) -> bool:
        if self.is_over:
            return False
        stream = self._stream
        try:
            if self.message is NOTHING:
                self.parse(self._content)
        except ServeError as error:
            # The session is unknown: the answer comes after those of the newest session.
            stream.enter(self, stream.session_id)
            refuse(self, error)
            return False
        self.session_id = stream.session_id = self.session_id or stream.session_id
        stream.enter(self, self.session_id)
        if not stream.fetching.is_busy and self.calls.is_here(self):
            return True
        stream.fetching.put(self.fetch)
        return False

    def applied(self, step: AppliedStep) -> None:
        self._answer(step_response(self, step))

    def failed(self, error: Exception, model: Model | None) -> None:
        self.calls.steps.count_failed(self.method, error, model)
        self._answer(pb.StepResponse(tag=self.tag, step=self.number, error=to_status(error)))

    def _answer(self, response: pb.StepResponse) -> None:
        # A malformed id may be as long as a message: the reply must not be.
        response.session_id = self.session_id[:ID_LENGTH_MAX]
        self._stream.answer(self, response.SerializeToString())

    def drop_input(self) -> None:
        self._content = b""
        super().drop_input()

    def cancel(self) -> None:
        """Ends the message, as the stream is gone."""
        self._content = b""
        self.lease.release()
        super().cancel()


def step_response(message: NativeStep, step: AppliedStep) -> pb.StepResponse:
    """The reply to a step that was applied."""
    response = pb.StepResponse()
    response.step, response.length = step.number, len(step.y)
    put_outputs(response, step.model.outputs, step.y)
    response.queue_ns = step.start_ns - message.arrival_ns
    response.compute_ns = step.compute_ns
    if message.tag:
        response.tag = message.tag
    if step.durable_step > 0:
        response.durable_step = step.durable_step
    if step.missing_rows:
        response.missing_rows = step.missing_rows
    if step.is_replayed:
        response.replayed = True
    return response


def check_number(number: int, incarnation: int) -> None:
    """Checks a step's number. Raises BadStep."""
    if number < 1:
        raise BadStep(f"step is {number}, must be 1 or more, or unset", field="step")
    if not incarnation:
        raise BadStep(
            "a numbered step needs its session's incarnation (OpenSession returns it)",
            field="incarnation",
        )


def timeout_ns(arrival_ns: int, timeout_ms: int) -> int:
    """The time at which a message's timeout is over; 0 for none. Raises Malformed."""
    if timeout_ms < 0:
        raise Malformed("timeout_ms is negative", field="timeout_ms")
    return arrival_ns + timeout_ms * MILLISECOND_NS if timeout_ms else 0


def _earlier(one_ns: int, other_ns: int) -> int:
    """The earlier of two deadlines, where 0 stands for none."""
    return min(one_ns, other_ns) if one_ns and other_ns else one_ns or other_ns
