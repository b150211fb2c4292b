"""Owns `lstmserve proto`: hands out the contract's files. Generates nothing."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import click

CONTRACT = "lstmserve/v1"


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR")
def proto(folder: Path) -> None:
    """Write the .proto files to DIR/lstmserve/v1, for protoc -I DIR or grpcurl -import-path DIR.

    They import google/rpc/status.proto, which googleapis has.
    """
    try:
        (folder / CONTRACT).mkdir(parents=True, exist_ok=True)
        for source in sorted(_sources(), key=lambda source: source.name):
            written = folder / CONTRACT / source.name
            written.write_bytes(source.read_bytes())
            click.echo(written)
    except OSError as error:
        raise click.ClickException(f"{folder}: {error.strerror}") from error


def _sources() -> list[Traversable]:
    """Beside the package in a wheel, at the top in a checkout."""
    package = resources.files("lstmserve")
    installed = package / "proto" / CONTRACT
    folder = installed if installed.is_dir() else package / ".." / ".." / "proto" / CONTRACT
    return [source for source in folder.iterdir() if source.name.endswith(".proto")]
