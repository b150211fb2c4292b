"""Translates StepMany: one step each of many sessions per message. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lstmserve.engine import Engine
from lstmserve.engine.schedule.block import Block
from lstmserve.errors import ServeError
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import parse
from lstmserve.server.native.many_message import ManyMessage, ManyMessages
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.rpc import Context
from lstmserve.server.status import code, to_status
from lstmserve.server.window import Window, converse
from lstmserve.wire.v1 import lstm_pb2 as pb


class ManyCalls:
    """The handler; one for all calls."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._messages = ManyMessages(engine)

    async def step_many(self, context: Context, tenant: Tenant) -> None:
        """Messages of disjoint sessions may overtake one another; their tag tells them apart."""
        config = self._engine.config
        window: Window[ManyMessage] = Window(config.stream_window)
        ids: Sequence[str] = ()

        async def accept(content: bytes) -> None:
            nonlocal ids
            ids = await self._accept(tenant, content, ids, window)

        await converse(context, window, accept, self._render, config.write_s_max)

    async def _accept(
        self, tenant: Tenant, content: bytes, ids: Sequence[str], window: Window[ManyMessage]
    ) -> Sequence[str]:
        """Submits one message; returns the ids that the next one may leave out."""
        message = ManyMessage(window, tenant)
        window.add(message)
        try:
            request = parse(pb.StepManyRequest, content)
            message.tag = request.tag
            ids = list(request.session_ids) or ids
            await self._messages.submit(request, ids, message)
        except ServeError as error:
            message.refusal = error
        if message.block is None:
            window.answer(message)
        return ids

    def _render(self, message: ManyMessage) -> bytes:
        if message.refusal is not None:
            self._count(message, max(1, message.count), message.refusal)
            return pb.StepManyResponse(
                tag=message.tag, error=to_status(message.refusal)
            ).SerializeToString()
        response = pb.StepManyResponse(tag=message.tag)
        for i, error in sorted(message.errors.items()):
            self._count(message, 1, error)
            response.errors.add(index=i, status=to_status(error))
        steps = np.zeros(message.count, np.int64)
        lengths = np.ones_like(message.lengths) if message.last_only else message.lengths
        if (lengths != 1).any():
            response.lengths.extend(lengths.tolist())
        if (block := message.block) is not None:
            steps[message.members] = block.numbers
            response.replayed.extend(message.members[sorted(block.replayed)].tolist())
            response.y = block.y.tobytes()
            response.queue_ns, response.compute_ns = block.queue_ns, block.compute_ns
            self._count_applied(message, block)
        elif message.model is not None:
            height = int(lengths.sum())
            response.y = np.full(height * message.model.spec.output_size, np.nan, "<f4").tobytes()
        response.steps.extend(steps.tolist())
        durable = np.zeros_like(steps)
        if block is not None and self._engine.lives.has_store:
            durable[message.members] = block.durable_steps
        response.durable_steps.extend(durable.tolist())
        return response.SerializeToString()

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
