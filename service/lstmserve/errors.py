"""The exceptions that a caller of the client handles, one class per thing that can be done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from grpc import StatusCode

from lstmserve.reasons import REASONS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "BadToken",
    "Cancelled",
    "DeadlineExceeded",
    "InvalidInput",
    "LstmServeError",
    "ModelMismatch",
    "ModelNotFound",
    "ModelNotSteppable",
    "Overloaded",
    "PredecessorFailed",
    "Quota",
    "SessionClosed",
    "SessionExists",
    "SessionExpired",
    "SessionLost",
    "SessionNotFound",
    "SessionReplaced",
    "StateRolledBack",
    "StepConflict",
    "StepManyFailed",
    "StepsLost",
    "Unavailable",
    "Unimplemented",
]


# What the caller of this library can do, where the server's words, which are for a client in any
# language, do not say it.
_ADVICE: Final = {
    "SESSION_EXISTS": 'if_exists="resume" goes on with it, if_exists="restart" begins again',
    "SESSION_EXPIRED": "ttl_s of session() says how long it may be idle",
    "SESSION_LOST": "replay_steps_max lets the client send lost steps again by itself",
    "SESSION_REPLACED": "attach() goes on with the session that has the id now",
    "STEP_GAP": 'open the session with if_exists="restart", or let replay_steps_max heal it',
    "STATE_ROLLED_BACK": 'open the session with if_exists="resume" or "restart"',
    "MODEL_NOT_STEPPABLE": "call predict()",
    "BAD_TOKEN": "give the client token=",
}


class LstmServeError(Exception):
    """A call that the server refused, or that did not come through.

    `code` is gRPC's; `reason` names the ErrorReason of the contract, "" when the error did not come
    from the server; `metadata` are the reason's facts (strings); `retry_delay_s` is how long to
    wait before a retry helps, None where the server did not say. `applied` tells what a step did:
    False: nothing, True: its number was applied, None: unknown. `message` is what the server said,
    and `advice` what a caller of this library can do about it, "" where that is no news.
    """

    def __init__(
        self,
        message: str,
        *,
        code: StatusCode = StatusCode.UNKNOWN,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_delay_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_delay_s = retry_delay_s
        self.applied: bool | None = REASONS[reason].applied if reason in REASONS else None

    def __str__(self) -> str:
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.message}{advice} ({self.reason or self.code.name})"

    @property
    def advice(self) -> str:
        """In the words of this library; another interface to it has words of its own."""
        return _ADVICE.get(self.reason, "")


class InvalidInput(LstmServeError, ValueError):
    """The server refuses these arguments; sending them again will not help."""


class SessionNotFound(LstmServeError):
    """Never opened on this server, or someone else's."""


class SessionExpired(LstmServeError):
    """Idle for longer than its TTL; its state is gone."""


class SessionLost(LstmServeError):
    """The server has no memory of this session: it restarted, or a router led elsewhere."""


class SessionClosed(LstmServeError):
    """Closed before."""


class SessionReplaced(LstmServeError):
    """Someone opened the same id anew; this handle is of the life before."""


class SessionExists(LstmServeError):
    """The id is taken; `if_exists` says what to do instead."""


class ModelNotFound(LstmServeError):
    """No such model, or no such version of it, is served."""


class ModelMismatch(LstmServeError):
    """A state, or a session to resume, of another model."""


class ModelNotSteppable(LstmServeError):
    """A bidirectional model: it reads whole sequences, by predict."""


class Overloaded(LstmServeError):
    """The server has no room for now: wait `retry_delay_s`."""


class Quota(LstmServeError):
    """Your limit of sessions, waiting steps or rows a second; `retry_delay_s` None: do not wait."""


class BadToken(LstmServeError):
    """No token, or none that the server knows."""


class PredecessorFailed(LstmServeError):
    """An earlier step of the session was not applied, so this one was not."""


class StepConflict(LstmServeError):
    """The number of this step was taken: by another client of the session, or by an earlier try
    whose reply was too large to keep. The session goes on after what the server has.
    """


class StepsLost(LstmServeError):
    """The server lost steps it had answered, and the replay log does not reach back so far.

    metadata has the `expected_step`; resume the session to go on from there.
    """


class StateRolledBack(LstmServeError):
    """The server may have lost steps that it had answered, and this step names no number.

    metadata has `step`, the last one that is left. Resume or restart the session.
    """


class Unavailable(LstmServeError):
    """No server, a server on its way out, or a connection that broke."""


class DeadlineExceeded(LstmServeError):
    """No answer in time. `applied` is False where the server dropped the step, else None."""


class Cancelled(LstmServeError):
    """The call was cancelled, or its client closed, before the answer came."""


class Unimplemented(LstmServeError):
    """This server does not serve that yet."""


class StepManyFailed(LstmServeError):
    """Some sessions of a step_many failed, the others were stepped.

    `results` holds y by session as step_many returns it, `errors` the error of each other session.
    code and reason are the first error's; `applied` is what the errors agree on, else None.
    All groups are waited for, a hanging server's until `timeout_s`, or without it until a try's
    time and retry_s_max are over: who wants the others' y before steps each group by itself.
    """

    def __init__(
        self,
        results: dict[Any, npt.NDArray[np.float32]],
        errors: dict[Any, LstmServeError],
    ) -> None:
        first = next(iter(errors.values()))
        count = len(errors) + len(results)
        super().__init__(
            f"{len(errors)} of {count} sessions failed, the first: {first.message}",
            code=first.code,
            reason=first.reason,
            metadata=first.metadata,
            retry_delay_s=first.retry_delay_s,
        )
        self.results = results
        self.errors = errors
        said = {error.applied for error in errors.values()}
        self.applied = said.pop() if len(said) == 1 else None


def __dir__() -> list[str]:
    return __all__
