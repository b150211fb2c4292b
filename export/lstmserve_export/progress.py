"""Shows on stderr what an export does at the moment, and lines that stay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from lstmserve_export.refusal import printable


@dataclass(frozen=True, slots=True)
class Stages:
    """The line of the present stage, which only a terminal shows."""

    bar: Progress
    task: TaskID

    def progress(self, stage: str) -> None:
        """Replaces the line."""
        self.bar.update(self.task, description=printable(stage))

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        self.bar.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def stages(first: str) -> Iterator[Stages]:
    """Begins with the stage `first`; the line goes at the end."""
    errors = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        yield Stages(bar, bar.add_task(first))
