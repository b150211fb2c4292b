"""The short form of the noisy tenant; `make soak` runs the long one, which checks the ratio."""

from __future__ import annotations

from pathlib import Path

from soak import fairness


def test_a_limit_spares_the_others(tmp_path: Path) -> None:
    """At twenty times its limit a tenant gets its limit, and the others every step, exactly."""
    found = fairness.run(tmp_path, pairs=1, seconds=3)
    print(found.figures())
    found.check_counts()
