"""The user's module as a function from flat tensors to flat, named ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Axes:
    """Where an input has its batch and its time steps; None: it has no such axis."""

    batch: int | None
    time: int | None

    @classmethod
    def of(cls, letters: str) -> Axes | None:
        """The axes of "BT", "TB", "B" or "T"; None for "", which lets the export find out."""
        raise NotImplementedError
