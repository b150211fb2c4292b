"""Owns the domain errors: what a client, a model or the machine can cause. Knows no transport.

One class per reason of error_reason.proto; reasons.py has their codes and what was applied.
"""

from __future__ import annotations

from typing import ClassVar


class ServeError(Exception):
    """A refusal or failure with its reason. The message is for the client: no path, no other id.

    `metadata` are the reason's facts (error_reason.proto); `field` names the request's field at
    fault; `retry_s` is how long to wait before a retry helps, None where none does.
    """

    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        metadata: dict[str, str] | None = None,
        field: str | None = None,
        retry_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata or {}
        self.field = field
        self.retry_s = retry_s


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


class ModelMismatch(ServeError):
    """A state or session of another model."""

    reason = "MODEL_MISMATCH"


class ModelNotSteppable(ServeError):
    """A bidirectional model: it reads whole sequences, by Predict."""

    reason = "MODEL_NOT_STEPPABLE"


class ModelError(ServeError):
    """onnxruntime failed on this row."""

    reason = "MODEL_ERROR"


class StateCorrupt(ServeError):
    """A state that fails its checksum."""

    reason = "STATE_CORRUPT"


class SessionLimit(ServeError):
    """No room for another session."""

    reason = "SESSION_LIMIT"


class Overloaded(ServeError):
    """The queue is full."""

    reason = "OVERLOADED"


class StoreUnavailable(ServeError):
    """The store did not answer; the step was not applied."""

    reason = "STORE_UNAVAILABLE"


class Draining(ServeError):
    """This server is shutting down."""

    reason = "DRAINING"


class DeadlineExpired(ServeError):
    """The deadline passed before the step was computed."""

    reason = "DEADLINE"


class PredecessorFailed(ServeError):
    """An earlier step of the session was not applied, so this one was not."""

    reason = "PREDECESSOR_FAILED"


class NotImplementedYet(ServeError):
    """A field or call that this release does not serve."""

    reason = "NOT_IMPLEMENTED"


class Cancelled(ServeError):
    """The caller went away before the step was computed."""

    reason = "CANCELLED"
