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
    "PendingBytesFull",
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
    """An input has a wrong size, x instead of tokens or the reverse, or a token out of range."""

    reason = "BAD_TENSOR"


class EmptyInput(ServeError):
    """An input has no rows."""

    reason = "EMPTY_INPUT"


class NonFinite(ServeError):
    """NaN or infinity in an input or a state."""

    reason = "NON_FINITE"


class TooLong(ServeError):
    """A step or sequence has more time steps than length_max."""

    reason = "TOO_LONG"


class Malformed(ServeError):
    """The bytes are no message of the contract, or a field is outside its range."""

    reason = "MALFORMED"


class BadSessionId(ServeError):
    """An id that no session can have."""

    reason = "BAD_SESSION_ID"


class BadStep(ServeError):
    """A step number is below 1, or comes without an incarnation."""

    reason = "BAD_STEP"


class DuplicateSession(ServeError):
    """A StepMany message names a session twice."""

    reason = "DUPLICATE_SESSION"


class MixedModels(ServeError):
    """A StepMany message has sessions of two models."""

    reason = "MIXED_MODELS"


class NotImplementedYet(ServeError):
    """A field or call that this release does not serve."""

    reason = "NOT_IMPLEMENTED"


class BadToken(ServeError):
    """The call has no token, or one that the server does not know."""

    reason = "BAD_TOKEN"


class AdminOnly(ServeError):
    """A call that only an administrator may make."""

    reason = "ADMIN_ONLY"


# What stands between a request and its session or model.
class SessionNotFound(ServeError):
    """The session was never opened here, or belongs to another tenant."""

    reason = "SESSION_NOT_FOUND"


class SessionExpired(ServeError):
    """The session was idle for longer than its TTL."""

    reason = "SESSION_EXPIRED"


class SessionLost(ServeError):
    """The session had an incarnation and is gone: this server restarted, or another one had it."""

    reason = "SESSION_LOST"


class SessionClosed(ServeError):
    """A client closed the session."""

    reason = "SESSION_CLOSED"


class SessionReplaced(ServeError):
    """The id belongs to a later incarnation now."""

    reason = "SESSION_REPLACED"


class SessionExists(ServeError):
    """The id is taken."""

    reason = "SESSION_EXISTS"


class ModelNotFound(ServeError):
    """The server has no such model or version."""

    reason = "MODEL_NOT_FOUND"


class ModelRetired(ServeError):
    """The session's version is no longer served."""

    reason = "MODEL_RETIRED"


class ModelNotHereYet(ServeError):
    """The version is newer than any here: a rolling update has not reached this server."""

    reason = "MODEL_NOT_HERE_YET"


class ModelMismatch(ServeError):
    """A state or session belongs to another model."""

    reason = "MODEL_MISMATCH"


class ModelNotSteppable(ServeError):
    """The model is bidirectional, or has no states: only Predict can run it, on whole sequences."""

    reason = "MODEL_NOT_STEPPABLE"


# With one of these a stored session cannot be loaded here; it can still be read and closed.
NOT_SERVED = (ModelRetired, ModelNotHereYet, ModelMismatch)


class StateRolledBack(ServeError):
    """Acknowledged steps may be lost, and a step without a number cannot detect that."""

    reason = "STATE_ROLLED_BACK"


class StateCorrupt(ServeError):
    """A state fails its checksum."""

    reason = "STATE_CORRUPT"


# What happened to a step that gets no y.
class StepPayloadMismatch(ServeError):
    """The step's number was applied with another input."""

    reason = "STEP_PAYLOAD_MISMATCH"


class StepSuperseded(ServeError):
    """The step was applied, and its reply is no longer kept."""

    reason = "STEP_SUPERSEDED"


class StepGap(ServeError):
    """The step's number is above the next one."""

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


class PendingBytesFull(ServeError):
    """Waiting messages take as many bytes as they may."""

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
