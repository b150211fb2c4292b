"""When a call is tried again; the test sets the clock and the random numbers."""

from __future__ import annotations

import math

import pytest
from grpc import StatusCode

from lstmserve.client import LstmServeError, Unavailable
from lstmserve.client.retries import BACKOFF_S, BACKOFF_S_MAX, RetryPolicy, is_transient
from lstmserve.reasons import REASONS


class Clock:
    """A clock that stands still unless the test moves it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def known(retry_s_max: float, clock: Clock | None = None, uniform: float = 1.0) -> RetryPolicy:
    """The policy of a client whose server has answered before."""
    policy = RetryPolicy(1.0, retry_s_max, clock or Clock(), lambda: uniform)
    policy.was_reached = True
    return policy


def unavailable(retry_delay_s: float | None = None) -> LstmServeError:
    """An error of a server that is shutting down."""
    return Unavailable("why", code=StatusCode.UNAVAILABLE, retry_delay_s=retry_delay_s)


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("retry_delay_s", [None, 0.5])
def test_what_is_tried_again(reason: str, retry_delay_s: float | None) -> None:
    """What is unavailable or late is tried again, and what is exhausted only if the server asks for
    it."""
    code = REASONS[reason].code
    error = LstmServeError("why", code=code, reason=reason, retry_delay_s=retry_delay_s)
    wanted = {
        StatusCode.UNAVAILABLE: True,
        StatusCode.DEADLINE_EXCEEDED: True,
        StatusCode.CANCELLED: True,
        StatusCode.RESOURCE_EXHAUSTED: retry_delay_s is not None,
    }
    assert is_transient(error) == wanted.get(code, False)


def test_a_broken_stream_is_tried_again() -> None:
    """INTERNAL with a reason is a bug of the server, and without one a broken connection."""
    assert is_transient(LstmServeError("from core", code=StatusCode.INTERNAL))
    assert not is_transient(LstmServeError("bug", code=StatusCode.INTERNAL, reason="INTERNAL"))


def test_waits_grow_to_a_limit() -> None:
    """Waits double up to the limit, and start over after a success."""
    attempts = known(math.inf).attempts()
    waits = [attempts.wait_s(unavailable()) for _ in range(40)]
    assert waits == [min(BACKOFF_S_MAX, BACKOFF_S * 2**n) for n in range(40)]
    attempts.succeeded()
    assert attempts.wait_s(unavailable()) == BACKOFF_S


def test_waits_are_spread() -> None:
    """A wait is random, up to its length, on top of what the server asks for."""
    dice = iter([0.0, 0.5, 0.25])
    policy = RetryPolicy(1.0, 60.0, Clock(), lambda: next(dice))
    policy.was_reached = True
    attempts = policy.attempts()
    assert attempts.wait_s(unavailable()) == 0.0
    assert attempts.wait_s(unavailable()) == BACKOFF_S
    assert attempts.wait_s(unavailable(3.0)) == 3.0 + BACKOFF_S


def test_at_once_is_at_once_only_once() -> None:
    """A server's delay of 0 is obeyed once."""
    attempts = known(60.0).attempts()
    assert [attempts.wait_s(unavailable(0.0)) for _ in range(2)] == [0.0, 2 * BACKOFF_S]


def test_patience_ends() -> None:
    """retry_s_max after the first failure, or at the deadline, the last error is raised."""
    for retry_s_max, timeout_s in ((5.0, None), (60.0, 5.0), (5.0, 60.0)):
        clock = Clock()
        attempts = known(retry_s_max, clock, 0.0).attempts(timeout_s)
        attempts.wait_s(unavailable())
        clock.now_s += 4.9
        attempts.wait_s(unavailable())
        with pytest.raises(Unavailable):
            attempts.wait_s(unavailable(0.2))
        clock.now_s += 0.1
        with pytest.raises(Unavailable):
            attempts.wait_s(unavailable())


def test_no_patience_is_one_try() -> None:
    """With retry_s_max 0 the first error is raised, even if its cause was healed."""
    attempts = RetryPolicy(1.0, 0.0, Clock()).attempts()
    for is_recovered in (False, True):
        with pytest.raises(Unavailable):
            attempts.wait_s(unavailable(), is_recovered=is_recovered)


def test_a_stranger_is_given_up_soon() -> None:
    """Retries are short until a server has answered for the first time, even with an error."""
    for answer in (None, "DRAINING"):
        clock = Clock()
        policy = RetryPolicy(1.0, 60.0, clock, lambda: 0.0)
        attempts = policy.attempts()
        error = Unavailable("why", code=StatusCode.UNAVAILABLE, reason=answer or "")
        attempts.wait_s(error)
        clock.now_s += 2
        if answer is None:
            with pytest.raises(Unavailable):
                attempts.wait_s(error)
            attempts.succeeded()
        assert policy.retry_s_max == 60.0
        attempts.wait_s(error)


def test_what_will_not_help_is_raised() -> None:
    """An error that no retry can change is raised, unless its cause is healed."""
    attempts = RetryPolicy(1.0, 60.0, Clock()).attempts()
    error = LstmServeError("why", code=StatusCode.INVALID_ARGUMENT)
    with pytest.raises(LstmServeError, match="why"):
        attempts.wait_s(error)
    assert attempts.wait_s(error, is_recovered=True) <= BACKOFF_S


def test_a_try_is_shorter_than_the_callers_deadline() -> None:
    """A lost message is noticed in time for another try, and a long step is not cut short."""
    clock = Clock()
    policy = RetryPolicy(10.0, 60.0, clock)
    assert policy.attempts().timeout_s == 10.0
    assert policy.attempts(2.0).timeout_s == 2.0
    assert policy.attempts(60.0).timeout_s == 20.0
    attempts = policy.attempts(25.0)
    assert attempts.timeout_s == 10.0
    clock.now_s += 20
    assert attempts.timeout_s == 5.0
    clock.now_s += 20
    assert attempts.timeout_s == attempts.left_s == 0.0


@pytest.mark.parametrize("bad", [{"timeout_s": 0.0}, {"timeout_s": math.nan}, {"retry_s_max": -1}])
def test_a_bad_setting_is_named(bad: dict[str, float]) -> None:
    """A bad setting is refused with its name, its value and what is allowed."""
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is .*, must be"):
        RetryPolicy(**{"timeout_s": 1.0, "retry_s_max": 1.0, **bad})
