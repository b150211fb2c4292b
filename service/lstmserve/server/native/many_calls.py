"""Translates StepMany: one step each of many sessions per message. Decides nothing."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from lstmserve.engine import Engine
from lstmserve.engine.errors import ServeError
from lstmserve.engine.schedule.block import Block
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import parse
from lstmserve.server.native.cohort import Cohort
from lstmserve.server.native.many_columns import check_count
from lstmserve.server.native.many_message import ManyMessage
from lstmserve.server.native.many_reading import ManyReading
from lstmserve.server.native.many_window import ManyWindow
from lstmserve.server.native.steps import INT64_BYTES
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import PendingBytes
from lstmserve.server.rpc import Context
from lstmserve.server.sizes import Sizes
from lstmserve.server.status import code, looks, to_status
from lstmserve.server.window import Stream, converse
from lstmserve.wire.v1 import lstm_pb2 as pb


class ManyCalls:
    """The handler; one for all calls."""

    def __init__(self, engine: Engine, metrics: Metrics, pending: PendingBytes) -> None:
        self._engine = engine
        self._metrics = metrics
        self._pending = pending
        self._sizes = Sizes(engine.models, engine.config, has_states=False)
        self._reading = ManyReading(engine)

    async def step_many(self, context: Context, tenant: Tenant) -> None:
        """Messages of disjoint sessions may overtake one another; their tag tells them apart."""
        config = self._engine.config
        window = ManyWindow(config.stream_window)
        cohort = Cohort(tenant)
        stream = Stream(context, self._pending, tenant.account, config.write_s_max)

        async def accept(content: bytes) -> int:
            nonlocal cohort
            message = ManyMessage(tenant, cohort, answer)
            request = self.read(content, message)
            size = self._size(request, message, len(content))
            del content
            message.lease = await stream.admit(size)
            window.add(message)
            await self.submit(request, message)
            cohort = message.cohort
            return size

        def answer(message: ManyMessage) -> None:
            window.answer(message, self.render(message))

        await converse(stream, window, accept)

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
        """Hands an admitted message to the engine, or answers it."""
        if message.refusal is None:
            try:
                await self._reading.submit(request, message)
            except ServeError as error:
                message.refusal = error.with_traceback(None)
        if message.block is None:
            message.answer()

    def _size(self, request: pb.StepManyRequest, message: ManyMessage, length: int) -> int:
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
        lengths, block = message.lengths, message.block
        steps = durable_steps = [0] * lengths.size
        if block is not None:
            steps = message.spread(block.numbers)
            if self._engine.lifecycle.has_store:
                durable_steps = message.spread(block.durable_steps)
        response = pb.StepManyResponse(tag=message.tag, steps=steps, durable_steps=durable_steps)
        if message.errors:
            self._put_errors(response, message)
        if not (message.last_only or message.are_single):
            response.lengths.extend(lengths.tolist())
        if block is not None:
            if block.replayed:
                response.replayed.extend(message.members[sorted(block.replayed)].tolist())
            response.y = block.y.tobytes()
            response.queue_ns, response.compute_ns = block.queue_ns, block.compute_ns
            self._count_applied(message, block)
        elif message.model is not None:
            height = lengths.size if message.last_only else int(lengths.sum())
            response.y = np.full(height * message.model.output_size, np.nan, "<f4").tobytes()
        return response.SerializeToString()

    def _put_errors(self, response: pb.StepManyResponse, message: ManyMessage) -> None:
        """Those that look alike are made once: thousands would keep all others waiting."""
        found: dict[Hashable, tuple[bytes, list[ServeError]]] = {}
        for i, error in sorted(message.errors.items()):
            kind = looks(error)
            if kind not in found:
                found[kind] = to_status(error).SerializeToString(), []
            content, alike = found[kind]
            alike.append(error)
            # As bytes: a tenth of what it takes to hand a message over.
            response.errors.add(index=i).status.MergeFromString(content)
        for _, alike in found.values():
            self._count(message, len(alike), alike[0])

    def _count_applied(self, message: ManyMessage, block: Block) -> None:
        assert message.model is not None
        applied = block.rows.size - len(block.errors)
        total_ns = self._engine.clock().monotonic_ns - block.arrival_ns
        model = message.model
        counters = self._metrics.model(model.name, model.version)
        counters.steps("StepMany", applied, total_ns, block.queue_ns)
        counters.replayed(len(block.replayed))

    def _count(self, message: ManyMessage, count: int, error: ServeError) -> None:
        name, version = (message.model.name, message.model.version) if message.model else ("", 0)
        self._metrics.model(name, version).failed("StepMany", code(error), error.reason, count)
