"""What a store cannot do now. The engine passes these on to its caller."""

from lstmserve.refusal import ServeError


class StoreFull(ServeError):
    """The store takes no more."""

    reason = "STORE_FULL"


class _StoreAway(ServeError):
    """`cause` tells the operator why, in plain words and without a secret; clients do not see it.

    `is_final`: only a restart of this process can help.
    """

    def __init__(
        self,
        message: str,
        *,
        cause: str = "",
        is_final: bool = False,
        metadata: dict[str, str] | None = None,
        retry_s: float | None = None,
    ) -> None:
        super().__init__(message, metadata=metadata, retry_s=retry_s)
        self.cause = cause
        self.is_final = is_final


class StoreUnavailable(_StoreAway):
    """The store did not answer; the step was not applied."""

    reason = "STORE_UNAVAILABLE"


class StoreTimeout(_StoreAway):
    """The store's answer was lost; whether the step was applied is unknown."""

    reason = "STORE_TIMEOUT"
