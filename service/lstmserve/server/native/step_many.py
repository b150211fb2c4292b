"""StepMany: one message with one step of each of many sessions, as one request of the engine.

A message stays columns from its bytes to its reply: no Python runs per session or row, unless one
of them is wrong. Messages of disjoint sessions may overtake one another; tags tell them apart. It
must not know how steps are ordered, batched or stored.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import numpy.typing as npt

from lstmserve.engine import Engine, Model
from lstmserve.engine.arrays import Index, Input, run_sums
from lstmserve.engine.errors import BadTensor, Malformed, MixedModels, ServeError
from lstmserve.engine.scheduling.work import Applied, Request
from lstmserve.rows import Rows
from lstmserve.server.access.tenants import Tenant
from lstmserve.server.codec import (
    check_finite,
    check_length,
    check_reply,
    input_rows,
    is_finite,
    parse,
)
from lstmserve.server.conversation import Window, Work
from lstmserve.server.message_sizes import MessageSizes
from lstmserve.server.native.session_set import SessionSet
from lstmserve.server.native.steps import INT64_BYTES, timeout_ns
from lstmserve.server.native.tensors import put_outputs
from lstmserve.server.observe.metrics import Metrics
from lstmserve.server.pending_bytes import Lease, PendingBytes
from lstmserve.server.status import code, status_key, to_status
from lstmserve.server.transport import StreamCall
from lstmserve.wire.v1 import lstm_pb2 as pb

Lengths = npt.NDArray[np.integer[Any]]

METHOD = "StepMany"
NOTHING = pb.StepManyRequest()  # in place of one that is not needed any more


class StepManyCalls:
    """The method StepMany of one port, and what its streams have in common."""

    def __init__(self, engine: Engine, metrics: Metrics, pending: PendingBytes) -> None:
        self.engine = engine
        self.metrics = metrics
        self.pending = pending
        self.sizes = MessageSizes(engine.registry, engine.config, has_states=False)

    def begin(self, stream: StreamCall, tenant: Tenant) -> StepManyStream:
        """Makes the handler of a StepMany."""
        return StepManyStream(self, stream, tenant)


class StepManyStream(Window["StepManyMessage"]):
    """One stream. A message is answered after all before it that share a session with it."""

    def __init__(self, calls: StepManyCalls, stream: StreamCall, tenant: Tenant) -> None:
        super().__init__(stream, calls.pending, tenant)
        self.calls = calls
        self.sessions = SessionSet(calls.engine, tenant)  # of the newest message
        self._held: dict[StepManyMessage, bytes] = {}  # replies of those that wait

    def open(self, content: bytes) -> StepManyMessage:
        """Reads a message, which may leave out the sessions of the one before it."""
        message = StepManyMessage(self, content)
        self.sessions = message.sessions
        return message

    def accept(self, message: StepManyMessage) -> Work | None:
        return message.begin()

    def answer(self, message: StepManyMessage, reply: bytes) -> None:
        if self.is_closed:
            return
        if not self._held and not self._is_behind(message):
            super().answer(message, reply)
            return
        message.lease.resize(len(reply))
        self._held[message] = reply
        for each in [each for each in self.unanswered if each in self._held]:
            if not self._is_behind(each):
                super().answer(each, self._held.pop(each))

    def gone(self) -> None:
        super().gone()
        self._held.clear()

    def _is_behind(self, message: StepManyMessage) -> bool:
        for earlier in self.unanswered:
            if earlier is message:
                return False
            if message.sessions.overlaps(earlier.sessions):
                return True
        raise AssertionError("the message was answered before")


class StepManyMessage:
    """A message from its bytes to its reply; it is the responder of its request.

    Columns are arrays [N] over all its sessions, or None where the message has none. `_places` [n]
    are those of its sessions that step.
    """

    def __init__(self, stream: StepManyStream, content: bytes) -> None:
        self.lease: Lease  # once it was admitted
        self._stream = stream
        self._calls = stream.calls
        self._engine = stream.calls.engine
        self._arrival_ns = self._engine.monotonic_ns()
        self._tag = 0
        self._last_only = False
        self._deadline_ns = 0  # of the start of compute; 0: none
        self._numbers: Index | None = None
        self._incarnations: Index | None = None
        self._lengths: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self._are_single = False  # whether every length is 1
        self._model: Model | None = None
        self._places: Index = np.zeros(0, np.int64)
        self._request: Request | None = None  # that the engine accepted; it has y
        self._refusal: ServeError | None = None  # of the whole message
        self._errors: dict[int, ServeError] = {}  # of sessions, by place
        self._steps: list[int] = []  # [n] numbers of the steps that were applied; 0: none
        self._durable_steps: list[int] = []  # [n]
        self._replayed: list[int] = []  # places
        self._applied_count = 0
        self._queue_ns = 0  # the longest
        self._compute_ns = 0
        self._proto = NOTHING  # from when it was parsed until it was submitted
        self.sessions = stream.sessions
        self._parse(content)
        self._size = self._measured(len(content))

    def size(self) -> int:
        return self._size

    def _parse(self, content: bytes) -> None:
        engine, tenant = self._engine, self._stream.tenant
        try:
            self._proto = proto = parse(pb.StepManyRequest, content)
            self._tag = proto.tag
            if proto.session_ids:
                self.sessions = SessionSet(engine, tenant)  # the stream's where these are too many
                self.sessions = SessionSet(engine, tenant, proto.session_ids)
        except ServeError as error:
            self._refuse(error)

    def _measured(self, length: int) -> int:
        """The most bytes that the message, of `length`, will take with its reply."""
        proto, count = self._proto, len(self.sessions)
        rows = sum(proto.lengths[:]) if proto.lengths else count
        if proto.tokens:
            length += INT64_BYTES * len(proto.tokens)
        height = count if proto.last_only else rows
        return self._calls.sizes.of(length, height, self.sessions.model())

    def _refuse(self, error: ServeError) -> None:
        self._refusal = error.with_traceback(None)  # its frames hold the message

    # --- to the engine

    def begin(self) -> Work | None:
        """Submits the message, or answers it; returns what must be awaited for that, if anything.

        It waits for nothing but a store.
        """
        proto, self._proto = self._proto, NOTHING
        if self._refusal is None:
            try:
                self._read(proto)
                if self.sessions.must_fetch(self._numbers, self._incarnations):
                    return lambda: self._fetch(proto)
            except ServeError as error:
                self._refuse(error)
        self._submit(proto)
        return None

    async def _fetch(self, proto: pb.StepManyRequest) -> None:
        await self.sessions.fetch(self._numbers, self._incarnations, self._errors)
        self._submit(proto)

    def _read(self, proto: pb.StepManyRequest) -> None:
        """Takes the message's columns. Raises the error that refuses the whole message."""
        sessions = self.sessions
        sessions.check()
        for name in ("steps", "incarnations", "lengths"):
            column = getattr(proto, name)
            if column and len(column) != len(sessions):
                text = f"{name} has {len(column)} values for {len(sessions)} sessions"
                raise BadTensor(text, field=name)
        self._last_only = proto.last_only
        self._deadline_ns = timeout_ns(self._arrival_ns, proto.timeout_ms)
        self._lengths, self._are_single = sessions.ones, True
        # A slice, which is a list, is read five times as fast as the field itself.
        if proto.lengths:
            self._lengths = np.array(proto.lengths[:], np.int32)
            self._are_single = bool((self._lengths == 1).all())
            if self._lengths.min() < 0:
                raise Malformed("a length is negative", field="lengths")
        if proto.steps:
            self._numbers = np.array(proto.steps[:], np.int64)
        if proto.incarnations:
            self._incarnations = sessions.incarnations(proto.incarnations[:])

    def _submit(self, proto: pb.StepManyRequest) -> None:
        """Submits the good sessions of the message, and notes the errors of the others."""
        if self._refusal is None:
            try:
                self._accept(proto)
            except ServeError as error:
                self._refuse(error)
        if self._request is None:
            self._answer()

    def _accept(self, proto: pb.StepManyRequest) -> None:
        """Checks and submits the message. Raises the error that refuses the whole of it."""
        sessions, engine = self.sessions, self._engine
        self._places, rows = sessions.find(self._numbers, self._incarnations, self._errors)
        if not rows.size:
            return
        models = engine.table.model[rows]
        if (models != models[0]).any():
            raise MixedModels("the sessions of a message must be of one model and version")
        self._model = model = engine.model_of(rows[0])
        total = len(sessions) if self._are_single else int(self._lengths.sum())
        x = input_rows(model, proto.x, proto.tokens, total)
        height = len(sessions) if self._last_only else total  # whatever becomes of the sessions
        check_reply(height, model, engine.config.message_bytes_max)
        starts = sessions.places
        if not self._are_single:
            starts = np.cumsum(self._lengths, dtype=np.int64) - self._lengths
        rows = self._keep_good(rows, x, starts)
        if rows.size:
            self._hand_over(model, self._make_request(rows, x, starts, height))

    def _keep_good(self, rows: Index, x: Input, starts: Index) -> Index:
        """The rows [n] of sessions whose own input is good; `starts` [N] has each one's first row
        in x."""
        lengths, length_max = self._lengths, self._engine.config.length_max
        if not self._are_single and not 1 <= lengths.min() <= lengths.max() <= length_max:
            rows = self._keep(
                rows, lambda place: check_length(int(lengths[place]), length_max, "lengths")
            )
        if not is_finite(x):
            ends = starts + lengths
            rows = self._keep(rows, lambda place: check_finite(x[starts[place] : ends[place]], "x"))
        return rows

    def _keep(self, rows: Index, check: Callable[[int], None]) -> Index:
        """The rows whose places pass the check; the others get their error."""
        is_good = np.ones(rows.size, np.bool_)
        for i, place in enumerate(self._places.tolist()):
            try:
                check(place)
            except ServeError as error:
                self._errors[place] = error.with_traceback(None)
                is_good[i] = False
        self._places = self._places[is_good]
        return rows[is_good]

    def _make_request(self, rows: Index, x: Input, starts: Index, height: int) -> Request:
        are_all = rows.size == len(self.sessions)
        chosen = slice(None) if are_all else self._places
        firsts = None if are_all and self._are_single else starts[chosen]
        return Request(
            x,
            rows,
            self,
            arrival_ns=self._arrival_ns,
            height=height,
            numbers=None if self._numbers is None else self._numbers[chosen],
            lengths=None if self._are_single else self._lengths[chosen],
            firsts=firsts,
            outs=self._places if self._last_only and firsts is not None else firsts,
            last_only=self._last_only,
            deadlines_ns=np.full(rows.size, self._deadline_ns) if self._deadline_ns else None,
            is_distinct=True,
            is_whole=True,
        )

    def _hand_over(self, model: Model, request: Request) -> None:
        """Makes the request and submits it. Raises the error that refuses the whole message."""
        tenant, table = self._stream.tenant, self._engine.table
        if tenant.is_limited:
            rows = np.asarray(request.rows)
            tenant.check_many(request, table.step[rows], table.accepted(rows))
        y_bytes = request.height * model.outputs.wire_bytes
        self.lease.grow(request.x.nbytes * model.spec.cells + y_bytes)
        self.lease.hold()
        self._request = request  # before it is accepted: one of repeats alone is over at once
        tenant.pending_steps += len(request)
        try:
            self._engine.accept(model, request)
        except ServeError:
            self._request = None
            tenant.pending_steps -= len(request)
            self.lease.release()
            raise
        if not request.inputs_left and request.left:  # all of it joined other steps
            self.lease.resize(y_bytes)

    def cancel(self) -> None:
        """Ends the message, as the stream is gone."""
        self.lease.release()
        if self._request is not None:
            self._request.cancel()

    # --- from the engine

    def applied(self, request: Request, rows: Applied) -> None:
        count = len(rows.places)
        if count == len(request):
            self._steps, self._durable_steps = rows.numbers, rows.durable_steps
        else:
            self._fill(len(request))
            for i, number, durable in zip(
                rows.places, rows.numbers, rows.durable_steps, strict=True
            ):
                self._steps[i], self._durable_steps[i] = number, durable
        if rows.is_replayed:
            self._replayed += self._places[rows.places].tolist()
        self._applied_count += count
        self._queue_ns = max(self._queue_ns, rows.start_ns - request.arrival_ns)
        self._compute_ns = max(self._compute_ns, rows.compute_ns)
        self._end_if_over(request)

    def failed(self, request: Request, place: int, error: ServeError) -> None:
        self._fill(len(request))
        self._errors[self._places.item(place)] = error
        self._end_if_over(request)

    def _fill(self, count: int) -> None:
        if not self._steps:
            self._steps, self._durable_steps = [0] * count, [0] * count

    def _end_if_over(self, request: Request) -> None:
        if not request.left:
            self._stream.tenant.pending_steps -= len(request)
            self.lease.release()
            self._answer()

    # --- the reply

    def _answer(self) -> None:
        response = pb.StepManyResponse(tag=self._tag)
        if self._refusal is None:
            self._render(response)
        else:
            self._count_failed(max(1, self._lengths.size), self._refusal)
            response.error.CopyFrom(to_status(self._refusal))
        if self._request is not None:
            self._request.forget_arrays()  # the reply may have to wait, and is all that is counted
        self._stream.answer(self, response.SerializeToString())

    def _render(self, response: pb.StepManyResponse) -> None:
        response.steps.extend(self._spread(self._steps))
        has_store = self._engine.lifecycle.has_store
        response.durable_steps.extend(self._spread(self._durable_steps if has_store else []))
        if self._errors:
            self._render_errors(response)
        lengths: Lengths = self.sessions.ones if self._last_only else self._lengths
        if self._model is not None:
            lengths = self._render_outputs(response, self._model, lengths)
        if (lengths != 1).any():
            response.lengths.extend(lengths.tolist())
        if self._model is not None:
            response.queue_ns, response.compute_ns = self._queue_ns, self._compute_ns
            if self._replayed:
                response.replayed.extend(sorted(self._replayed))
            self._count_applied(self._model)

    def _spread(self, values: list[int]) -> list[int]:
        """Spreads values [n] of the sessions that stepped over all sessions [N]; the others get
        0."""
        if len(values) == len(self.sessions):
            return values
        spread = [0] * len(self.sessions)
        if values:
            for place, value in zip(self._places.tolist(), values, strict=True):
                spread[place] = value
        return spread

    def _render_errors(self, response: pb.StepManyResponse) -> None:
        """Renders equal errors once, because thousands of them would keep all other calls
        waiting."""
        found: dict[Hashable, tuple[bytes, list[ServeError]]] = {}
        for place, error in sorted(self._errors.items()):
            kind = status_key(error)
            if kind not in found:
                found[kind] = to_status(error).SerializeToString(), []
            content, alike = found[kind]
            alike.append(error)
            # Bytes cost a tenth of what it takes to hand a message over.
            response.errors.add(index=place).status.MergeFromString(content)
        for _, alike in found.values():
            self._count_failed(len(alike), alike[0])

    def _render_outputs(
        self, response: pb.StepManyResponse, model: Model, lengths: Lengths
    ) -> Lengths:
        """Sets y, and what the windows lack. Returns the rows of y of each session, [N]; `lengths`
        [N] are those of the results."""
        y, missing = model.take_apart(self._results(model, lengths))
        if missing is not None and missing.any():
            is_given = missing == 0
            ends = np.cumsum(lengths)
            lasts = np.where(lengths > 0, missing[ends - 1], 0)
            if lasts.any():
                response.missing_rows.extend(lasts.tolist())
            y, lengths = y[is_given], run_sums(is_given, lengths)
        put_outputs(response, model.outputs, y)
        return lengths

    def _results(self, model: Model, lengths: Lengths) -> Rows:
        """The results of all sessions, with NaN and 0 where nothing was applied."""
        if self._request is None or self._request.y is None:
            return model.results.unknown(int(lengths.sum()))
        return self._request.y

    def _count_applied(self, model: Model) -> None:
        if self._applied_count:
            total_ns = self._engine.monotonic_ns() - self._arrival_ns
            counters = self._calls.metrics.model(model.name, model.version)
            counters.steps(METHOD, self._applied_count, total_ns, self._queue_ns)
            counters.replayed(len(self._replayed))

    def _count_failed(self, count: int, error: ServeError) -> None:
        name, version = (self._model.name, self._model.version) if self._model else ("", 0)
        self._calls.metrics.model(name, version).failed(METHOD, code(error), error.reason, count)
