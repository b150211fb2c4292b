"""The connections of one client: where the server is, gRPC's channel options, a pool of channels.

A server serves only a limited number of calls of one connection at a time (--streams-max), and gRPC
queues the others without an error: streams that stay open would block every other call of the
client. gRPC does not tell a client that limit, so each connection carries at most STREAMS_MAX
streams, fewer than the 100 that RFC 9113 asks every server to allow. This module makes no call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import grpc

from lstmserve.address import host_port, is_loopback
from lstmserve.client import checks
from lstmserve.client.status import closed, from_rpc
from lstmserve.errors import LstmServeError

Channel = TypeVar("Channel")

STREAMS_MAX: Final = 64  # of one connection, which leaves room for unary calls
_KEEPALIVE_MS: Final = 60_000  # finds a dead peer within a minute; servers refuse frequent pings
_PING_TIMEOUT_MS: Final = 10_000
_RECONNECT_MS: Final = 100
_RECONNECT_MS_MAX: Final = 2_000


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's address, and what a client needs to be let in.

    `tls` True trusts the system's authorities. Raises ValueError.
    """

    target: str
    token: str | None
    tls: bool | grpc.ChannelCredentials

    def __post_init__(self) -> None:
        checks.target(self.target)
        checks.token(self.token)
        if not isinstance(self.tls, bool | grpc.ChannelCredentials):
            raise ValueError(f"tls is {self.tls!r}, must be a bool or grpc's ChannelCredentials")

    def open_channel(self, library: Any, *, uses_proxy: bool = True) -> Any:
        """A channel of `library`, grpc or grpc.aio, with a connection of its own.

        The proxy that the environment names (http_proxy and others) is used for other machines
        only, and not at all without `uses_proxy`.
        """
        options = (
            # Two channels to one address would share a connection, and so its limit of streams.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", int(uses_proxy and not self._is_local())),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
            ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MS),
            ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS_MAX),
            # packing.py keeps requests below the model's limit; a reply may have any length.
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        )
        if self.tls is False:
            return library.insecure_channel(self.target, options)
        credentials = grpc.ssl_channel_credentials() if self.tls is True else self.tls
        return library.secure_channel(self.target, credentials, options)

    def _is_local(self) -> bool:
        """Whether the target is this machine, whatever its scheme."""
        scheme = next((each for each in checks.SCHEMES if self.target.startswith(each)), "")
        if scheme.startswith("unix"):
            return True
        addresses = self.target.removeprefix(scheme).rpartition("/")[2].split(",")
        return all(is_loopback(_host(address)) for address in addresses)

    def metadata(self, key: str) -> tuple[tuple[str, str | bytes], ...]:
        """The metadata of a call. `key` is the session id or group that a router hashes, or ""."""
        session = (("x-session-id", key),) if key else ()
        token = (("authorization", f"Bearer {self.token}"),) if self.token is not None else ()
        return session + token


def _host(address: str) -> str:
    """The host of HOST:PORT, or of HOST where gRPC's scheme has a default port."""
    try:
        return host_port("target", address)[0]
    except ValueError:
        return address


class PooledChannel(Generic[Channel]):
    """One connection, and the number of this client's streams that are open on it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.streams = 0


class ChannelPool(Generic[Channel]):
    """The connections of one client. Any thread may call; `open` makes one more channel."""

    def __init__(self, open: Callable[[], Channel]) -> None:  # noqa: A002  # what it does
        self._open = open
        self._lock = threading.RLock()  # the garbage collector may close in a thread that holds it
        self._is_closed = False
        self.first = PooledChannel(open())  # carries the unary calls
        self._channels = [self.first]

    def acquire(self) -> PooledChannel[Channel]:
        """The first connection with room for a stream; release() it. Raises Cancelled."""
        with self._lock:
            if self._is_closed:
                raise closed()
            pooled = next((each for each in self._channels if each.streams < STREAMS_MAX), None)
            if pooled is None:
                pooled = PooledChannel(self._open())
                self._channels.append(pooled)
            pooled.streams += 1
            return pooled

    def release(self, pooled: PooledChannel[Channel]) -> None:
        """A stream has ended. Its connection stays open for the next ones."""
        with self._lock:
            pooled.streams -= 1

    def close(self) -> list[Channel]:
        """Returns every channel for the caller to close; acquire() raises Cancelled from now on."""
        with self._lock:
            self._is_closed = True
            return [pooled.channel for pooled in self._channels]


def with_stream_limit(error: LstmServeError, streams: int) -> LstmServeError:
    """Names the server's limit of streams as a likely cause of a timeout beside open `streams`."""
    if streams:
        error.message += (
            f"; {streams} streams of this client are open on the connection, and a server lets "
            "calls wait that are more than its --streams-max"
        )
    return error


def unary_error(error: grpc.RpcError, pooled: PooledChannel[Channel]) -> LstmServeError:
    """The error of a unary call that failed on this connection."""
    found = from_rpc(error)
    if found.code is grpc.StatusCode.DEADLINE_EXCEEDED and not found.reason:
        return with_stream_limit(found, pooled.streams)
    return found
