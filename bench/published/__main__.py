"""`python -m bench.published DIR`: every published model of a folder, served and compared.

DIR has a folder for each model with its files and io.npz, the x and y of its original runtime. The
table says how each was handed over, and what lstmserve says of those that it cannot serve. It ends
with 1 if a model that is served is beyond the gate.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from bench.machine import commit, description
from bench.published.proof import Result, try_out
from bench.published.recipes import recipes_for

HEADER = (
    "model",
    "way",
    "kind",
    "largest difference",
    "of the gate",
    "exact",
    "onnxruntime",
    "lines",
)


def cells(result: Result) -> list[str]:
    """The cells of its row."""
    way = f"`{result.recipe.file}`, {result.recipe.way}"
    found = result.compared
    if found is None:
        said = "refused: " + result.said.replace("|", "\\|")
        return [result.model, way, "-", said, "-", "-", "-", str(result.lines)]
    share = f"{100 * found.share:.2g} %" + ("" if found.share <= 1 else " **WRONG**")
    exact = "yes" if found.is_exact else "no"
    difference = f"{found.difference:.1e}"
    loop = "-" if found.of_loop is None else f"to {found.of_loop:.0e}" if found.of_loop else "equal"
    return [result.model, way, found.kind, difference, share, exact, loop, str(result.lines)]


def results(folder: Path) -> Iterator[Result]:
    """Of every model and recipe, in order."""
    for model in sorted(path.parent for path in folder.glob("*/io.npz")):
        for recipe in recipes_for(model):
            with tempfile.TemporaryDirectory() as models:
                yield try_out(model, recipe, Path(models))


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Prints the table, in Markdown."""
    click.echo(f"`python -m bench.published`, {commit()}.\n{description()}.\n")
    for line in (HEADER, ["---"] * len(HEADER)):
        click.echo(f"| {' | '.join(line)} |")
    worst = 0.0
    for result in results(folder):
        click.echo(f"| {' | '.join(cells(result))} |")
        worst = max(worst, result.compared.share if result.compared else 0.0)
    sys.exit(0 if worst <= 1 else 1)


if __name__ == "__main__":
    main()
