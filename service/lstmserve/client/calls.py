"""Owns what every call carries: method paths, message types, metadata, channel options. No I/O.

The messages are the contract's bytes twin (lstmserve.wire): no list of floats is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar
from uuid import uuid4

import grpc
from google.protobuf.message import Message

from lstmserve.address import host_port, is_loopback
from lstmserve.client import checks
from lstmserve.wire.v1 import lstm_pb2 as wire

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

_KEEPALIVE_MS: Final = 60_000  # a dead peer shows within a minute; more often annoys servers
_PING_TIMEOUT_MS: Final = 10_000
_RECONNECT_MS: Final = 100
_RECONNECT_MS_MAX: Final = 2_000


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Response]):
    """One rpc of lstmserve.v1.LstmService."""

    name: str
    request: type[Request]
    response: type[Response]

    @property
    def path(self) -> str:
        """Its path on the wire."""
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
    """A request of its own: repeated it opens no second session. Raises ValueError."""
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
    """Of one session. Raises ValueError."""
    return wire.GetSessionRequest(session_id=checks.session_id(session_id))


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is, and how to speak to it; `tls` True trusts the system's authorities.

    Raises ValueError.
    """

    target: str
    token: str | None
    tls: bool | grpc.ChannelCredentials

    def __post_init__(self) -> None:
        checks.target(self.target)
        checks.token(self.token)
        if not isinstance(self.tls, bool | grpc.ChannelCredentials):
            raise ValueError(f"tls is {self.tls!r}, must be a bool or grpc's ChannelCredentials")

    def open(self, flavour: Any, *, is_direct: bool = False) -> Any:
        """A channel of `flavour`, grpc or grpc.aio, and a connection of its own.

        The proxy that the environment names (http_proxy and others) is asked for other machines
        alone, and for none when it `is_direct`.
        """
        options = (
            # Two channels to one address would share a connection, and so its limit of streams.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", int(not (is_direct or self._is_here()))),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
            ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MS),
            ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS_MAX),
            # What the model allows is held when messages are made; a reply is taken as it comes.
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        )
        if self.tls is False:
            return flavour.insecure_channel(self.target, options)
        credentials = grpc.ssl_channel_credentials() if self.tls is True else self.tls
        return flavour.secure_channel(self.target, credentials, options)

    def _is_here(self) -> bool:
        """Whether the target is this machine, whatever its scheme."""
        scheme = next((each for each in checks.SCHEMES if self.target.startswith(each)), "")
        if scheme.startswith("unix"):
            return True
        addresses = self.target.removeprefix(scheme).rpartition("/")[2].split(",")
        return all(is_loopback(_host(address)) for address in addresses)

    def metadata(self, key: str) -> tuple[tuple[str, str | bytes], ...]:
        """Of one call; `key` is the session id or group that a router hashes, "" where none."""
        session = (("x-session-id", key),) if key else ()
        token = (("authorization", f"Bearer {self.token}"),) if self.token is not None else ()
        return session + token


def _host(address: str) -> str:
    """Of HOST:PORT, or of HOST where gRPC's scheme has a default port."""
    try:
        return host_port("target", address)[0]
    except ValueError:
        return address
