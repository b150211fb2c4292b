"""Translates StepMany: one step each of many sessions per message, as columns. Decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import grpc.aio
import numpy as np
import numpy.typing as npt

from lstmserve.engine import Engine, Model
from lstmserve.engine.block import Block
from lstmserve.engine.sessions import session_key
from lstmserve.errors import (
    BadTensor,
    DuplicateSession,
    EmptyInput,
    Malformed,
    MixedModels,
    NotImplementedYet,
    ServeError,
)
from lstmserve.server.codec import check_finite, check_length, input_rows, is_finite, parse
from lstmserve.server.metrics import Metrics
from lstmserve.server.rpc import Context
from lstmserve.server.status import code, to_status
from lstmserve.server.step_calls import deadline_ns
from lstmserve.server.window import Window
from lstmserve.wire.v1 import lstm_pb2 as pb


@dataclass(slots=True, eq=False)
class _Message:
    """One request on its way: its sink, and what its response is made of."""

    window: Window[_Message]
    tag: int = 0
    count: int = 0
    last_only: bool = False
    lengths: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    model: Model | None = None
    members: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    block: Block | None = None  # of the members, as indices of the message
    errors: dict[int, ServeError] = field(default_factory=dict)
    refusal: ServeError | None = None

    def settled(self, block: Block) -> None:
        """The block's sink."""
        self.errors |= {int(self.members[i]): error for i, error in block.errors.items()}
        self.window.answer(self)

    def cancel(self) -> None:
        """The stream is gone."""
        if self.block is not None:
            self.block.cancel()


class ManyCalls:
    """The handler; one for all calls."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    async def step_many(self, context: Context) -> None:
        """Messages of disjoint sessions may overtake one another; their tag tells them apart."""
        window: Window[_Message] = Window(self._engine.config.stream_window)
        writer = asyncio.create_task(self._write(window, context))
        ids: Sequence[str] = ()
        try:
            while (content := await context.read()) is not grpc.aio.EOF:
                ids = self._accept(content, ids, window)
                await window.room()
            window.end()
            await writer
        finally:
            writer.cancel()
            for message in window.unanswered:
                message.cancel()

    def _accept(
        self, content: bytes, ids: Sequence[str], window: Window[_Message]
    ) -> Sequence[str]:
        """Submits one message; returns the ids that the next one may leave out."""
        message = _Message(window)
        window.add(message)
        try:
            request = parse(pb.StepManyRequest, content)
            message.tag = request.tag
            ids = list(request.session_ids) or ids
            self._submit(request, ids, message)
        except ServeError as error:
            message.refusal = error
        if message.block is None:
            window.answer(message)
        return ids

    def _submit(self, request: pb.StepManyRequest, ids: Sequence[str], message: _Message) -> None:
        """Checks the whole message, then each session; hands the good ones to the engine."""
        _check_columns(request, ids)
        message.count = len(ids)
        message.last_only = request.last_only
        message.lengths = np.array(request.lengths or [1] * len(ids), np.int32)
        rows = self._find(request, ids, message)
        if not rows.size:
            return
        model = self._one_model(rows)
        message.model = model
        limit = self._engine.config.length_max
        if int(message.lengths.min()) < 1 or int(message.lengths.max()) > limit:
            lengths = message.lengths
            rows = self._keep(message, rows, lambda i: check_length(int(lengths[i]), limit))
        if not rows.size:
            return
        total = int(message.lengths.sum())
        x = input_rows(model.spec, request.x, request.tokens, total)
        starts = np.cumsum(message.lengths, dtype=np.int64) - message.lengths
        if not is_finite(x):
            ends = starts + message.lengths
            rows = self._keep(message, rows, lambda i: check_finite(x[starts[i] : ends[i]], "x"))
        if not rows.size:
            return
        now_ns = self._engine.clock().monotonic_ns
        block = Block(
            rows,
            x,
            starts[message.members],
            message.lengths[message.members],
            message,
            places=message.members if request.last_only else starts[message.members],
            shape=(len(ids) if request.last_only else total, model.spec.output_size),
            arrival_ns=now_ns,
            last_only=request.last_only,
            deadline_ns=deadline_ns(now_ns, request.timeout_ms),
        )
        self._engine.submit_block(model, block)
        message.block = block

    def _find(
        self, request: pb.StepManyRequest, ids: Sequence[str], message: _Message
    ) -> npt.NDArray[np.int64]:
        """Rows of the sessions that are open; the others get their error."""
        engine = self._engine
        now = engine.clock()
        incarnations = request.incarnations or [0] * len(ids)
        rows, members = [], []
        for i, session_id in enumerate(ids):
            try:
                rows.append(engine.sessions.find(session_key("", session_id), incarnations[i], now))
                members.append(i)
            except ServeError as error:
                message.errors[i] = error
        message.members = np.array(members, np.int64)
        return np.array(rows, np.int64)

    def _one_model(self, rows: npt.NDArray[np.int64]) -> Model:
        models = self._engine.table.model[rows]
        if (models != models[0]).any():
            raise MixedModels("the sessions of a message must be of one model and version")
        return self._engine.models[int(models[0])]

    @staticmethod
    def _keep(
        message: _Message, rows: npt.NDArray[np.int64], check: Callable[[int], None]
    ) -> npt.NDArray[np.int64]:
        """The rows whose member passes the check; the others get their error."""
        is_good = np.ones(rows.size, np.bool_)
        for k, i in enumerate(message.members):
            try:
                check(int(i))
            except ServeError as error:
                message.errors[int(i)] = error
                is_good[k] = False
        message.members = message.members[is_good]
        return rows[is_good]

    async def _write(self, window: Window[_Message], context: Context) -> None:
        async for message in window:
            await context.write(self._response(message).SerializeToString())

    def _response(self, message: _Message) -> pb.StepManyResponse:
        if message.refusal is not None:
            self._count(message, max(1, message.count), message.refusal)
            return pb.StepManyResponse(tag=message.tag, error=to_status(message.refusal))
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
            response.y = block.y.tobytes()
            response.queue_ns, response.compute_ns = block.queue_ns, block.compute_ns
            self._count_applied(message, block)
        elif message.model is not None:
            height = int(lengths.sum())
            response.y = np.full(height * message.model.spec.output_size, np.nan, "<f4").tobytes()
        response.steps.extend(steps.tolist())
        response.durable_steps.extend([0] * message.count)
        return response

    def _count_applied(self, message: _Message, block: Block) -> None:
        assert message.model is not None
        applied = block.rows.size - len(block.errors)
        total_ns = self._engine.clock().monotonic_ns - block.arrival_ns
        model = message.model
        self._metrics.model(model.name, model.version).steps(
            "StepMany", applied, total_ns, block.queue_ns
        )

    def _count(self, message: _Message, count: int, error: ServeError) -> None:
        name, version = (message.model.name, message.model.version) if message.model else ("", 0)
        self._metrics.model(name, version).failed("StepMany", code(error), error.reason, count)


def _check_columns(request: pb.StepManyRequest, ids: Sequence[str]) -> None:
    """What refuses the whole message."""
    if not ids:
        raise EmptyInput("there are no sessions", field="session_ids")
    for name in ("steps", "incarnations", "lengths"):
        column = getattr(request, name)
        if column and len(column) != len(ids):
            raise BadTensor(f"{name} has {len(column)} values for {len(ids)} sessions", field=name)
    if len(set(ids)) != len(ids):
        raise DuplicateSession("a session is twice in the message", field="session_ids")
    if request.steps:
        raise NotImplementedYet("numbered steps are not in this release", field="steps")
    if request.timeout_ms < 0:
        raise Malformed("timeout_ms is negative", field="timeout_ms")
    if any(length < 0 for length in request.lengths):
        raise Malformed("a length is negative", field="lengths")
