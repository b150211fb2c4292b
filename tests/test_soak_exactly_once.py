"""The short form of steps over a lossy transport; `make soak` runs the long one."""

from __future__ import annotations

from pathlib import Path

from soak import exactly_once


def test_every_step_counts_once(tmp_path: Path) -> None:
    """A fifth of messages lost, a tenth repeated or late: by every way of stepping, once each."""
    found = exactly_once.run(tmp_path, steps=2000, sessions=48)
    print(found.figures())
    found.check()
