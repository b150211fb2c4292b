"""Turns errors into google.rpc.Status and the arguments of an abort. Decides nothing.

The text of an internal error never leaves the server.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import structlog
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from lstmserve.engine.errors import ModelError, ServeError
from lstmserve.reasons import DOMAIN, REASONS

DETAILS = "grpc-status-details-bin"
PUSHBACK = "grpc-retry-pushback-ms"
DO_NOT_RETRY = "-1"

log = structlog.get_logger()

Trailers = tuple[tuple[str, str | bytes], ...]


class Abort(NamedTuple):
    """How a call ends: its status, and the trailing metadata that say more."""

    code: StatusCode
    details: str
    trailers: Trailers


def to_status(error: BaseException, **facts: str) -> Status:
    """The google.rpc.Status of a domain error; INTERNAL with a fixed text for any other.

    Call it once per error: it logs bugs and failing models, with `facts`.
    """
    if not isinstance(error, ServeError):
        log.error("internal error", exc_info=error, **facts)
        error = ServeError("internal error; the server's log has more")
    elif isinstance(error, ModelError):
        log.error("model error", exc_info=error.__cause__, **facts)
    status = Status(code=code(error).value[0], message=error.message)
    info = ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    status.details.add().Pack(info)
    if error.field is not None:
        violation = BadRequest.FieldViolation(field=error.field, description=error.message)
        status.details.add().Pack(BadRequest(field_violations=[violation]))
    if error.retry_s is not None:
        delay = Duration()
        delay.FromMilliseconds(_milliseconds(error.retry_s))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    return status


def status_key(error: ServeError) -> Hashable:
    """Equal for errors with equal to_status(), but unique for each failure of a model."""
    if isinstance(error, ModelError):
        return id(error)
    metadata = tuple(error.metadata.items())
    return type(error), error.message, error.field, error.retry_s, metadata


def code(error: BaseException) -> StatusCode:
    """The gRPC code alone, for metrics."""
    return REASONS[reason(error)].code


def reason(error: BaseException) -> str:
    """The reason alone, for metrics."""
    return error.reason if isinstance(error, ServeError) else ServeError.reason


def to_abort(error: BaseException, **facts: str) -> Abort:
    """The abort that ends a call with this error. It logs as to_status() does."""
    status = to_status(error, **facts)
    trailers: Trailers = ((DETAILS, status.SerializeToString()),)
    if isinstance(error, ServeError) and error.retry_s is not None:
        trailers += ((PUSHBACK, str(_milliseconds(error.retry_s))),)
    elif code(error) is StatusCode.RESOURCE_EXHAUSTED:
        trailers += ((PUSHBACK, DO_NOT_RETRY),)
    return Abort(code(error), status.message, trailers)


def _milliseconds(seconds: float) -> int:
    return max(0, round(1000 * seconds))
