"""Asks the machine for what the server needs: addresses to listen on, a core, open files.

It raises errors that say which setting the machine refuses and why. It starts nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import socket
from collections.abc import Callable, Sequence

import grpc
import structlog
from prometheus_client import CollectorRegistry

from lstmserve.address import host_port, is_loopback, join
from lstmserve.config import Config
from lstmserve.server.observe.http import HttpServer
from lstmserve.server.transport import QueueServer

M_ARENA_MAX = -8  # of glibc's malloc.h

log = structlog.get_logger()


class BadSetting(ValueError):
    """This machine does not allow a setting; the message says what it allows."""


class AddressUnavailable(Exception):
    """An address cannot be bound."""


def check_plain_text(config: Config) -> None:
    """Raises BadSetting if other machines could reach a server without TLS and without --insecure.

    With --insecure it logs what that means.
    """
    host, _ = host_port("listen", config.listen)
    if config.tls_cert or is_loopback(host):
        return
    if not config.insecure:
        raise BadSetting(
            f"listen is {config.listen!r}, which other machines can reach: give --tls-cert and "
            "--tls-key, or allow plain text with --insecure"
        )
    log.warning(
        "plain text: whoever reaches this address can read along"
        + ("" if config.tokens else " and call: there are no --tokens either"),
        listen=config.listen,
        advice="let only a trusted network or 127.0.0.1 reach it, or give --tls-cert and --tls-key",
    )


def protections(config: Config) -> list[str]:
    """What protects --listen from strangers, for the log."""
    host, _ = host_port("listen", config.listen)
    every = {
        "loopback": is_loopback(host),
        "TLS": config.tls_cert is not None,
        "client certificates": config.tls_client_ca is not None,
        "tokens": config.tokens is not None,
    }
    return [name for name, is_on in every.items() if is_on]


def pin(cpu: int) -> None:
    """Keeps every thread of the process, present and future, on one core. Raises BadSetting."""
    allowed = sorted(os.sched_getaffinity(0))
    if cpu not in allowed:
        raise BadSetting(f"cpu is {cpu}, must be one of {', '.join(map(str, allowed))}")
    for thread in os.listdir("/proc/self/task"):  # numpy's own threads are there already
        os.sched_setaffinity(int(thread), {cpu})


def allow_open_files() -> None:
    """Raises the limit of open files to the hard limit. The soft limit is often 1,024.

    Each connection is an open file. At the limit probes get no answer, and an orchestrator would
    restart the server for having many clients.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # the kernel's own limit may be below it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def share_one_heap() -> None:
    """Lets all threads allocate from one heap, where the C library is glibc. Call it first of all.

    A message is allocated on the transport's thread and freed on the loop's. With a heap for each
    thread, as is glibc's way, a flood of long messages left a third more memory in use.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library has no mallopt
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def bind_grpc(
    server: QueueServer,
    name: str,
    address: str,
    credentials: grpc.ServerCredentials | None = None,
) -> str:
    """Binds the server, and returns the address with its real port. Raises AddressUnavailable."""
    host, _ = host_port(name, address)
    if port := server.bind(address, credentials):
        return join(host, port)
    raise AddressUnavailable(f"--{name} {address}: {_why_not(address, _refusal(name, address))}")


def bind_http(
    address: str,
    registry: CollectorRegistry,
    is_live: Callable[[], bool],
    is_ready: Callable[[], bool],
    remarks: Sequence[str] = (),
) -> HttpServer:
    """The HTTP server, bound but not started. Raises AddressUnavailable."""
    try:
        return HttpServer(*host_port("metrics", address), registry, is_live, is_ready, remarks)
    except OSError as error:
        raise AddressUnavailable(f"--metrics {address}: {_why_not(address, error)}") from error


def _refusal(name: str, address: str) -> OSError | None:
    """Binds the address itself, because gRPC reports no error. Returns the error, None if none."""
    host, port = host_port(name, address)
    try:
        kinds = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, found in kinds:
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(found)
                trial.listen()
    except OSError as error:
        return error
    return None


def _why_not(address: str, error: OSError | None) -> str:
    """What is wrong with the address, and what to do."""
    host, _, port = address.rpartition(":")
    if isinstance(error, socket.gaierror):
        return f"no address is known for the host {host}: {error.strerror}"
    known = {
        errno.EADDRINUSE: f"another process listens on port {port}: end it, or take another port",
        errno.EADDRNOTAVAIL: f"{host} is not an address of this machine",
        errno.EACCES: f"this user may not listen on port {port}: take one from 1024 on",
    }
    if error is None:
        return "gRPC could not listen here, though the port is free now: try again"
    return known.get(error.errno or 0, error.strerror or str(error))
