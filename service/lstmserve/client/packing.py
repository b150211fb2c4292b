"""Owns how steps become messages that fit, and replies arrays. No I/O.

Stepped is what step_many needs of a session; the two flavours of Session have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from lstmserve.client import ids
from lstmserve.client.arrays import Floats, Rows, floats, rows
from lstmserve.client.errors import LstmServeError
from lstmserve.client.records import ModelInfo
from lstmserve.client.status import from_status
from lstmserve.wire.v1 import lstm_pb2 as wire

FRAME_BYTES: Final = 4096  # what a message has beside its columns


class Stepped(Protocol):
    """A session, as far as its steps can travel with others."""

    @property
    def id(self) -> str: ...
    @property
    def incarnation(self) -> int: ...
    @property
    def model_info(self) -> ModelInfo: ...
    def note(self, step: int, durable_step: int) -> None: ...


S = TypeVar("S", bound=Stepped)


def step_request(session: Stepped, step: Rows, last_only: bool) -> wire.StepRequest:
    """The message of one step of one session."""
    return wire.StepRequest(
        session_id=session.id,
        incarnation=session.incarnation,
        length=step.length,
        x=step.x,
        tokens=step.tokens,
        last_only=last_only,
    )


class Parcel(NamedTuple, Generic[S]):
    """Steps that travel in one message: sessions of one model and one group, a Rows each."""

    sessions: list[S]
    rows: list[Rows]

    @property
    def group(self) -> str:
        """What a router hashes."""
        return ids.group(self.sessions[0].id)

    @property
    def is_alone(self) -> bool:
        """Whether it is one session that no other can join: a stream for it would be a waste."""
        return len(self.sessions) == 1 and not ids.is_grouped(self.sessions[0].id)

    def request(self, last_only: bool, timeout_s: float) -> wire.StepManyRequest:
        """The message of all; the server drops what it cannot start in `timeout_s`."""
        return wire.StepManyRequest(
            session_ids=[session.id for session in self.sessions],
            incarnations=[session.incarnation for session in self.sessions],
            lengths=[r.length for r in self.rows],
            x=b"".join([r.x for r in self.rows]),
            tokens=[token for r in self.rows for token in r.tokens],
            last_only=last_only,
            timeout_ms=max(1, int(timeout_s * 1000)),
        )

    def request_alone(self, last_only: bool) -> wire.StepRequest:
        """The message of the only one."""
        return step_request(self.sessions[0], self.rows[0], last_only)

    def unpack(
        self,
        reply: wire.StepManyResponse | wire.StepResponse,
        last_only: bool,
        results: dict[S, Floats],
        errors: dict[S, LstmServeError],
    ) -> None:
        """Puts y of each session into `results`, or its error into `errors`."""
        if isinstance(reply, wire.StepResponse):
            reply = wire.StepManyResponse(
                steps=[reply.step],
                durable_steps=[reply.durable_step],
                lengths=[reply.length],
                y=reply.y,
            )
        failed = {error.index: error.status for error in reply.errors}
        ends = np.cumsum(reply.lengths or [1] * len(self.sessions)).tolist()
        y = floats(reply.y, -1, self.sessions[0].model_info.output_size)
        durable = reply.durable_steps or reply.steps
        start = 0
        for index, (session, end) in enumerate(zip(self.sessions, ends, strict=True)):
            if index in failed:
                errors[session] = from_status(failed[index])
            else:
                session.note(reply.steps[index], durable[index])
                is_row = self.rows[index].single or last_only
                results[session] = y[start] if is_row else y[start:end]
            start = end


def parcels(inputs: Mapping[S, npt.ArrayLike]) -> list[Parcel[S]]:
    """The steps of many sessions, sorted into messages that fit. Raises ValueError for a shape.

    A session whose id names no group shares its server with nobody, and travels alone.
    """
    lots: dict[tuple[str, str, int], Parcel[S]] = {}
    for session, x in inputs.items():
        model = session.model_info
        lot = lots.setdefault((ids.group(session.id), model.name, model.version), Parcel([], []))
        lot.sessions.append(session)
        lot.rows.append(rows(model, x))
    return [parcel for lot in lots.values() for parcel in _split(lot)]


def _split(lot: Parcel[S]) -> Iterator[Parcel[S]]:
    model = lot.sessions[0].model_info
    sizes = [weight(model, r) + 160 for r in lot.rows]  # an id has up to 128 bytes
    for span in spans(sizes, model.message_bytes_max - FRAME_BYTES):
        yield Parcel(lot.sessions[span], lot.rows[span])


def weight(model: ModelInfo, step: Rows) -> int:
    """Bytes that a step adds to its message or to the reply, whichever is more."""
    return max(step.size, step.length * model.output_size * 4)


def spans(sizes: Sequence[int], budget: int) -> Iterator[slice]:
    """Slices, one after the other, whose sizes add up to at most budget, or that hold one item."""
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and total + size > budget:
            yield slice(start, index)
            start, total = index, 0
        total += size
    yield slice(start, len(sizes))
