"""Predicts how many bytes a message takes with its input and its reply, before it is parsed.

It reads no message: it knows the models' sizes and the configured limits.
"""

from __future__ import annotations

from collections.abc import Sequence

from lstmserve.config import MESSAGE_BYTES_LIMIT, Config
from lstmserve.engine import Model
from lstmserve.engine.predict import PredictJob
from lstmserve.spec import ModelSpec

FLOAT_BYTES = 4


class MessageSizes:
    """Sizes of one dialect's messages. With `has_states` a reply may contain states as well."""

    def __init__(self, models: Sequence[Model], config: Config, *, has_states: bool) -> None:
        self._message_bytes_max = config.message_bytes_max or MESSAGE_BYTES_LIMIT
        self.reply_row_bytes = max((output_bytes(model.spec) for model in models), default=0)
        states = [state_bytes(model.spec) if has_states else 0 for model in models]
        self._reply_factor = max(
            (
                -(-(output_bytes(model.spec) + state) // row_bytes(model.spec))
                for model, state in zip(models, states, strict=True)
            ),
            default=0,
        )

    def bound(self, message_bytes: int) -> int:
        """The most that a message of `message_bytes` can take, whatever it contains."""
        reply = min(message_bytes * self._reply_factor, self._message_bytes_max)
        return message_bytes + max(reply, self.reply_row_bytes)

    def of(self, message_bytes: int, height: int, spec: ModelSpec | None) -> int:
        """The most for a message whose reply has `height` rows of a model; None: of any model."""
        row = self.reply_row_bytes if spec is None else output_bytes(spec)
        reply = min(max(1, height) * row, self._message_bytes_max)
        return message_bytes + max(reply, self.reply_row_bytes)


def output_bytes(spec: ModelSpec) -> int:
    """Bytes of one row of y."""
    return FLOAT_BYTES * spec.output_size


def state_bytes(spec: ModelSpec) -> int:
    """Bytes of h and c of one session or sequence."""
    layers = spec.num_layers * spec.num_directions
    return FLOAT_BYTES * layers * (spec.state_size + spec.hidden_size)


def predict_bytes(model: Model, job: PredictJob, height: int) -> int:
    """Bytes of a job's input and of its reply, whose y has `height` rows."""
    spec, states = model.spec, 2 - (job.h0 is None) - (not job.with_state)
    return (
        job.x.nbytes + height * output_bytes(spec) + states * job.lengths.size * state_bytes(spec)
    )


def row_bytes(spec: ModelSpec) -> int:
    """The fewest bytes that one row of input takes on the wire; a token takes at least one."""
    return 1 if spec.num_embeddings else FLOAT_BYTES * spec.input_size
