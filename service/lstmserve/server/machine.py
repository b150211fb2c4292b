"""Owns what the machine must allow: addresses to bind, a core to run on. Starts nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import grpc.aio
from prometheus_client import CollectorRegistry

from lstmserve.config import Config, host_port, is_loopback
from lstmserve.server.http import HttpServer


class BadSetting(ValueError):
    """A setting that this machine does not allow; the message says what it would."""


class AddressUnavailable(Exception):
    """An address that cannot be bound."""


def check_plain_text(config: Config) -> None:
    """Raises BadSetting when others could reach a server without TLS and nobody allowed it."""
    host, _ = host_port("listen", config.listen)
    if not (config.insecure or is_loopback(host)):
        raise BadSetting(
            f"listen is {config.listen!r}, which other machines can reach, and TLS is not in this "
            "release: allow plain text with --insecure, or listen on 127.0.0.1 behind a proxy that "
            "ends TLS"
        )


def pin(cpu: int) -> None:
    """Keeps every thread of the process on one core, also those to come. Raises BadSetting."""
    allowed = sorted(os.sched_getaffinity(0))
    if cpu not in allowed:
        raise BadSetting(f"cpu is {cpu}, must be one of {', '.join(map(str, allowed))}")
    for thread in os.listdir("/proc/self/task"):  # numpy's own threads are there already
        os.sched_setaffinity(int(thread), {cpu})


def bind_grpc(server: grpc.aio.Server, address: str) -> str:
    """Binds, and returns the address with its real port. Raises AddressUnavailable."""
    host, _ = host_port("listen", address)
    with contextlib.suppress(RuntimeError):
        return join(host, server.add_insecure_port(address))
    raise AddressUnavailable(f"--listen {address}: taken, or not an address of this machine")


def bind_http(
    address: str,
    registry: CollectorRegistry,
    is_live: Callable[[], bool],
    is_ready: Callable[[], bool],
) -> HttpServer:
    """Bound, not started. Raises AddressUnavailable."""
    try:
        return HttpServer(*host_port("metrics", address), registry, is_live, is_ready)
    except OSError as error:
        raise AddressUnavailable(f"--metrics {address}: {error.strerror}") from error


def join(host: str, port: int) -> str:
    """HOST:PORT, the inverse of host_port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
