"""The domain errors that say what became of a step that is not answered with its y."""

from lstmserve.errors.base import ServeError


class StepPayloadMismatch(ServeError):
    """The number of an applied step with another input."""

    reason = "STEP_PAYLOAD_MISMATCH"


class StepSuperseded(ServeError):
    """An applied step whose reply is no longer held."""

    reason = "STEP_SUPERSEDED"


class StepGap(ServeError):
    """A step number above the next one."""

    reason = "STEP_GAP"


class PredecessorFailed(ServeError):
    """An earlier step of the session was not applied, so this one was not."""

    reason = "PREDECESSOR_FAILED"


class DeadlineExpired(ServeError):
    """The deadline passed before the step was computed."""

    reason = "DEADLINE"


class Cancelled(ServeError):
    """The caller went away before the step was computed."""

    reason = "CANCELLED"


class ModelError(ServeError):
    """onnxruntime failed on this row."""

    reason = "MODEL_ERROR"
