"""The Python client: Client for threads, AsyncClient for an event loop, and their exceptions.

It needs numpy, grpc and protobuf only, and imports no server.
"""

from lstmserve.client._async.client import AsyncClient
from lstmserve.client._async.session import AsyncSession
from lstmserve.client._sync.client import Client
from lstmserve.client._sync.session import Session
from lstmserve.client.records import ModelInfo, SessionInfo
from lstmserve.client.state import State
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
    StepManyFailed,
    StepsLost,
    Unavailable,
    Unimplemented,
)

__all__ = [
    "AsyncClient",
    "AsyncSession",
    "BadToken",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "InvalidInput",
    "LstmServeError",
    "ModelInfo",
    "ModelMismatch",
    "ModelNotFound",
    "ModelNotSteppable",
    "Overloaded",
    "PredecessorFailed",
    "Quota",
    "Session",
    "SessionClosed",
    "SessionExists",
    "SessionExpired",
    "SessionInfo",
    "SessionLost",
    "SessionNotFound",
    "SessionReplaced",
    "State",
    "StateRolledBack",
    "StepConflict",
    "StepManyFailed",
    "StepsLost",
    "Unavailable",
    "Unimplemented",
]


def __dir__() -> list[str]:
    return __all__
