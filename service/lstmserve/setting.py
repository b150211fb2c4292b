"""Owns what a setting is: its kind, its range, its help, and how a dataclass field has it.

Knows no setting; config.py has them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lstmserve.tokens import LIMIT_MAX


@dataclass(frozen=True, slots=True)
class Setting:
    """What a field may hold; low and high are inclusive, in the unit that ends the name."""

    kind: type
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: object) -> None:
        """Raises ValueError naming the setting, its value and what is allowed."""
        if not (self._is_kind(value) and self._is_within(value)):
            raise ValueError(f"{name} is {value!r}, must be {self.allowed()}")

    def _is_kind(self, value: object) -> bool:
        kinds = (int, float) if self.kind is float else (self.kind,)
        return isinstance(value, kinds) and (self.kind is bool or not isinstance(value, bool))

    def _is_within(self, value: Any) -> bool:
        if self.low is None or self.high is None:
            return not self.choices or value in self.choices
        return bool(self.low <= value <= self.high)

    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        text = words.get(self.kind, self.kind.__name__)
        return text if self.low is None else f"{text} in [{self.low}, {self.high}]"


def integer(default: int | None, low: int, high: int, text: str) -> Any:
    """A field for a whole number in [low, high], or None where that is the default."""
    return field(default=default, metadata={"setting": Setting(int, text, low, high)})


def limit(text: str) -> Any:
    """A field for a tenant's limit, off by default."""
    return integer(None, 1, LIMIT_MAX, f"{text}, where the tokens file says nothing.")


def floating(default: float | None, low: float, high: float, text: str) -> Any:
    """A field for a number in [low, high], or None where that is the default."""
    return field(default=default, metadata={"setting": Setting(float, text, low, high)})


def other(default: object, text: str, *choices: str, kind: type | None = None) -> Any:
    """A field for text, a choice or a switch."""
    setting = Setting(kind or type(default), text, choices=choices)
    return field(default=default, metadata={"setting": setting})


def path(text: str) -> dict[str, Setting]:
    """The metadata of a field for a path."""
    return {"setting": Setting(Path, text)}
