"""Translates StepMany: one step each of many sessions per message. Decides nothing."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from lstmserve.engine import Engine, Model
from lstmserve.engine.errors import ServeError
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import parse
from lstmserve.server.conversation import Work
from lstmserve.server.message_sizes import MessageSizes
from lstmserve.server.native.cohort import Cohort
from lstmserve.server.native.many_columns import check_count
from lstmserve.server.native.many_message import NOTHING, ManyMessage
from lstmserve.server.native.many_reading import ManyReading
from lstmserve.server.native.many_window import ManyWindow
from lstmserve.server.native.steps import INT64_BYTES
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.status import code, status_key, to_status
from lstmserve.server.transport import StreamCall
from lstmserve.wire.v1 import lstm_pb2 as pb


class ManyCalls:
    """The method; one for all streams."""

    def __init__(self, engine: Engine, metrics: Metrics, pending: PendingBytes) -> None:
        self.pending = pending
        self._engine = engine
        self._metrics = metrics
        self._sizes = MessageSizes(engine.models, engine.config, has_states=False)
        self._reading = ManyReading(engine)

    @property
    def has_store(self) -> bool:
        """Whether submit() may wait."""
        return self._engine.lifecycle.has_store

    def begin(self, stream: StreamCall, tenant: Tenant) -> _Stream:
        """As Begin. Messages of disjoint sessions may overtake each other: tags tell them apart."""
        return _Stream(self, stream, tenant)

    def read(self, content: bytes, message: ManyMessage) -> pb.StepManyRequest:
        """The message's request, which may leave out the sessions of the one before."""
        request = pb.StepManyRequest()
        try:
            request = parse(pb.StepManyRequest, content)
            message.tag = request.tag
            if request.session_ids:
                message.cohort = self._cohort(message, request.session_ids)
        except ServeError as error:
            message.refusal = error.with_traceback(None)  # its frames hold the message
        return request

    async def submit(self, request: pb.StepManyRequest, message: ManyMessage) -> None:
        """Hands an admitted message to the engine, or answers it. Waits only for a store."""
        if message.refusal is None:
            try:
                await self._reading.submit(request, message)
            except ServeError as error:
                message.refusal = error.with_traceback(None)
        if message.work is None:
            message.answer()

    def size(self, request: pb.StepManyRequest, message: ManyMessage, length: int) -> int:
        """The most bytes that a message of `length` will take with its reply."""
        count = len(message.cohort)
        rows = sum(request.lengths[:]) if request.lengths else count
        if request.tokens:
            length += INT64_BYTES * len(request.tokens)
        return self._sizes.of(length, count if request.last_only else rows, None)

    def _cohort(self, message: ManyMessage, ids: Sequence[str]) -> Cohort:
        """Of the sessions that a message names. Raises TooLong, and then the stream has none.

        A message of 4 MiB may have two million ids, and a stream keeps those of the last one.
        """
        message.cohort = Cohort(message.tenant)
        check_count(len(ids), self._engine.config.pending_steps_max)
        return Cohort(message.tenant, list(ids))

    def render(self, message: ManyMessage) -> bytes:
        """The reply of a message that is over."""
        if message.refusal is not None:
            self._count(message, max(1, len(message.lengths)), message.refusal)
            status = to_status(message.refusal)
            return pb.StepManyResponse(tag=message.tag, error=status).SerializeToString()
        lengths = message.lengths
        steps, durable_steps = message.spread(message.steps), [0] * lengths.size
        if self._engine.lifecycle.has_store:
            durable_steps = message.spread(message.durable_steps)
        response = pb.StepManyResponse(tag=message.tag, steps=steps, durable_steps=durable_steps)
        if message.errors:
            self._put_errors(response, message)
        if not (message.last_only or message.are_single):
            response.lengths.extend(lengths.tolist())
        if message.model is not None:
            response.y = self._y(message, message.model)
            response.queue_ns, response.compute_ns = message.queue_ns, message.compute_ns
            if message.replayed:
                response.replayed.extend(sorted(message.replayed))
            self._count_applied(message, message.model)
        return response.SerializeToString()

    def _put_errors(self, response: pb.StepManyResponse, message: ManyMessage) -> None:
        """Those that look alike are made once: thousands would keep all others waiting."""
        found: dict[Hashable, tuple[bytes, list[ServeError]]] = {}
        for i, error in sorted(message.errors.items()):
            kind = status_key(error)
            if kind not in found:
                found[kind] = to_status(error).SerializeToString(), []
            content, alike = found[kind]
            alike.append(error)
            # As bytes: a tenth of what it takes to hand a message over.
            response.errors.add(index=i).status.MergeFromString(content)
        for _, alike in found.values():
            self._count(message, len(alike), alike[0])

    def _y(self, message: ManyMessage, model: Model) -> bytes:
        """NaN where nothing was applied."""
        if message.work is None or message.work.y is None:
            height = message.lengths.size if message.last_only else int(message.lengths.sum())
            return np.full(height * model.output_size, np.nan, "<f4").tobytes()
        return message.work.y.tobytes()

    def _count_applied(self, message: ManyMessage, model: Model) -> None:
        if message.work is not None and message.applied_count:
            total_ns = self._engine.clock().monotonic_ns - message.work.arrival_ns
            counters = self._metrics.model(model.name, model.version)
            counters.steps("StepMany", message.applied_count, total_ns, message.queue_ns)
            counters.replayed(len(message.replayed))

    def _count(self, message: ManyMessage, count: int, error: ServeError) -> None:
        name, version = (message.model.name, message.model.version) if message.model else ("", 0)
        self._metrics.model(name, version).failed("StepMany", code(error), error.reason, count)


class _Stream(ManyWindow):
    """One stream."""

    def __init__(self, calls: ManyCalls, stream: StreamCall, tenant: Tenant) -> None:
        super().__init__(stream, calls.pending, tenant)
        self._calls = calls
        self._cohort = Cohort(tenant)

    def open(self, content: bytes) -> ManyMessage:
        """As Window.open; a message may leave out the sessions of the one before it."""
        message = ManyMessage(self.tenant, self._cohort, self._over)
        message.request = self._calls.read(content, message)
        message.size_bytes = self._calls.size(message.request, message, len(content))
        self._cohort = message.cohort
        return message

    def accept(self, message: ManyMessage) -> Work | None:
        """As Window.accept."""
        request, message.request = message.request, NOTHING
        if self._calls.has_store:
            return lambda: self._calls.submit(request, message)
        try:
            self._calls.submit(request, message).send(None)  # a task would cost as much as the work
        except StopIteration:
            return None
        raise AssertionError("a message waits, and there is no store")

    def _over(self, message: ManyMessage) -> None:
        self.answer(message, self._calls.render(message))
