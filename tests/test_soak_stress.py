"""The short form of clients of every kind; `make soak` runs the long one, and has the slopes."""

from __future__ import annotations

from pathlib import Path

from soak import stress


def test_nothing_is_left_of_clients_of_any_kind(tmp_path: Path) -> None:
    """Ended, endless, late and crashing clients get exact answers, and leave nothing behind."""
    found = stress.run(tmp_path, scenarios=100)
    print(found.figures())
    found.check()
