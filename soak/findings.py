"""What clients found: what must not be, and what they went through. Counts, nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Violations:
    """What must not be; each is a count."""

    lost: int = 0  # acked steps that a server did not have any more
    changed: int = 0  # answers of one step that differ
    wrong: int = 0  # sessions whose outputs or final state are not the oracle's
    doubled: int = 0  # sessions at a higher step than was acked
    regressions: int = 0  # durable_step went back
    unexpected: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises AssertionError."""
        assert self == Violations(), self


@dataclass
class Experience:
    """What clients went through."""

    steps: int = 0
    repeats: int = 0
    recoveries_s: list[float] = field(default_factory=list)  # of steps that met a dead server
    rollbacks: list[int] = field(default_factory=list)  # steps sent again
    rollbacks_s: list[float] = field(default_factory=list)


def add(total: Violations | Experience, part: Violations | Experience) -> None:
    """Field by field."""
    for name, value in vars(part).items():
        setattr(total, name, getattr(total, name) + value)
