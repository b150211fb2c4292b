"""The rows of the results: a measure, its goal, and what each round of it gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be: at least `value` if `is_least`, else at most."""

    value: float
    is_least: bool = True

    def is_met(self, value: float) -> bool:
        """Whether the figure meets the goal."""
        return value >= self.value if self.is_least else value <= self.value

    def __str__(self) -> str:
        return f"{'>=' if self.is_least else '<='} {self.value:g}"


@dataclass(slots=True)
class Row:
    """One figure: the median of its rounds, and their lowest and highest."""

    measure: int  # its number in the table of goals; 0: without a goal
    name: str
    values: Sequence[float]
    goal: Goal | None = None
    unit: str = ""
    context: str = ""  # absolute figures
    parts: dict[str, float] = field(default_factory=dict)  # for the pictures

    @property
    def value(self) -> float:
        """The median."""
        return median(self.values)

    def cells(self) -> list[str]:
        """The cells of the table: what, goal, figure, range, context."""
        goal = "" if self.goal is None else str(self.goal)
        figure = f"{self.value:.3g}{self.unit}"
        if self.goal is not None:
            figure = f"**{figure}**" if self.goal.is_met(self.value) else f"{figure} (missed)"
        spread = f"{min(self.values):.3g} - {max(self.values):.3g}"
        return [str(self.measure or ""), self.name, goal, figure, spread, self.context]
