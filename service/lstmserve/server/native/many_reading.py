"""Checks a StepMany message and submits it: columns in, no Python per row."""

from __future__ import annotations

import asyncio

import numpy as np

from lstmserve.engine import Engine, Model
from lstmserve.engine.arrays import Index, Input
from lstmserve.engine.errors import Fenced, MixedModels, ServeError, StoreUnavailable
from lstmserve.engine.scheduling.work import Request
from lstmserve.server.codec import check_finite, check_length, check_reply, input_rows, is_finite
from lstmserve.server.message_sizes import output_bytes
from lstmserve.server.native.many_columns import check_columns
from lstmserve.server.native.many_message import ManyMessage
from lstmserve.server.native.steps import check_number, timeout_ns
from lstmserve.wire.v1 import lstm_pb2 as pb

FETCHES_MAX = 3


class ManyReading:
    """Good sessions of a message go to the engine, the others get their error."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def submit(self, request: pb.StepManyRequest, message: ManyMessage) -> None:
        """Checks the whole message, then each session; hands the good ones to the engine.

        Waits only for a store, to bring sessions here. Raises what refuses the whole message.
        """
        check_columns(request, message.cohort)
        message.read(request)
        if self._engine.lifecycle.has_store and not self._are_here(message):
            await self._fetch(message)
        self._submit(request, message)

    def _are_here(self, message: ManyMessage) -> bool:
        """Whether every session is here for its next step: no store need be asked of any."""
        engine, numbers = self._engine, message.numbers
        rows = self._find_all(message)
        if rows is None or engine.lifecycle.leaving:
            return False
        if numbers is None:
            return not (engine.table.suspects and engine.table.is_suspect(rows).any())
        return bool((numbers == engine.table.accepted(rows) + 1).all())

    async def _fetch(self, message: ManyMessage) -> None:
        """All at once. Those that cannot come have their error, as have malformed ids.

        Where room is scarce one that comes may push another out: that one is brought again.
        """
        ids, tenant = message.cohort.ids, message.tenant

        async def fetch(i: int) -> bool:
            try:
                incarnation, number = message.incarnation(i), message.number(i)
                return await self._engine.lifecycle.bring(tenant.key(ids[i]), incarnation, number)
            except ServeError as error:
                message.errors[i] = error.with_traceback(None)  # its frames hold the message
                return False

        def missing() -> list[int]:
            return [i for i in brought if self._engine.table.find(tenant.key(ids[i])) is None]

        found = await asyncio.gather(*map(fetch, range(len(ids))))
        brought = [i for i, is_here in enumerate(found) if is_here]
        for _ in range(FETCHES_MAX):
            await asyncio.gather(*map(fetch, missing()))
        for i in missing():  # too many for the pool
            message.errors[i] = Fenced("the session has just left: repeat its step", retry_s=0.0)

    def _submit(self, request: pb.StepManyRequest, message: ManyMessage) -> None:
        rows = self._find(message)
        if not rows.size:
            return
        message.model = model = self._one_model(rows)
        starts = message.starts()
        x, height = self._input(model, request, message)
        rows = self._keep_good(message, rows, x, starts)
        if not rows.size:
            return
        now_ns = self._engine.clock().monotonic_ns
        deadline_ns = timeout_ns(now_ns, request.timeout_ms)
        chosen = slice(None) if rows.size == len(message.cohort) else message.members
        firsts = None if message.are_single and rows.size == len(message.cohort) else starts[chosen]
        work = Request(
            x,
            rows,
            message,
            arrival_ns=now_ns,
            height=height,
            numbers=None if message.numbers is None else message.numbers[chosen],
            lengths=None if message.are_single else message.lengths[chosen],
            firsts=firsts,
            outs=message.members if message.last_only and firsts is not None else firsts,
            last_only=message.last_only,
            deadlines_ns=np.full(rows.size, deadline_ns) if deadline_ns else None,
            is_distinct=True,
            is_whole=True,
        )
        self._submit_work(model, work, message)

    def _submit_work(self, model: Model, work: Request, message: ManyMessage) -> None:
        tenant, table = message.tenant, self._engine.table
        if tenant.is_limited:
            rows = np.asarray(work.rows)
            tenant.check_many(work, table.step[rows], table.accepted(rows))
        y_bytes = work.height * output_bytes(model.spec)
        message.lease.grow(work.x.nbytes + y_bytes)
        message.lease.hold()
        message.begin(work)  # before it is accepted: one of repeats alone is over at once
        try:
            self._engine.accept(model, work)
        except ServeError:
            message.give_up()
            message.lease.release()
            raise
        if not work.inputs_left and work.left:  # all of it joined other steps
            message.lease.resize(y_bytes)

    def _find(self, message: ManyMessage) -> Index:
        """Rows of the sessions that are open; the others get their error."""
        rows = None if message.errors else self._find_all(message)
        if rows is None:
            return self._find_each(message)
        message.members = message.cohort.everyone
        return rows

    def _find_all(self, message: ManyMessage) -> Index | None:
        """The same where nobody can have an error; None where that is not certain."""
        engine, incarnations = self._engine, message.incarnations
        rows = message.cohort.find(engine.table, incarnations, message.numbers, engine.clock())
        if rows is not None:
            try:
                engine.admit(rows)
            except StoreUnavailable:
                return None  # of some, and the others go on
        return rows

    def _find_each(self, message: ManyMessage) -> Index:
        now = self._engine.clock()
        rows, members = [], []
        for i, session_id in enumerate(message.cohort.ids):
            if i in message.errors:
                continue
            incarnation = message.incarnation(i)
            try:
                if message.numbers is not None:
                    check_number(message.number(i), incarnation)
                key = message.tenant.key(session_id)
                row = self._engine.sessions.find(key, incarnation, now)
                self._engine.admit(row)
                rows.append(row)
                members.append(i)
            except ServeError as error:
                message.errors[i] = error.with_traceback(None)
        message.members = np.array(members, np.int64)
        return np.array(rows, np.int64)

    def _one_model(self, rows: Index) -> Model:
        models = self._engine.table.model[rows]
        if (models != models[0]).any():
            raise MixedModels("the sessions of a message must be of one model and version")
        return self._engine.models[int(models[0])]

    def _input(
        self, model: Model, request: pb.StepManyRequest, message: ManyMessage
    ) -> tuple[Input, int]:
        """x or tokens, and how many rows y has, whatever becomes of the sessions."""
        total = len(message.cohort) if message.are_single else int(message.lengths.sum())
        x = input_rows(model.spec, request.x, request.tokens, total)
        height = len(message.cohort) if message.last_only else total
        check_reply(height, model.output_size, self._engine.config.message_bytes_max)
        return x, height

    def _keep_good(self, message: ManyMessage, rows: Index, x: Input, starts: Index) -> Index:
        """The rows whose own input is good."""
        lengths, limit = message.lengths, self._engine.config.length_max
        is_long = not message.are_single and int(lengths.max()) > limit
        if is_long or (not message.are_single and int(lengths.min()) < 1):
            rows = message.keep(rows, lambda i: check_length(int(lengths[i]), limit, "lengths"))
        if not is_finite(x):
            ends = starts + lengths
            rows = message.keep(rows, lambda i: check_finite(x[starts[i] : ends[i]], "x"))
        return rows
