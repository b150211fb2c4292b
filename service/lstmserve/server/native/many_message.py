"""Checks a StepMany message and makes a block of it: columns in, no Python per row. Submits it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lstmserve.engine import Engine, Model
from lstmserve.engine.schedule.block import Block
from lstmserve.errors import (
    Fenced,
    MixedModels,
    ServeError,
)
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import (
    check_finite,
    check_length,
    check_reply,
    input_rows,
    is_finite,
)
from lstmserve.server.native.many_columns import check_columns
from lstmserve.server.native.step_calls import check_number, deadline_ns
from lstmserve.server.window import Window
from lstmserve.wire.v1 import lstm_pb2 as pb

FETCHES_MAX = 3


@dataclass(slots=True, eq=False)
class ManyMessage:
    """One request on its way: its sink, and what its response is made of."""

    window: Window[ManyMessage]
    tenant: Tenant
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
        self.tenant.pending_steps -= block.rows.size
        self.errors |= {int(self.members[i]): error for i, error in block.errors.items()}
        self.window.answer(self)

    def cancel(self) -> None:
        """The stream is gone."""
        if self.block is not None:
            self.block.cancel()


class ManyMessages:
    """Good sessions of a message go to the engine, the others get their error."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def submit(
        self, request: pb.StepManyRequest, ids: Sequence[str], message: ManyMessage
    ) -> None:
        """Checks the whole message, then each session; hands the good ones to the engine.

        Waits only for a store, to bring sessions here.
        """
        check_columns(request, ids, self._engine.config.pending_steps_max)
        if self._engine.lives.has_store:
            await self._fetch(request, ids, message)
        self._submit(request, ids, message)

    async def _fetch(
        self, request: pb.StepManyRequest, ids: Sequence[str], message: ManyMessage
    ) -> None:
        """All at once. Those that cannot come have their error, as have malformed ids.

        Where room is scarce one that comes may push another out: that one is brought again.
        """

        async def fetch(i: int) -> bool:
            incarnation = request.incarnations[i] if request.incarnations else 0
            number = request.steps[i] if request.steps else 0
            try:
                return await self._engine.lives.bring(keys(i), incarnation, number)
            except ServeError as error:
                message.errors[i] = error
                return False

        def keys(i: int) -> str:
            return message.tenant.key(ids[i])

        def missing() -> list[int]:
            return [i for i in brought if self._engine.table.find(keys(i)) is None]

        found = await asyncio.gather(*map(fetch, range(len(ids))))
        brought = [i for i, is_here in enumerate(found) if is_here]
        for _ in range(FETCHES_MAX):
            await asyncio.gather(*map(fetch, missing()))
        for i in missing():  # too many for the pool
            message.errors[i] = Fenced("the session has just left: repeat its step", retry_s=0.0)

    def _submit(
        self, request: pb.StepManyRequest, ids: Sequence[str], message: ManyMessage
    ) -> None:
        config = self._engine.config
        message.count = len(ids)
        message.last_only = request.last_only
        message.lengths = np.array(request.lengths or [1] * len(ids), np.int32)
        rows = self._find(request, ids, message)
        if not rows.size:
            return
        message.model = model = self._one_model(rows)
        # First of all that the rows are there: y has as many, whatever becomes of the sessions.
        total = int(message.lengths.sum())
        x = input_rows(model.spec, request.x, request.tokens, total)
        height = len(ids) if request.last_only else total
        check_reply(height, model.spec.output_size, config.message_bytes_max)
        lengths, limit = message.lengths, config.length_max
        if int(lengths.min()) < 1 or int(lengths.max()) > limit:
            rows = self._keep(
                message, rows, lambda i: check_length(int(lengths[i]), limit, "lengths")
            )
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
            shape=(height, model.spec.output_size),
            arrival_ns=now_ns,
            last_only=request.last_only,
            deadline_ns=deadline_ns(now_ns, request.timeout_ms),
            numbers=np.array(request.steps, np.int64)[message.members] if request.steps else None,
        )
        message.tenant.check_block(block, self._engine.table.accepted(block.rows))
        self._engine.submit_block(model, block)
        message.tenant.pending_steps += block.rows.size
        message.block = block

    def _find(
        self, request: pb.StepManyRequest, ids: Sequence[str], message: ManyMessage
    ) -> npt.NDArray[np.int64]:
        """Rows of the sessions that are open; the others get their error."""
        engine = self._engine
        now = engine.clock()
        incarnations = request.incarnations or [0] * len(ids)
        rows, members = [], []
        for i, session_id in enumerate(ids):
            if i in message.errors:
                continue
            try:
                if request.steps:
                    check_number(request.steps[i], incarnations[i])
                rows.append(
                    engine.sessions.find(message.tenant.key(session_id), incarnations[i], now)
                )
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
        message: ManyMessage, rows: npt.NDArray[np.int64], check: Callable[[int], None]
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
