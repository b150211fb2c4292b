"""The short form of an overload; `make soak` runs the long one, and has the goodput."""

from __future__ import annotations

from pathlib import Path

from soak import overload


def test_what_is_shed_is_told_when_to_come_again(tmp_path: Path) -> None:
    """At ten times the capacity every refusal has its hint, and every accepted step is exact."""
    found = overload.run(tmp_path, factors=(1, 10), seconds=2, sessions=150)
    print(found.figures())
    found.check()
