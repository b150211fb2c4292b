"""Parses and writes addresses, HOST:PORT. Resolves no name."""

from __future__ import annotations

import ipaddress


def host_port(name: str, address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[IPV6]:PORT`. Raises ValueError with the setting `name`."""
    host, colon, port = address.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    ambiguous = ":" in host and not address.startswith("[")
    if not (colon and host) or ambiguous or not (port.isascii() and port.isdigit()):
        raise ValueError(f"{name} is {address!r}, must be HOST:PORT or [IPV6]:PORT")
    if int(port) > 65_535:
        raise ValueError(f"{name} is {address!r}, its port must be in [0, 65535]")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host; of names, only localhost counts."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def join(host: str, port: int) -> str:
    """HOST:PORT, the inverse of host_port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
