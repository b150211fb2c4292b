"""What an error on the wire becomes for a caller: class, code, reason, applied, delay."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from lstmserve import client
from lstmserve.client import LstmServeError, StepManyFailed
from lstmserve.client.status import from_rpc, from_status, in_band
from lstmserve.reasons import REASONS
from lstmserve.wire.v1 import lstm_pb2 as wire

OF_REASON = {
    "SESSION_NOT_FOUND": client.SessionNotFound,
    "SESSION_EXPIRED": client.SessionExpired,
    "SESSION_LOST": client.SessionLost,
    "SESSION_CLOSED": client.SessionClosed,
    "SESSION_REPLACED": client.SessionReplaced,
    "SESSION_EXISTS": client.SessionExists,
    "SESSION_LIMIT": client.Overloaded,
    "OVERLOADED": client.Overloaded,
    "MODEL_NOT_FOUND": client.ModelNotFound,
    "MODEL_RETIRED": client.ModelNotFound,
    "MODEL_MISMATCH": client.ModelMismatch,
    "MODEL_NOT_STEPPABLE": client.ModelNotSteppable,
    "PREDECESSOR_FAILED": client.PredecessorFailed,
    "QUOTA": client.Quota,
    "BAD_TOKEN": client.BadToken,
    "STEP_GAP": client.StepsLost,
    "STEP_SUPERSEDED": client.StepConflict,
    "STEP_PAYLOAD_MISMATCH": client.StepConflict,
    "NON_FINITE": client.InvalidInput,
    "DRAINING": client.Unavailable,
    "DEADLINE": client.DeadlineExceeded,
    "CANCELLED": client.Cancelled,
    "NOT_IMPLEMENTED": client.Unimplemented,
    "INTERNAL": LstmServeError,
}


def status(reason: str, domain: str = "lstmserve") -> status_pb2.Status:
    """A status as the server makes it, with a delay of 0.25 s."""
    made = status_pb2.Status(code=REASONS[reason].code.value[0], message="why")
    info = error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata={"last_step": "7"})
    made.details.add().Pack(info)
    made.details.add().Pack(error_details_pb2.BadRequest())
    made.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=Duration(nanos=250_000_000)))
    return made


class Failed(grpc.RpcError):
    """A failed call, as far as its reading goes."""

    def __init__(self, code: grpc.StatusCode, trailers: tuple[tuple[str, bytes], ...]) -> None:
        self.code = lambda: code
        self.details = lambda: "two\nlines"
        self.trailing_metadata = lambda: trailers


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_is_told(reason: str) -> None:
    """Code, reason, facts, delay and applied are the contract's, in trailers and in band."""
    trailers = (("x", b""), ("grpc-status-details-bin", status(reason).SerializeToString()))
    for error in (from_status(status(reason)), from_rpc(Failed(REASONS[reason].code, trailers))):
        assert (error.code, error.applied) == REASONS[reason]
        assert (error.reason, error.retry_delay_s) == (reason, 0.25)
        assert error.metadata == {"last_step": "7"}
        assert error.message == "why"
        assert str(error) == f"why{'; ' * bool(error.advice)}{error.advice} ({reason})"


@pytest.mark.parametrize("reason", OF_REASON)
def test_what_a_caller_handles_has_a_class(reason: str) -> None:
    """Each of these reasons has the class of its name, or of its code."""
    assert type(from_status(status(reason))) is OF_REASON[reason]


@pytest.mark.parametrize("trailers", [(), (("grpc-status-details-bin", b"\xff"),)])
def test_without_a_status_the_code_speaks(trailers: tuple[tuple[str, bytes], ...]) -> None:
    """A proxy's error, or one with garbage for details, is known by its code, in one line."""
    error = from_rpc(Failed(grpc.StatusCode.UNAVAILABLE, trailers))
    assert type(error) is client.Unavailable
    assert (error.reason, error.applied, error.retry_delay_s) == ("", None, None)
    assert str(error) == "two lines (UNAVAILABLE)"


def test_another_domain_is_not_ours() -> None:
    """A reason of another service is not taken for one of the contract."""
    error = from_status(status("SESSION_LOST", domain="envoy"))
    assert type(error) is LstmServeError
    assert (error.reason, error.applied) == ("", None)


def test_in_band_errors_raise_and_replies_pass() -> None:
    """A streamed reply passes, one with an error raises it."""
    reply = wire.StepResponse(step=3)
    assert in_band(reply) is reply
    reply.error.CopyFrom(status("SESSION_LOST"))
    with pytest.raises(client.SessionLost):
        in_band(reply)


def test_step_many_says_applied_only_where_all_agree() -> None:
    """If one of two errors leaves it unknown whether its step was applied, so does
    StepManyFailed."""
    lost, unknown = from_status(status("SESSION_LOST")), from_status(status("FENCED"))
    assert StepManyFailed({}, {"a": lost, "b": lost}).applied is False
    assert StepManyFailed({}, {"a": lost, "b": unknown}).applied is None
