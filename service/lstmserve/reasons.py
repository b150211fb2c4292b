"""The table of error reasons: each with its gRPC code, and whether a step was applied.

It repeats proto/lstmserve/v1/error_reason.proto, and a test compares the two. It imports only
grpc's codes, so that server and client can share it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from grpc import StatusCode

DOMAIN: Final = "lstmserve"


class Reason(NamedTuple):
    """A reason of google.rpc.ErrorInfo.

    `applied` is False if nothing happened, True if the step's number was applied, None if unknown.
    """

    code: StatusCode
    applied: bool | None


_NOTHING_APPLIED: Final = {
    StatusCode.INVALID_ARGUMENT: (
        "BAD_TENSOR EMPTY_INPUT NON_FINITE TOO_LONG MALFORMED BAD_SESSION_ID BAD_STEP "
        "DUPLICATE_SESSION MIXED_MODELS POISON"
    ),
    StatusCode.NOT_FOUND: "SESSION_NOT_FOUND SESSION_EXPIRED SESSION_LOST MODEL_NOT_FOUND",
    StatusCode.FAILED_PRECONDITION: (
        "SESSION_CLOSED SESSION_REPLACED MODEL_RETIRED MODEL_MISMATCH MODEL_NOT_STEPPABLE "
        "STATE_ROLLED_BACK"
    ),
    StatusCode.ALREADY_EXISTS: "SESSION_EXISTS",
    StatusCode.OUT_OF_RANGE: "STEP_GAP",
    StatusCode.INTERNAL: "MODEL_ERROR",
    StatusCode.DATA_LOSS: "STATE_CORRUPT",
    StatusCode.RESOURCE_EXHAUSTED: "SESSION_LIMIT OVERLOADED QUOTA STORE_FULL PENDING_BYTES",
    StatusCode.UNAVAILABLE: "STORE_UNAVAILABLE DRAINING MODEL_NOT_HERE_YET",
    StatusCode.DEADLINE_EXCEEDED: "DEADLINE",
    StatusCode.UNAUTHENTICATED: "BAD_TOKEN",
    StatusCode.PERMISSION_DENIED: "ADMIN_ONLY",
    StatusCode.ABORTED: "PREDECESSOR_FAILED",
    StatusCode.UNIMPLEMENTED: "NOT_IMPLEMENTED",
    StatusCode.CANCELLED: "CANCELLED",
}

REASONS: Final[dict[str, Reason]] = {
    **{
        name: Reason(code, applied=False)
        for code, names in _NOTHING_APPLIED.items()
        for name in names.split()
    },
    "STEP_PAYLOAD_MISMATCH": Reason(StatusCode.ALREADY_EXISTS, applied=True),
    "STEP_SUPERSEDED": Reason(StatusCode.ALREADY_EXISTS, applied=True),
    "FENCED": Reason(StatusCode.UNAVAILABLE, applied=None),
    "STORE_TIMEOUT": Reason(StatusCode.UNAVAILABLE, applied=None),
    "INTERNAL": Reason(StatusCode.INTERNAL, applied=None),
}
