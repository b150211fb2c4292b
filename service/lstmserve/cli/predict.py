"""Owns `lstmserve predict`: whole sequences from files. Keeps nothing, on either side."""

from __future__ import annotations

from pathlib import Path

import click

from lstmserve.cli import csvrows, options
from lstmserve.client import ModelInfo

FILE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


@click.command()
@options.model
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE...")
@options.target
@options.flag("--last-only", is_flag=True, help="Print only the y of each file's last row.")
def predict(
    model: options.ModelName, files: tuple[Path, ...], target: options.Target, last_only: bool
) -> None:
    """Run each FILE, a whole sequence of CSV rows (- is stdin), from a fresh state.

    Prints a row of y for each row, files parted by an empty line; with --last-only a row a file.
    """
    with options.connect(target) as client:
        info = client.model(model.name, version=model.version)
        inputs = [_read(file, info) for file in files]
        ys = client.predict(info.name, inputs, version=info.version, return_sequences=not last_only)
        if last_only:
            click.echo("".join(csvrows.text(y[None]) for y in ys), nl=False)
        else:
            click.echo("\n".join(csvrows.text(y) for y in ys), nl=False)


def _read(file: Path, model: ModelInfo) -> csvrows.Steps:
    try:
        if str(file) == "-":
            return csvrows.whole(options.stdin(), model)
        with file.open("rb") as stream:
            return csvrows.whole(stream.fileno(), model)
    except csvrows.BadRow as error:
        raise csvrows.BadRow(f"{file}: {error}") from None
