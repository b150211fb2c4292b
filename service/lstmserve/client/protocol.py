"""The contract as a client calls it: methods, requests, and the ids of sessions. No I/O.

The messages are the bytes twin of the contract (lstmserve.wire), so no list of floats is ever made.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar
from uuid import uuid4

from google.protobuf.message import Message

from lstmserve.client import checks
from lstmserve.wire.v1 import lstm_pb2 as wire

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

GROUPS_MAX: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Response]):
    """One rpc of lstmserve.v1.LstmService."""

    name: str
    request: type[Request]
    response: type[Response]

    @property
    def path(self) -> str:
        return f"/lstmserve.v1.LstmService/{self.name}"


LIST_MODELS: Final = Method("ListModels", wire.ListModelsRequest, wire.ListModelsResponse)
GET_MODEL: Final = Method("GetModel", wire.GetModelRequest, wire.GetModelResponse)
OPEN_SESSION: Final = Method("OpenSession", wire.OpenSessionRequest, wire.OpenSessionResponse)
GET_SESSION: Final = Method("GetSession", wire.GetSessionRequest, wire.GetSessionResponse)
LIST_SESSIONS: Final = Method("ListSessions", wire.ListSessionsRequest, wire.ListSessionsResponse)
CLOSE_SESSION: Final = Method("CloseSession", wire.CloseSessionRequest, wire.CloseSessionResponse)
GET_STATE: Final = Method("GetState", wire.GetStateRequest, wire.GetStateResponse)
STEP: Final = Method("Step", wire.StepRequest, wire.StepResponse)
STEP_STREAM: Final = Method("StepStream", wire.StepRequest, wire.StepResponse)
STEP_MANY: Final = Method("StepMany", wire.StepManyRequest, wire.StepManyResponse)
PREDICT: Final = Method("Predict", wire.PredictRequest, wire.PredictResponse)


IfExists = Literal["fail", "resume", "restart"]
_IF_EXISTS: Final = {
    "fail": wire.IF_EXISTS_UNSPECIFIED,
    "resume": wire.IF_EXISTS_RESUME,
    "restart": wire.IF_EXISTS_RESTART,
}


def open_request(
    model: str,
    version: int | None,
    session_id: str,
    if_exists: IfExists = "fail",
    ttl_s: float | None = None,
) -> wire.OpenSessionRequest:
    """A request with an id of its own: sent twice, it opens one session. Raises ValueError."""
    request = wire.OpenSessionRequest(
        model=checks.name("model", model),
        version=checks.version(version),
        session_id=checks.session_id(session_id),
        if_exists=_IF_EXISTS[checks.choice("if_exists", if_exists, _IF_EXISTS)],
        request_id=uuid4().hex,
    )
    if ttl_s is not None:
        request.ttl.FromMilliseconds(round(checks.ttl(ttl_s) * 1000))
    return request


def get_request(session_id: str) -> wire.GetSessionRequest:
    """A request for one session. Raises ValueError."""
    return wire.GetSessionRequest(session_id=checks.session_id(session_id))


def group(session_id: str) -> str:
    """What a router hashes: GROUP of an id GROUP:REST, the whole of any other id."""
    return session_id.partition(":")[0] or session_id


def is_grouped(session_id: str) -> bool:
    """Whether other sessions can share its group, and so its server and its stream."""
    return group(session_id) != session_id


def sibling_id(session_id: str) -> str:
    """A new id that a router leads to the same server."""
    return f"{group(session_id)}:{uuid4().hex}"


class SessionIds:
    """Makes ids round robin in `groups` groups that no other client has."""

    def __init__(self, groups: int) -> None:
        count = checks.count("groups", groups, 1, GROUPS_MAX)
        self._groups = itertools.cycle([uuid4().hex[:16] for _ in range(count)])

    def new(self) -> str:
        return f"{next(self._groups)}:{uuid4().hex}"
