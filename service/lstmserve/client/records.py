"""Owns what the client tells of models, sessions and states, read from and written to the wire."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from google.protobuf.message import DecodeError

from lstmserve.client.arrays import FLOAT, Floats, floats
from lstmserve.wire.v1 import lstm_pb2 as wire

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model in torch.nn.LSTM's names; `length_max` is the longest T of one step.

    `num_embeddings` > 0: it reads tokens instead of x. `bidirectional`: predict only.
    """

    name: str
    version: int
    fingerprint: str
    device: str
    length_max: int
    message_bytes_max: int
    input_size: int
    hidden_size: int
    num_layers: int
    proj_size: int
    bidirectional: bool
    output_size: int
    num_embeddings: int

    @property
    def layers(self) -> int:
        """First axis of h and c: num_layers x directions."""
        return self.num_layers * (2 if self.bidirectional else 1)

    @property
    def state_size(self) -> int:
        """Width of h; c is hidden_size wide."""
        return self.proj_size or self.hidden_size

    @classmethod
    def read(cls, model: wire.Model) -> ModelInfo:
        """From the wire."""
        spec = model.spec
        return cls(
            name=model.name,
            version=model.version,
            fingerprint=model.fingerprint,
            device=model.device,
            length_max=model.length_max,
            message_bytes_max=model.message_bytes_max,
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
        """From the wire."""
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


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What a session remembers, to be kept or opened elsewhere with the same model.

    h float32 [layers, proj_size or hidden_size], c float32 [layers, hidden_size]; `step` is how
    many steps led to it; `fingerprint` is its model's ("": not checked) and `crc32c` the server's
    sum over h, c and step (0: not checked), so an edited copy needs crc32c=0.
    """

    h: Floats
    c: Floats
    step: int = 0
    fingerprint: str = ""
    crc32c: int = 0

    def write(self) -> wire.State:
        """For the wire; it holds no sizes, the model has them."""
        return wire.State(
            h=self.h.astype(FLOAT).tobytes(),
            c=self.c.astype(FLOAT).tobytes(),
            step=self.step,
            fingerprint=self.fingerprint,
            crc32c=self.crc32c,
        )

    @classmethod
    def read(cls, state: wire.State, layers: int) -> State:
        """From the wire. Raises ValueError when it does not have that many layers."""
        return cls(
            h=floats(state.h, layers, -1),
            c=floats(state.c, layers, -1),
            step=state.step,
            fingerprint=state.fingerprint,
            crc32c=state.crc32c,
        )

    def to_bytes(self) -> bytes:
        """A serialised lstmserve.v1.State, readable from any language."""
        return self.write().SerializeToString()

    @classmethod
    def from_bytes(cls, data: bytes, model: ModelInfo) -> State:
        """What to_bytes wrote. Raises ValueError when it is none, or has not `model`'s sizes."""
        try:
            message = wire.State.FromString(data)
        except DecodeError as error:
            raise ValueError("not a serialised lstmserve.v1.State") from error
        sizes = (model.layers * model.state_size * 4, model.layers * model.hidden_size * 4)
        if (len(message.h), len(message.c)) != sizes:
            raise ValueError(f"not a state of {model.name}: its h and c take {sizes} bytes")
        return cls.read(message, model.layers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return NotImplemented
        return self.step == other.step and all(
            np.array_equal(a, b) for a, b in ((self.h, other.h), (self.c, other.c))
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays
