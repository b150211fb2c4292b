"""The domain errors that say what is wrong with a request, whatever the server's state."""

from lstmserve.errors.base import ServeError


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
