"""A wall clock that a test moves under a running server, by libfaketime, which reads it each time.

Only the wall clock moves. The monotonic clock goes on, as it does when an operator or NTP sets the
time.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serving import COMMAND


def library() -> Path:
    """The path of libfaketime. Without it the test is skipped, and fails in CI."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if found:
        return found[0]
    reason = "no libfaketime here: `sh tests/debian.sh` gets it where there is apt-get and root"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class WallClock:
    """`command` runs servers with this clock, which follows the machine's until it is moved."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "wall-clock"
        self.move(0)
        self.command = [
            "env",
            f"LD_PRELOAD={library()}",
            f"FAKETIME_TIMESTAMP_FILE={self._file}",
            "FAKETIME_NO_CACHE=1",
            "DONT_FAKE_MONOTONIC=1",
            *COMMAND,
        ]

    def move(self, by_s: int) -> None:
        """Sets it `by_s` ahead of the machine's clock from now on, or behind it."""
        new = self._file.with_name("wall-clock.new")
        new.write_text(f"{by_s:+d}s\n")
        new.replace(self._file)
