"""What a server says of its models and sessions, read from its messages. No arrays, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from grpc import StatusCode

from lstmserve.errors import Unimplemented
from lstmserve.rows import RowFormat
from lstmserve.spec import INT_WIRE_BYTES, TensorSpec, tensor_messages_bytes
from lstmserve.wire.v1 import lstm_pb2 as wire

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp


@dataclass(frozen=True, slots=True)
class LstmInfo:
    """The sizes of an nn.LSTM and its head, in torch's names.

    With `num_embeddings` > 0 it reads tokens below that number instead of x.
    """

    input_size: int
    hidden_size: int
    num_layers: int
    proj_size: int
    bidirectional: bool
    output_size: int
    num_embeddings: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model. `length_max` is the longest T of one step.

    `inputs`, `outputs` and `states` have the name, shape and dtype of each, for one time step of
    one session. If `is_streaming` is False, the model can only predict: it is bidirectional, or has
    no states and gives as many rows of y as its network computes. If `is_exact`, the bits of
    a result do not depend on its batch or chunk on that server; else they differed by `difference`
    at most when it started. `lstm` is None unless `kind` is "lstm".

    With a `window` of W rows, y is of the last W rows that the session has given; with 0 the state
    runs on. `window_fill` says what stands for the rows that a new session lacks: "wait" (no y
    until there are W), "zeros" or "grow" (the rows there are); "" without a window.
    """

    name: str
    version: int
    fingerprint: str
    device: str
    length_max: int
    message_bytes_max: int
    kind: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[TensorSpec, ...]
    is_streaming: bool
    is_exact: bool
    difference: float
    lstm: LstmInfo | None
    window: int = 0
    window_fill: str = ""
    input_rows: RowFormat = field(init=False, repr=False, compare=False)
    output_rows: RowFormat = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_rows", RowFormat(self.inputs))
        object.__setattr__(self, "output_rows", RowFormat(self.outputs))

    @property
    def waits(self) -> bool:
        """Whether a row has no y until its session has given a whole window."""
        return self.window_fill == "wait"

    @property
    def output_bytes(self) -> int:
        """The most bytes that a row of the outputs takes on the wire, or where a server keeps it:
        beside it the server keeps what the window lacks."""
        return self.output_rows.wire_bytes + self.waits * INT_WIRE_BYTES

    @property
    def state_bytes(self) -> int:
        """The most bytes that a session's states take on the wire."""
        return tensor_messages_bytes(self.states)

    @classmethod
    def read(cls, model: wire.Model) -> ModelInfo:
        """Reads the message. Raises Unimplemented for a server that does not say its tensors."""
        spec = model.spec
        if not spec.kind:
            raise Unimplemented(
                "this server is of the first edition of lstmserve, which did not name its tensors: "
                "upgrade it, or use that edition's client",
                code=StatusCode.UNIMPLEMENTED,
            )
        return cls(
            name=model.name,
            version=model.version,
            fingerprint=model.fingerprint,
            device=model.device,
            length_max=model.length_max,
            message_bytes_max=model.message_bytes_max,
            kind=spec.kind,
            inputs=tuple(map(_tensor_spec, spec.inputs)),
            outputs=tuple(map(_tensor_spec, spec.outputs)),
            states=tuple(map(_tensor_spec, spec.states)),
            is_streaming=spec.is_streaming,
            is_exact=spec.is_exact,
            difference=spec.difference,
            lstm=_lstm_info(spec.lstm) if spec.HasField("lstm") else None,
            window=spec.window,
            window_fill=spec.window_fill,
        )


def _tensor_spec(spec: wire.TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, tuple(spec.shape), spec.dtype)  # type: ignore[arg-type]  # it checks


def _lstm_info(spec: wire.LstmSpec) -> LstmInfo:
    return LstmInfo(
        input_size=spec.input_size,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        proj_size=spec.proj_size,
        bidirectional=spec.bidirectional,
        output_size=spec.output_size,
        num_embeddings=spec.num_embeddings,
    )


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as the server sees it. `step` is the last applied, 0: none."""

    id: str
    model: str
    version: int
    incarnation: int
    step: int
    durable_step: int
    pending_steps: int
    ttl_s: float
    open_time: datetime
    expire_time: datetime

    @classmethod
    def read(cls, session: wire.Session) -> SessionInfo:
        return cls(
            id=session.id,
            model=session.model,
            version=session.version,
            incarnation=session.incarnation,
            step=session.step,
            durable_step=session.durable_step,
            pending_steps=session.pending_steps,
            ttl_s=session.ttl.ToTimedelta().total_seconds(),
            open_time=_utc(session.open_time),
            expire_time=_utc(session.expire_time),
        )


def _utc(moment: Timestamp) -> datetime:
    return moment.ToDatetime(tzinfo=UTC)
