"""The short form of calls that end early; `make soak` runs the long one, and has the slope."""

from __future__ import annotations

from pathlib import Path

from soak import cancels


def test_calls_that_end_early_leave_nothing(tmp_path: Path) -> None:
    """Cancelled calls, late ones and those whose connection broke hold nothing, and sessions are
    exact."""
    found = cancels.run(tmp_path, cancels=4500, slope_max=None)
    print(found.figures())
    found.check()
