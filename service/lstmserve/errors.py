"""The client's exceptions, with one class for each thing that a caller can do about an error."""

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


# What a caller of this library can do. The server's messages are for clients in any language.
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
    """The server refused a call, or the call failed on its way.

    `code` is gRPC's; `reason` names the ErrorReason of the contract, "" if the error did not come
    from the server; `metadata` are the reason's facts (strings); `retry_delay_s` is the time to
    wait before a retry can help, None if the server did not say. `applied` is False if a step did
    nothing, True if its number was applied, None if that is unknown. `message` is the server's, and
    `advice` is what a caller of this library can do about it, or "".
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
        """What to do, in terms of this library's arguments; the command line has its own."""
        return _ADVICE.get(self.reason, "")


class InvalidInput(LstmServeError, ValueError):
    """The server refuses these arguments. Sending them again does not help."""


class SessionNotFound(LstmServeError):
    """The session was never opened on this server, or belongs to another tenant."""


class SessionExpired(LstmServeError):
    """The session was idle for longer than its TTL, and its state is gone."""


class SessionLost(LstmServeError):
    """The server does not know the session: it restarted, or a router chose another server."""


class SessionClosed(LstmServeError):
    """The session was closed."""


class SessionReplaced(LstmServeError):
    """The id was opened again; this handle belongs to the former incarnation."""


class SessionExists(LstmServeError):
    """A session with this id exists; `if_exists` can resume or restart it."""


class ModelNotFound(LstmServeError):
    """The server serves no such model, or no such version of it."""


class ModelMismatch(LstmServeError):
    """The state, or the session to resume, belongs to another model."""


class ModelNotSteppable(LstmServeError):
    """A bidirectional model, or one without states, reads whole sequences only: call predict."""


class Overloaded(LstmServeError):
    """The server has no room at the moment: wait `retry_delay_s`."""


class Quota(LstmServeError):
    """The tenant's limit of sessions, waiting steps or rows a second is reached.

    With `retry_delay_s` None, waiting does not help.
    """


class BadToken(LstmServeError):
    """The call has no token, or one that the server does not know."""


class PredecessorFailed(LstmServeError):
    """An earlier step of the session was not applied, so this one was not."""


class StepConflict(LstmServeError):
    """The server has already applied a step with this number.

    Another client of the session sent it, or an earlier attempt whose reply was too large to keep.
    The session continues after the steps that the server has.
    """


class StepsLost(LstmServeError):
    """The server lost steps that it had answered, and the replay log does not reach back to them.

    metadata has the `expected_step`; resume the session to continue from there.
    """


class StateRolledBack(LstmServeError):
    """The server may have lost steps that it had answered, and this step names no number.

    metadata has `step`, the last one that the server has. Resume or restart the session.
    """


class Unavailable(LstmServeError):
    """There is no server, it is shutting down, or the connection broke."""


class DeadlineExceeded(LstmServeError):
    """No reply came in time. `applied` is False if the server dropped the step, else None."""


class Cancelled(LstmServeError):
    """The call was cancelled, or its client closed, before the reply came."""


class Unimplemented(LstmServeError):
    """This server does not have this call."""


class StepManyFailed(LstmServeError):
    """Some sessions of a step_many failed, and the others were stepped.

    `results` holds y by session as step_many returns it, `errors` the error of each other session.
    code and reason are the first error's; `applied` is what the errors agree on, else None.
    step_many waits for all groups. If the server of one group hangs, it waits until `timeout_s`, or
    without that until one attempt's timeout and retry_s_max are over. To get the other groups' y
    earlier, step each group by a call of its own.
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
