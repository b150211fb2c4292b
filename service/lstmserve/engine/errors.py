"""The domain errors: what a client, a model or the machine can cause. Knows no transport.

One class per reason of proto/lstmserve/v1/error_reason.proto; lstmserve/reasons.py has their gRPC
codes, lstmserve/errors.py the exceptions that the client library makes of them.
"""

from lstmserve.refusal import ServeError
from lstmserve.store.store import StoreFull, StoreTimeout, StoreUnavailable

__all__ = [
    "NOT_SERVED",
    "AdminOnly",
    "BadSessionId",
    "BadStep",
    "BadTensor",
    "BadToken",
    "Cancelled",
    "DeadlineExpired",
    "Draining",
    "DuplicateSession",
    "EmptyInput",
    "Fenced",
    "Malformed",
    "MixedModels",
    "ModelError",
    "ModelMismatch",
    "ModelNotFound",
    "ModelNotHereYet",
    "ModelNotSteppable",
    "ModelRetired",
    "NonFinite",
    "NotImplementedYet",
    "Overloaded",
    "PendingBytes",
    "PredecessorFailed",
    "Quota",
    "ServeError",
    "SessionClosed",
    "SessionExists",
    "SessionExpired",
    "SessionLimit",
    "SessionLost",
    "SessionNotFound",
    "SessionReplaced",
    "StateCorrupt",
    "StateRolledBack",
    "StepGap",
    "StepPayloadMismatch",
    "StepSuperseded",
    "StoreFull",
    "StoreTimeout",
    "StoreUnavailable",
    "TooLong",
]


# What is wrong with a request, whatever the server's state.
class BadTensor(ServeError):
    """Wrong size, x where tokens are due, or a token out of range."""

    reason = "BAD_TENSOR"


class EmptyInput(ServeError):
    """No rows at all."""

    reason = "EMPTY_INPUT"


class NonFinite(ServeError):
    """NaN or infinity in an input or a state."""

    reason = "NON_FINITE"


class TooLong(ServeError):
    """More time steps than length_max."""

    reason = "TOO_LONG"


class Malformed(ServeError):
    """Not a message of the contract, or a field outside its range."""

    reason = "MALFORMED"


class BadSessionId(ServeError):
    """An id that no session can have."""

    reason = "BAD_SESSION_ID"


class BadStep(ServeError):
    """A step number below 1, or one without its incarnation."""

    reason = "BAD_STEP"


class DuplicateSession(ServeError):
    """One session twice in a StepMany message."""

    reason = "DUPLICATE_SESSION"


class MixedModels(ServeError):
    """Sessions of two models in a StepMany message."""

    reason = "MIXED_MODELS"


class NotImplementedYet(ServeError):
    """A field or call that this release does not serve."""

    reason = "NOT_IMPLEMENTED"


class BadToken(ServeError):
    """No token, or none that is known."""

    reason = "BAD_TOKEN"


class AdminOnly(ServeError):
    """A call that only an administrator may make."""

    reason = "ADMIN_ONLY"


# What stands between a request and its session or model.
class SessionNotFound(ServeError):
    """Never opened here, or someone else's."""

    reason = "SESSION_NOT_FOUND"


class SessionExpired(ServeError):
    """Idle for longer than its TTL."""

    reason = "SESSION_EXPIRED"


class SessionLost(ServeError):
    """Had an incarnation and is gone: this server restarted, or another one held it."""

    reason = "SESSION_LOST"


class SessionClosed(ServeError):
    """Closed by its client."""

    reason = "SESSION_CLOSED"


class SessionReplaced(ServeError):
    """The id lives on with another incarnation."""

    reason = "SESSION_REPLACED"


class SessionExists(ServeError):
    """The id is taken."""

    reason = "SESSION_EXISTS"


class ModelNotFound(ServeError):
    """No such model or version is served."""

    reason = "MODEL_NOT_FOUND"


class ModelRetired(ServeError):
    """The session's version is no longer served."""

    reason = "MODEL_RETIRED"


class ModelNotHereYet(ServeError):
    """A newer version than any that is served here: a rolling update has not come this far."""

    reason = "MODEL_NOT_HERE_YET"


class ModelMismatch(ServeError):
    """A state or session of another model."""

    reason = "MODEL_MISMATCH"


class ModelNotSteppable(ServeError):
    """A bidirectional model: it reads whole sequences, by Predict."""

    reason = "MODEL_NOT_STEPPABLE"


# A stored session cannot come here for one of these; it may still be looked at, and ended.
NOT_SERVED = (ModelRetired, ModelNotHereYet, ModelMismatch)


class StateRolledBack(ServeError):
    """Steps that were answered may have been taken back; an unnumbered step cannot tell."""

    reason = "STATE_ROLLED_BACK"


class StateCorrupt(ServeError):
    """A state that fails its checksum."""

    reason = "STATE_CORRUPT"


# What became of a step that is not answered with its y.
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


# What the server cannot do now.
class SessionLimit(ServeError):
    """No room for another session."""

    reason = "SESSION_LIMIT"


class Overloaded(ServeError):
    """The queue is full."""

    reason = "OVERLOADED"


class PendingBytes(ServeError):
    """Messages that wait take as many bytes as they may."""

    reason = "PENDING_BYTES"


class Quota(ServeError):
    """The tenant's limit."""

    reason = "QUOTA"


class Fenced(ServeError):
    """Another server owns the session now."""

    reason = "FENCED"


class Draining(ServeError):
    """This server is shutting down."""

    reason = "DRAINING"
