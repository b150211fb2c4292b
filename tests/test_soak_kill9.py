"""The short form of killed and frozen servers; `make soak` runs the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from soak import amnesia, frozen, kill9
from soak.crowd import Kind, Mode


@pytest.mark.parametrize(
    ("mode", "kind", "window"),
    [
        ("through", "bare", 0),
        ("behind", "bare", 0),
        ("behind", "library", 30),
    ],
)
def test_killed_servers_lose_no_acked_step(
    mode: Mode, kind: Kind, window: int, tmp_path: Path
) -> None:
    """After kill -9 of three servers with one store every acknowledged step counts once, with the
    oracle's bits, also where the states are the last rows of a window."""
    found = kill9.run(tmp_path, mode, kind, kills=3, every_s=1, sessions=8, window=window)
    print(found.figures())
    found.check()


@pytest.mark.parametrize("mode", ["through", "behind"])
def test_a_stale_owner_is_harmless(mode: str, tmp_path: Path) -> None:
    """The writes of a frozen server that wakes up after its sessions moved are fenced."""
    found = frozen.run(tmp_path, mode, sessions=32)
    print(found.figures())
    found.check()


def test_a_crash_without_a_store_is_loud(tmp_path: Path) -> None:
    """After kill -9 with states in memory every step says SESSION_LOST, and no session starts at
    zeros."""
    found = amnesia.run(tmp_path, sessions=50)
    print(found.figures())
    found.check()
