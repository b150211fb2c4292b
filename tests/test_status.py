"""Errors on the wire: Status, details, trailers."""

from __future__ import annotations

import grpc
import pytest
import structlog.testing
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from lstmserve.engine import errors
from lstmserve.reasons import REASONS
from lstmserve.server.status import DETAILS, PUSHBACK, code, to_abort, to_status

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and c is not errors.ServeError]


def details(status: Status, kind: type) -> list[object]:
    """The status' details of one message type."""
    found = []
    for detail in status.details:
        message = kind()
        if detail.Unpack(message):
            found.append(message)
    return found


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_domain_error_has_its_status(kind: type[errors.ServeError]) -> None:
    """Every domain error becomes a Status with its code, message and ErrorInfo."""
    status = to_status(kind("what went wrong", metadata={"fact": "3"}))
    assert status.code == REASONS[kind.reason].code.value[0]
    assert status.message == "what went wrong"
    assert details(status, ErrorInfo) == [
        ErrorInfo(reason=kind.reason, domain="lstmserve", metadata={"fact": "3"})
    ]
    assert len(status.details) == 1


def test_field_and_retry_become_details() -> None:
    """A field becomes a BadRequest violation, a retry delay a RetryInfo."""
    status = to_status(errors.BadTensor("7 values", field="x"))
    (bad_request,) = details(status, BadRequest)
    assert [(v.field, v.description) for v in bad_request.field_violations] == [("x", "7 values")]
    (retry,) = details(to_status(errors.Overloaded("full", retry_s=0.25)), RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 250


def test_abort_carries_status_and_pushback() -> None:
    """A unary abort carries the serialised Status, and the delay that gRPC's own retry obeys."""
    error = errors.Overloaded("full", retry_s=0.4)
    abort = to_abort(error)
    trailers = dict(abort.trailers)
    assert abort.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert abort.details == "full"
    assert Status.FromString(trailers[DETAILS]) == to_status(error)
    assert trailers[PUSHBACK] == "400"


def test_pushback_forbids_a_retry_that_cannot_help() -> None:
    """RESOURCE_EXHAUSTED without a delay says do not retry; other codes say nothing."""
    assert dict(to_abort(errors.Overloaded("full")).trailers)[PUSHBACK] == "-1"
    assert PUSHBACK not in dict(to_abort(errors.Draining("bye")).trailers)


def test_a_bug_leaks_no_text_and_is_logged_once() -> None:
    """Any other exception is INTERNAL without its text, and is logged once."""
    secret = ValueError("secret path /etc/lstm")
    with structlog.testing.capture_logs() as lines:
        abort = to_abort(secret, method="Step")
    assert abort.code is code(secret) is grpc.StatusCode.INTERNAL
    status = Status.FromString(dict(abort.trailers)[DETAILS])
    assert details(status, ErrorInfo) == [ErrorInfo(reason="INTERNAL", domain="lstmserve")]
    assert b"secret" not in status.SerializeToString()
    assert "secret" not in abort.details
    assert [(line["exc_info"], line["method"]) for line in lines] == [(secret, "Step")]


def test_a_failing_model_is_logged_with_its_cause() -> None:
    """For MODEL_ERROR the log has the runtime's message, and the client does not."""
    cause = RuntimeError("LSTM node, bad allocation")
    error = errors.ModelError("the model failed on this step")
    error.__cause__ = cause
    with structlog.testing.capture_logs() as lines:
        status = to_status(error)
    assert [line["exc_info"] for line in lines] == [cause]
    assert "allocation" not in str(status)


def test_a_client_s_fault_is_not_logged() -> None:
    """Errors that clients cause are counted, not logged."""
    with structlog.testing.capture_logs() as lines:
        to_status(errors.BadTensor("7 values", field="x"))
    assert lines == []
