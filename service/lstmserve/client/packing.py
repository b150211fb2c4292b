"""Makes messages that fit of steps and whole sequences, and arrays of the replies. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from lstmserve.client.arrays import (
    Array,
    Input,
    Output,
    StepInput,
    output,
    output_rows,
    refusal,
    step_input,
)
from lstmserve.client.protocol import group, is_grouped
from lstmserve.client.records import ModelInfo
from lstmserve.client.state import read_tensors, state_tensors, write_tensors
from lstmserve.client.status import from_status
from lstmserve.errors import LstmServeError
from lstmserve.rows import Rows
from lstmserve.wire.v1 import lstm_pb2 as wire

FRAME_BYTES: Final = 4096  # of a message beside its columns
STEP_BYTES: Final = 170  # of a step beside its rows; an id has up to 128 bytes
MILLISECONDS_MAX: Final = 2**31 - 1  # of the message's field
REPLY_BYTES: Final = 65_536  # of a reply that a server keeps, unless --reply-bytes-max is less


class NumberedStep(NamedTuple):
    """One step of a session under its number."""

    number: int
    rows: StepInput
    last_only: bool


class SessionLike(Protocol):
    """What packing reads of a session; Session and AsyncSession have it."""

    @property
    def id(self) -> str: ...
    @property
    def incarnation(self) -> int: ...
    @property
    def model_info(self) -> ModelInfo: ...


S = TypeVar("S", bound=SessionLike)


def step_request(session: wire.Session, step: NumberedStep, timeout_s: float) -> wire.StepRequest:
    """The message of one step. The server drops it unless it starts within `timeout_s`."""
    rows = step.rows
    return wire.StepRequest(
        session_id=session.id,
        incarnation=session.incarnation,
        step=step.number,
        length=rows.length,
        x=rows.x,
        tokens=rows.tokens,
        last_only=step.last_only,
        timeout_ms=_milliseconds(timeout_s),
    )


def _milliseconds(timeout_s: float) -> int:
    return max(1, min(int(timeout_s * 1000), MILLISECONDS_MAX))


class StepResult(NamedTuple):
    """The result of one applied step: the rows [length] of its outputs, or [1] with last_only.

    Where the model waits for a whole window, there are no rows for the first time steps of a
    session, and `missing_rows` says how many the window lacks after the step.
    """

    y: Rows
    durable_step: int
    missing_rows: int


def step_result(model: ModelInfo, reply: wire.StepResponse) -> StepResult:
    """What a reply says."""
    y = output_rows(model, reply.y, reply.y_ints)
    return StepResult(y, reply.durable_step, reply.missing_rows)


class GroupMessage(NamedTuple, Generic[S]):
    """The steps of one StepMany message: sessions of one model and one group, one step each."""

    sessions: list[S]
    steps: list[NumberedStep]

    @property
    def group(self) -> str:
        """What a router hashes."""
        return group(self.sessions[0].id)

    @property
    def is_single(self) -> bool:
        """Whether it is one session without a group, for which a stream would be a waste."""
        return len(self.sessions) == 1 and not is_grouped(self.sessions[0].id)

    def request(self, timeout_s: float) -> wire.StepManyRequest:
        """The message. The server drops each step unless it starts within `timeout_s`."""
        return wire.StepManyRequest(
            session_ids=[session.id for session in self.sessions],
            incarnations=[session.incarnation for session in self.sessions],
            steps=[step.number for step in self.steps],
            lengths=[step.rows.length for step in self.steps],
            x=b"".join([step.rows.x for step in self.steps]),
            tokens=[token for step in self.steps for token in step.rows.tokens],
            last_only=self.steps[0].last_only,
            timeout_ms=_milliseconds(timeout_s),
        )

    def results(self, reply: wire.StepManyResponse) -> list[StepResult | LstmServeError]:
        """The outcome of each session's step."""
        failed = {error.index: error.status for error in reply.errors}
        ends = np.cumsum(reply.lengths or [1] * len(self.sessions)).tolist()
        y = output_rows(self.sessions[0].model_info, reply.y, reply.y_ints)
        durable = reply.durable_steps or reply.steps
        missing_rows = reply.missing_rows or [0] * len(self.sessions)
        return [
            from_status(failed[index])
            if index in failed
            else StepResult(y[start:end], durable[index], missing_rows[index])
            for index, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
        ]


def group_messages(steps: Iterable[tuple[S, NumberedStep]]) -> Iterator[GroupMessage[S]]:
    """Sorts the steps of many sessions into messages that fit.

    A session whose id names no group travels alone: no other session need be on its server.
    """
    messages: dict[tuple[str, str, int, bool], GroupMessage[S]] = {}
    for session, step in steps:
        model = session.model_info
        key = (group(session.id), model.name, model.version, step.last_only)
        message = messages.setdefault(key, GroupMessage([], []))
        message.sessions.append(session)
        message.steps.append(step)
    for message in messages.values():
        yield from _fitting(message)


def _fitting(message: GroupMessage[S]) -> Iterator[GroupMessage[S]]:
    model = message.sessions[0].model_info
    sizes = [_step_bytes(model, step.rows) + STEP_BYTES for step in message.steps]
    for span in spans(sizes, _room(model)):
        yield GroupMessage(message.sessions[span], message.steps[span])


def _room(model: ModelInfo) -> int:
    """Bytes of a message that its steps can take."""
    return max(model.message_bytes_max - FRAME_BYTES, model.message_bytes_max // 2)


def _step_bytes(model: ModelInfo, step: StepInput) -> int:
    """Bytes that a step adds to its message or to the reply, whichever is more."""
    return max(step.size, step.length * model.output_bytes)


def split(model: ModelInfo, rows: StepInput, last_only: bool) -> list[StepInput]:
    """Splits rows into parts that fit a message, and whose replies the server keeps for a repeat.

    Stepping the parts gives the same bits as stepping the whole.
    """
    reply_row = 0 if last_only else model.output_bytes
    message_row = max(rows.size // rows.length, reply_row)
    fitting = (_room(model) - STEP_BYTES) // message_row
    kept = rows.length if last_only else REPLY_BYTES // reply_row
    count = max(1, min(fitting, kept))
    if rows.length <= count:
        return [rows]
    starts = range(0, rows.length, count)
    return [rows.part(start, min(start + count, rows.length)) for start in starts]


def joinable(model: ModelInfo, steps: Sequence[StepInput]) -> Iterator[list[StepInput]]:
    """Runs of steps that can be one step: its reply is kept, its length and message fit."""
    budget = min(REPLY_BYTES, _room(model))
    sizes = [max(_step_bytes(model, r), budget * r.length / model.length_max) for r in steps]
    for span in spans(sizes, budget):
        yield list(steps[span])


def join(steps: Sequence[StepInput]) -> StepInput:
    """One step with the rows of all."""
    if len(steps) == 1:
        return steps[0]
    return StepInput(
        b"".join([r.x for r in steps]),
        [token for r in steps for token in r.tokens],
        sum(r.length for r in steps),
        single=False,
    )


def spans(sizes: Sequence[float], budget: float) -> Iterator[slice]:
    """Consecutive slices whose sizes add up to at most `budget`, or that hold one item."""
    start, total = 0, 0.0
    for index, size in enumerate(sizes):
        if index > start and total + size > budget:
            yield slice(start, index)
            start, total = index, 0
        total += size
    yield slice(start, len(sizes))


class PredictInput(NamedTuple):
    """B whole sequences of one predict call.

    `initial` are the states [B, *shape] that they start from, by name; None: the model's own.
    """

    model: ModelInfo
    rows: list[StepInput]
    initial: dict[str, Array] | None

    @classmethod
    def of(
        cls,
        model: ModelInfo,
        inputs: Iterable[Input],
        initial: Mapping[str, npt.ArrayLike] | None,
    ) -> PredictInput:
        """Checks the caller's arrays. Raises ValueError for a shape, and for no sequence at all."""
        sequences = [step_input(model, x) for x in inputs]
        if not sequences:
            raise ValueError("predict takes at least one sequence")
        if initial is None:
            return cls(model, sequences, None)
        return cls(model, sequences, state_tensors(model, initial, len(sequences)))

    def requests(self, last_only: bool, with_state: bool) -> Iterator[wire.PredictRequest]:
        """Messages that fit, with all sequences in order.

        Raises InvalidInput for a sequence that is larger than a message: split, it would be
        another sequence.
        """
        model = self.model
        sizes = [_step_bytes(model, r) + model.state_bytes + 10 for r in self.rows]
        largest = max(r.size for r in self.rows)
        largest += 0 if self.initial is None else model.state_bytes
        limit = model.message_bytes_max
        if largest > limit:
            takes = f"a sequence takes {largest} bytes, a message to this server {limit}"
            advice = "step it in a session" if model.is_streaming else "raise --message-bytes-max"
            raise refusal("TOO_LONG", f"{takes}: {advice}")
        for span in spans(sizes, _room(model)):
            part = self.rows[span]
            yield wire.PredictRequest(
                model=model.name,
                version=model.version,
                lengths=[r.length for r in part],
                x=b"".join([r.x for r in part]),
                tokens=[token for r in part for token in r.tokens],
                last_only=last_only,
                initial=write_tensors({n: each[span] for n, each in (self.initial or {}).items()}),
                with_state=with_state,
            )

    def outputs(self, replies: Sequence[wire.PredictResponse], last_only: bool) -> list[Output]:
        """What the caller gets of each sequence, as output() has it."""
        model = self.model
        flat = np.concatenate([output_rows(model, reply.y, reply.y_ints) for reply in replies])
        ends = np.cumsum([length for reply in replies for length in reply.lengths])
        parts = np.split(flat, ends[:-1])
        return [
            output(model, part, r.single, last_only)
            for part, r in zip(parts, self.rows, strict=True)
        ]

    def finals(self, replies: Sequence[wire.PredictResponse]) -> dict[str, Array]:
        """The states [B, *shape] after each sequence, by name."""
        model = self.model
        parts = [read_tensors(each.final, model, len(each.lengths)) for each in replies]
        return {each.name: np.concatenate([p[each.name] for p in parts]) for each in model.states}
