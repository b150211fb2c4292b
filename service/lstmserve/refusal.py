"""The base of the errors of engine and stores, which share no other module. Knows no transport."""

from __future__ import annotations

from typing import ClassVar


class ServeError(Exception):
    """A refusal or failure with its reason. The message goes to the client: no path, no other id.

    `metadata` are the reason's facts (error_reason.proto); `field` names the request's field at
    fault; `retry_s` is the time to wait before a retry can help, None if none helps.
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
