"""How tests read an error on the wire, in trailers or in band, and what must not be in it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import grpc.aio
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

FOREIGN = "somebody-elses"  # an id that no refusal may name


class Refusal(NamedTuple):
    """An error as its client sees it; `fields` are BadRequest's."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: dict[str, str]
    fields: list[str]
    retry_s: float | None
    pushback: str | None


def refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """What an error of a call says."""
    trailers = dict(error.trailing_metadata() or ())
    content = trailers.get("grpc-status-details-bin", b"")
    status = Status.FromString(content if isinstance(content, bytes) else content.encode())
    pushback = trailers.get("grpc-retry-pushback-ms")
    said = in_band(status, error.code(), None if pushback is None else str(pushback))
    assert said.message == error.details()
    assert status.code in (0, error.code().value[0])
    return said


def in_band(
    status: Status, code: grpc.StatusCode | None = None, pushback: str | None = None
) -> Refusal:
    """What a Status says; `code` if it is known from another place."""
    info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
    for detail in status.details:
        for kind in (info, bad, retry):
            detail.Unpack(kind)
    assert info.domain == "lstmserve"
    codes = {each.value[0]: each for each in grpc.StatusCode}
    has_retry = any(detail.Is(RetryInfo.DESCRIPTOR) for detail in status.details)
    return Refusal(
        code or codes[status.code],
        info.reason,
        status.message,
        dict(info.metadata),
        [violation.field for violation in bad.field_violations],
        retry.retry_delay.ToMilliseconds() / 1000 if has_retry else None,
        pushback,
    )


def leaks(said: Refusal, folder: Path) -> None:
    """Asserts that a refusal is short and shows nothing of the server's inside."""
    text = f"{said.message} {said.metadata}"
    assert len(text) < 500
    for secret in (str(folder), FOREIGN, "Traceback", 'File "', ".py", " at 0x"):
        assert secret not in text
