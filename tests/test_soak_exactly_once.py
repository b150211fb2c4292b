"""The short form of steps over a lossy transport; `make soak` runs the long one."""

from __future__ import annotations

from pathlib import Path

from soak import exactly_once


def test_every_step_counts_once(tmp_path: Path) -> None:
    """With a fifth of messages lost and a tenth repeated or late, each step counts once by every
    call."""
    found = exactly_once.run(tmp_path, steps=2000, sessions=48)
    print(found.figures())
    found.check()
