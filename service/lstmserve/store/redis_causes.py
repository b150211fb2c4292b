"""Why a Redis store does not serve, in words for its operator. It must not quote the URL."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Final, NamedTuple

from redis import exceptions as redis


class Cause(NamedTuple):
    """`is_misconfigured` says that waiting does not help: an operator has to change something.

    `is_of_key` says that one key alone is at fault.
    """

    words: str
    is_misconfigured: bool = False
    is_of_key: bool = False


_CERTIFICATE: Final = {
    10: "has expired",
    18: "is self-signed: name it, or its authority, by ssl_ca_certs=FILE",
    19: "is of an authority that is not trusted here: name that by ssl_ca_certs=FILE",
    20: "is of an authority that is not trusted here: name that by ssl_ca_certs=FILE",
    62: "is of another host name than the URL's",
    64: "is of another address than the URL's",
}
_SILENT_TLS: Final = Cause(
    "no answer to TLS within --store-timeout-s: a port without TLS (redis:// instead of rediss://),"
    " a firewall, or it hangs"
)
_NO_TLS: Final = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}
_CLIENT_CERTIFICATE: Final = {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"}
_CLUSTER: Final = Cause("it is part of a cluster: one server, or a primary, is needed", True)
_TYPES: Final[dict[type[Exception], Cause]] = {
    redis.NoPermissionError: Cause(
        "its ACL denies what the store needs: docs/STORES.md has a rule that suffices", True
    ),
    redis.MovedError: _CLUSTER,
    redis.AskError: _CLUSTER,
    redis.ClusterCrossSlotError: _CLUSTER,
    redis.MasterDownError: Cause("it is a replica that has lost its primary"),
    redis.ClusterDownError: _CLUSTER,
    redis.ReadOnlyError: Cause("it is a read-only replica: the URL must lead to the primary"),
    redis.BusyLoadingError: Cause("it is still loading its data"),
    redis.OutOfMemoryError: Cause("it is full: maxmemory is reached"),
    redis.InvalidResponse: Cause("what answers there is neither Valkey nor Redis", True),
    ConnectionRefusedError: Cause("nothing listens at its host and port"),
    TimeoutError: Cause("no answer within --store-timeout-s: a firewall, or it hangs"),
    redis.TimeoutError: Cause("no answer within --store-timeout-s: a firewall, or it hangs"),
}
_TEXTS: Final = {
    r"ACL failure in script": Cause(
        "its ACL denies what the store needs: docs/STORES.md has a rule that suffices", True
    ),
    r"AUTH.* called without any password": Cause(
        "the URL gives a password, and the server's default user has none", True
    ),
    r"WRONGPASS|invalid (username|password)": Cause(
        "it does not know that user with that password", True
    ),
    r"NOAUTH|Authentication required": Cause(
        "it asks for a password: redis://:PASSWORD@HOST or redis://USER:PASSWORD@HOST", True
    ),
    r"unknown command": Cause(
        "it lacks a command: it is a Sentinel, or neither Valkey nor Redis 7", True
    ),
    r"SELECT is not allowed in cluster mode": _CLUSTER,
    r"DB index|Invalid Database": Cause("it has no database of the URL's number", True),
    r"DENIED": Cause("protected mode: without a password it serves its own machine alone", True),
    r"MISCONF": Cause("it takes no writes, because it cannot save to its disk"),
    r"NOREPLICAS": Cause("it takes no writes, because it has too few replicas"),
    r"max number of clients": Cause("it has as many clients as it allows (maxclients)"),
    r"No connection available": Cause("all connections to it are busy"),
    r"WRONGTYPE": Cause("a key of the store holds another program's value", True, is_of_key=True),
    r"[Cc]losed by server|reset by peer|Connection lost|Broken pipe": Cause(
        "it closes the connection: a port for TLS needs rediss://, a proxy needs a server behind it"
    ),
}


def cause_of(error: BaseException, *, is_tls: bool = False) -> Cause:
    """The cause of the first error in the chain that tells one; `is_tls`: TLS was being set up."""
    for each in _behind(error):
        if is_tls and isinstance(each, TimeoutError | redis.TimeoutError):
            return _SILENT_TLS
        if found := _cause(each):
            return found
    return Cause(f"it fails with {type(error).__name__}")


def _behind(error: BaseException) -> Iterator[BaseException]:
    """The chain of errors, its root first, because redis-py's own errors say less."""
    inner = error.__cause__ or error.__context__
    if inner is not None:
        yield from _behind(inner)
    yield error


def _cause(error: BaseException) -> Cause | None:
    if isinstance(error, socket.gaierror):
        is_late = error.errno == socket.EAI_AGAIN
        return Cause(f"DNS does not {'answer for' if is_late else 'know'} its host name")
    if isinstance(error, ssl.SSLCertVerificationError):
        why = _CERTIFICATE.get(error.verify_code, f"does not verify (code {error.verify_code})")
        return Cause(f"its certificate {why}", True)
    if isinstance(error, ssl.SSLError):
        return _tls_cause(error.reason or "")
    for kind, cause in _TYPES.items():
        if isinstance(error, kind):
            return cause
    text = f"{getattr(error, 'status_code', '') or ''} {error}"
    for pattern, cause in _TEXTS.items():
        if re.search(pattern, text):
            return cause
    if isinstance(error, OSError) and error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return Cause("no route leads to its host")
    if isinstance(error, ConnectionError | EOFError):
        return _TEXTS[r"[Cc]losed by server|reset by peer|Connection lost|Broken pipe"]
    code = re.match(r"[A-Z]{3,20}\b", str(error))  # never the rest: it may quote a key
    return Cause(f"it refuses with {code[0]}") if code and code[0] != "ERR" else None


def _tls_cause(reason: str) -> Cause:
    if reason in _NO_TLS:
        return Cause("it does not speak TLS on that port: redis:// instead of rediss://", True)
    if reason in _CLIENT_CERTIFICATE:
        return Cause("it asks for a certificate of ours: ssl_certfile=FILE, ssl_keyfile=FILE", True)
    return Cause(f"TLS fails: {reason or 'no reason given'}")
