"""Predicts how many bytes a message takes with its input and its reply, before it is parsed.

It reads no message: it knows the models' sizes and the configured limits. Input counts for each of
the rows that a network reads for it, which are many for a model with a window.
"""

from __future__ import annotations

from lstmserve.config import MESSAGE_BYTES_LIMIT, Config
from lstmserve.engine import Model
from lstmserve.engine.predict import PredictJob
from lstmserve.engine.registry import ModelRegistry


class MessageSizes:
    """Sizes of one dialect's messages. With `has_states` a reply may contain states as well.

    They follow the models that are served at that moment.
    """

    def __init__(self, models: ModelRegistry, config: Config, *, has_states: bool) -> None:
        self._message_bytes_max = config.message_bytes_max or MESSAGE_BYTES_LIMIT
        self._models = models
        self._has_states = has_states
        self._changes = -1  # of the models that the next three are of
        self._reply_row_bytes = 0
        self._reply_factor = 0
        self._cells = 1  # the most rows that a network reads for one

    @property
    def reply_row_bytes(self) -> int:
        """The largest row of a reply."""
        if self._changes != self._models.changes:
            self._measure()
        return self._reply_row_bytes

    def bound(self, message_bytes: int) -> int:
        """The most that a message of `message_bytes` can take, whatever it contains."""
        least = self.reply_row_bytes
        reply = min(message_bytes * self._reply_factor, self._message_bytes_max)
        return message_bytes * self._cells + max(reply, least)

    def of(self, message_bytes: int, height: int, model: Model | None) -> int:
        """The most for a message whose reply has `height` rows of a model; None: of any model."""
        least = self.reply_row_bytes
        row = least if model is None else model.outputs.wire_bytes
        cells = self._cells if model is None else model.spec.cells
        reply = min(max(1, height) * row, self._message_bytes_max)
        return message_bytes * cells + max(reply, least)

    def _measure(self) -> None:
        self._changes = self._models.changes
        factors = [0]
        for model in self._models:
            reply = model.outputs.wire_bytes + (state_bytes(model) if self._has_states else 0)
            factors.append(-(-reply // row_bytes(model)))
        self._reply_factor = max(factors)
        self._cells = max((model.spec.cells for model in self._models), default=1)
        self._reply_row_bytes = max((model.outputs.wire_bytes for model in self._models), default=0)


def predict_bytes(model: Model, job: PredictJob, height: int) -> int:
    """Bytes of a job's input and of its reply, whose y has `height` rows."""
    states = 2 - (job.initial is None) - (not job.with_state)
    own_bytes = states * job.lengths.size * state_bytes(model)
    return job.x.nbytes * model.spec.cells + height * model.outputs.wire_bytes + own_bytes


def state_bytes(model: Model) -> int:
    """The most bytes of the states of one session or sequence in a message."""
    return sum(state.wire_bytes for state in model.spec.states)


def row_bytes(model: Model) -> int:
    """The fewest bytes that one row of input takes on the wire; a token takes at least one."""
    return 4 * model.inputs.floats + model.inputs.ints
