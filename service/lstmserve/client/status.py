"""Turns gRPC's errors into exceptions: a google.rpc.Status in a trailer or in a streamed reply."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import RpcError, StatusCode

from lstmserve.client.protocol import Response
from lstmserve.errors import (
    BadToken,
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    LstmServeError,
    ModelMismatch,
    ModelNotFound,
    ModelNotSteppable,
    Overloaded,
    PredecessorFailed,
    Quota,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionLost,
    SessionNotFound,
    SessionReplaced,
    StateRolledBack,
    StepConflict,
    StepsLost,
    Unavailable,
    Unimplemented,
)
from lstmserve.reasons import DOMAIN
from lstmserve.wire.v1 import lstm_pb2 as wire

_STATUS_KEY = "grpc-status-details-bin"
_CODES: dict[int, StatusCode] = {code.value[0]: code for code in StatusCode}
_BY_REASON: dict[str, type[LstmServeError]] = {
    "SESSION_NOT_FOUND": SessionNotFound,
    "SESSION_EXPIRED": SessionExpired,
    "SESSION_LOST": SessionLost,
    "SESSION_CLOSED": SessionClosed,
    "SESSION_REPLACED": SessionReplaced,
    "SESSION_EXISTS": SessionExists,
    "SESSION_LIMIT": Overloaded,
    "OVERLOADED": Overloaded,
    "PENDING_BYTES": Overloaded,
    "MODEL_NOT_FOUND": ModelNotFound,
    "MODEL_RETIRED": ModelNotFound,
    "MODEL_MISMATCH": ModelMismatch,
    "MODEL_NOT_STEPPABLE": ModelNotSteppable,
    "PREDECESSOR_FAILED": PredecessorFailed,
    "QUOTA": Quota,
    "BAD_TOKEN": BadToken,
    "STATE_ROLLED_BACK": StateRolledBack,
    "STEP_GAP": StepsLost,
    "STEP_SUPERSEDED": StepConflict,
    "STEP_PAYLOAD_MISMATCH": StepConflict,
}
_BY_CODE: dict[StatusCode, type[LstmServeError]] = {
    StatusCode.INVALID_ARGUMENT: InvalidInput,
    StatusCode.UNAVAILABLE: Unavailable,
    StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    StatusCode.CANCELLED: Cancelled,
    StatusCode.UNIMPLEMENTED: Unimplemented,
}


def from_status(status: status_pb2.Status) -> LstmServeError:
    """The exception for a google.rpc.Status."""
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    retry_delay_s = None
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Unpack(retry):
            retry_delay_s = retry.retry_delay.ToTimedelta().total_seconds()
    code = _CODES.get(status.code, StatusCode.UNKNOWN)
    reason = info.reason if info.domain == DOMAIN else ""
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, LstmServeError)
    return kind(
        status.message or code.name,
        code=code,
        reason=reason,
        metadata=info.metadata,
        retry_delay_s=retry_delay_s,
    )


def in_band(reply: Response | LstmServeError) -> Response:
    """The streamed reply. Raises the error that it carries, or is."""
    if isinstance(reply, LstmServeError):
        raise reply
    assert isinstance(reply, wire.StepResponse | wire.StepManyResponse)
    if reply.HasField("error"):
        raise from_status(reply.error)
    return reply


def closed() -> LstmServeError:
    """The caller closed the client or the stream."""
    return Cancelled("the client was closed", code=StatusCode.CANCELLED)


def ended() -> LstmServeError:
    """The server ended a stream that the client still needs."""
    return Unavailable("the server ended the stream", code=StatusCode.UNAVAILABLE)


def steps_lost(expected_step: int) -> LstmServeError:
    """The server no longer has a step that it had answered."""
    return StepsLost(
        f"the server expects step {expected_step}, which it had answered before",
        code=StatusCode.OUT_OF_RANGE,
        reason="STEP_GAP",
        metadata={"expected_step": str(expected_step)},
    )


def late(applied: bool | None = None) -> LstmServeError:
    """No streamed reply came in time, or the call never got the session's lock."""
    error = DeadlineExceeded("no reply in time", code=StatusCode.DEADLINE_EXCEEDED)
    error.applied = applied
    return error


def from_rpc(error: RpcError) -> LstmServeError:
    """The exception for a failed call: from its Status if it has one, else from its code."""
    trailers: Any = error.trailing_metadata() or ()  # grpc's stubs do not say that it is pairs
    for key, value in trailers:
        if key == _STATUS_KEY:
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break  # a proxy's, or garbage: only the code can be used
    details = " ".join((error.details() or "").split())
    return from_status(status_pb2.Status(code=error.code().value[0], message=details))
