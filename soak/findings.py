"""Counts of what clients found: the faults, and what they went through."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Violations:
    """The faults. Each is a count that must be 0."""

    lost: int = 0  # acknowledged steps that a server did not have any more
    changed: int = 0  # steps with different answers
    wrong: int = 0  # sessions whose outputs or final state differ from the oracle's
    doubled: int = 0  # sessions at a higher step than was acknowledged
    regressions: int = 0  # how often durable_step went back
    unexpected: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises AssertionError if there is a fault."""
        assert self == Violations(), self


@dataclass
class Experience:
    """What clients went through."""

    steps: int = 0
    repeats: int = 0
    recoveries_s: list[float] = field(default_factory=list)  # of steps that met a dead server
    rollbacks: list[int] = field(default_factory=list)  # how many steps were sent again each time
    rollbacks_s: list[float] = field(default_factory=list)


def add(total: Violations | Experience, part: Violations | Experience) -> None:
    """Adds the fields of `part` to those of `total`."""
    for name, value in vars(part).items():
        setattr(total, name, getattr(total, name) + value)
