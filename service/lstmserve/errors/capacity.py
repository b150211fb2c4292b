"""The domain errors that say what the server or its store cannot do now."""

from lstmserve.errors.base import ServeError


class SessionLimit(ServeError):
    """No room for another session."""

    reason = "SESSION_LIMIT"


class Overloaded(ServeError):
    """The queue is full."""

    reason = "OVERLOADED"


class Quota(ServeError):
    """The tenant's limit."""

    reason = "QUOTA"


class StoreFull(ServeError):
    """The store takes no more."""

    reason = "STORE_FULL"


class StoreUnavailable(ServeError):
    """The store did not answer; the step was not applied."""

    reason = "STORE_UNAVAILABLE"


class StoreTimeout(ServeError):
    """The store's answer was lost; whether the step was applied is unknown."""

    reason = "STORE_TIMEOUT"


class Fenced(ServeError):
    """Another server owns the session now."""

    reason = "FENCED"


class Draining(ServeError):
    """This server is shutting down."""

    reason = "DRAINING"
