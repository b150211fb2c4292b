"""What a store cannot do now. The engine passes these on to its caller."""

from lstmserve.refusal import ServeError


class StoreFull(ServeError):
    """The store takes no more."""

    reason = "STORE_FULL"


class StoreUnavailable(ServeError):
    """The store did not answer; the step was not applied."""

    reason = "STORE_UNAVAILABLE"


class StoreTimeout(ServeError):
    """The store's answer was lost; whether the step was applied is unknown."""

    reason = "STORE_TIMEOUT"
