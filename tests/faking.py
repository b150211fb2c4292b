"""Owns a wall clock that a test moves under a running server: libfaketime, read at each look.

Only the wall clock: the monotonic one goes on as it does when an operator or NTP sets the time.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serving import COMMAND


def library() -> Path:
    """Without libfaketime the test skips, and fails in CI."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if found:
        return found[0]
    reason = "no libfaketime here: `sh tests/debian.sh` gets it where there is apt-get and root"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class WallClock:
    """`command` runs servers by this clock, which goes as the machine's does until it is moved."""

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
        """From now on it shows so much more than the machine's, or less."""
        new = self._file.with_name("wall-clock.new")
        new.write_text(f"{by_s:+d}s\n")
        new.replace(self._file)
