"""Owns how steps become messages that fit, and replies arrays. No I/O.

Stepped is what step_many needs of a session; the two flavours of Session have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from lstmserve.client import ids
from lstmserve.client.records import Floats, ModelInfo, Rows, floats
from lstmserve.client.status import from_status
from lstmserve.errors import LstmServeError
from lstmserve.wire.v1 import lstm_pb2 as wire

FRAME_BYTES: Final = 4096  # what a message has beside its columns
STEP_BYTES: Final = 170  # what a step has beside its rows; an id has up to 128 bytes
MILLISECONDS_MAX: Final = 2**31 - 1  # of the message's field
REPLY_BYTES: Final = 65_536  # what a server keeps of a reply, unless --reply-bytes-max says less


class Piece(NamedTuple):
    """One numbered step."""

    number: int
    rows: Rows
    last_only: bool


class Stepped(Protocol):
    """A session, as far as its steps can travel with others."""

    @property
    def id(self) -> str: ...
    @property
    def incarnation(self) -> int: ...
    @property
    def model_info(self) -> ModelInfo: ...


S = TypeVar("S", bound=Stepped)


def step_request(session: wire.Session, piece: Piece, timeout_s: float) -> wire.StepRequest:
    """The message of one step of one session; not started in `timeout_s`, a server drops it."""
    rows = piece.rows
    return wire.StepRequest(
        session_id=session.id,
        incarnation=session.incarnation,
        step=piece.number,
        length=rows.length,
        x=rows.x,
        tokens=rows.tokens,
        last_only=piece.last_only,
        timeout_ms=_milliseconds(timeout_s),
    )


def _milliseconds(timeout_s: float) -> int:
    return max(1, min(int(timeout_s * 1000), MILLISECONDS_MAX))


class Answer(NamedTuple):
    """One applied step's: y [length, O], or [1, O] with last_only."""

    y: Floats
    durable_step: int


def answer(model: ModelInfo, reply: wire.StepResponse) -> Answer:
    """Of a reply."""
    return Answer(floats(reply.y, -1, model.output_size), reply.durable_step)


class Parcel(NamedTuple, Generic[S]):
    """Steps that travel in one message: sessions of one model and one group, a piece each."""

    sessions: list[S]
    pieces: list[Piece]

    @property
    def group(self) -> str:
        """What a router hashes."""
        return ids.group(self.sessions[0].id)

    @property
    def is_alone(self) -> bool:
        """Whether it is one session that no other can join: a stream for it would be a waste."""
        return len(self.sessions) == 1 and not ids.is_grouped(self.sessions[0].id)

    def request(self, timeout_s: float) -> wire.StepManyRequest:
        """The message of all; the server drops what it cannot start in `timeout_s`."""
        return wire.StepManyRequest(
            session_ids=[session.id for session in self.sessions],
            incarnations=[session.incarnation for session in self.sessions],
            steps=[piece.number for piece in self.pieces],
            lengths=[piece.rows.length for piece in self.pieces],
            x=b"".join([piece.rows.x for piece in self.pieces]),
            tokens=[token for piece in self.pieces for token in piece.rows.tokens],
            last_only=self.pieces[0].last_only,
            timeout_ms=_milliseconds(timeout_s),
        )

    def unpack(self, reply: wire.StepManyResponse) -> list[Answer | LstmServeError]:
        """What came of each session's step."""
        failed = {error.index: error.status for error in reply.errors}
        ends = np.cumsum(reply.lengths or [1] * len(self.sessions)).tolist()
        y = floats(reply.y, -1, self.sessions[0].model_info.output_size)
        durable = reply.durable_steps or reply.steps
        return [
            from_status(failed[index]) if index in failed else Answer(y[start:end], durable[index])
            for index, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
        ]


def parcels(steps: Iterable[tuple[S, Piece]]) -> Iterator[Parcel[S]]:
    """The steps of many sessions, sorted into messages that fit.

    A session whose id names no group shares its server with nobody, and travels alone.
    """
    lots: dict[tuple[str, str, int, bool], Parcel[S]] = {}
    for session, piece in steps:
        model = session.model_info
        key = (ids.group(session.id), model.name, model.version, piece.last_only)
        lot = lots.setdefault(key, Parcel([], []))
        lot.sessions.append(session)
        lot.pieces.append(piece)
    for lot in lots.values():
        yield from _split(lot)


def _split(lot: Parcel[S]) -> Iterator[Parcel[S]]:
    model = lot.sessions[0].model_info
    sizes = [weight(model, piece.rows) + STEP_BYTES for piece in lot.pieces]
    for span in spans(sizes, room(model)):
        yield Parcel(lot.sessions[span], lot.pieces[span])


def room(model: ModelInfo) -> int:
    """Bytes of a message that steps can take."""
    return max(model.message_bytes_max - FRAME_BYTES, model.message_bytes_max // 2)


def cut(model: ModelInfo, rows: Rows, last_only: bool) -> list[Rows]:
    """In parts that fit a message, and whose replies a server keeps, so that each can be repeated;

    bits stay the same.
    """
    reply_row = 0 if last_only else 4 * model.output_size
    message_row = max(rows.size // rows.length, reply_row)
    fitting = (room(model) - STEP_BYTES) // message_row
    kept = rows.length if last_only else REPLY_BYTES // reply_row
    count = max(1, min(fitting, kept))
    if rows.length <= count:
        return [rows]
    starts = range(0, rows.length, count)
    return [rows.part(start, min(start + count, rows.length)) for start in starts]


def merge(model: ModelInfo, steps: Sequence[Rows]) -> Iterator[list[Rows]]:
    """Runs of steps that can be one: its reply is kept, it is not too long, the message fits."""
    budget = min(REPLY_BYTES, room(model))
    sizes = [max(weight(model, r), budget * r.length / model.length_max) for r in steps]
    for span in spans(sizes, budget):
        yield list(steps[span])


def joined(steps: Sequence[Rows]) -> Rows:
    """One step of the rows of all."""
    if len(steps) == 1:
        return steps[0]
    return Rows(
        b"".join([r.x for r in steps]),
        [token for r in steps for token in r.tokens],
        sum(r.length for r in steps),
        single=False,
    )


def weight(model: ModelInfo, step: Rows) -> int:
    """Bytes that a step adds to its message or to the reply, whichever is more."""
    return max(step.size, step.length * model.output_size * 4)


def spans(sizes: Sequence[float], budget: float) -> Iterator[slice]:
    """Slices, one after the other, whose sizes add up to at most budget, or that hold one item."""
    start, total = 0, 0.0
    for index, size in enumerate(sizes):
        if index > start and total + size > budget:
            yield slice(start, index)
            start, total = index, 0
        total += size
    yield slice(start, len(sizes))
