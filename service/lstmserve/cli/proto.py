"""`lstmserve proto`: writes the .proto files. Generates no code."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import click

OURS: Final = (
    "lstmserve/v1/lstm.proto",
    "lstmserve/v1/error_reason.proto",
    "lstmserve/kserve/v2/inference.proto",
)
# lstm.proto imports the first; the second defines the details of its errors.
GOOGLES: Final = ("google/rpc/status.proto", "google/rpc/error_details.proto")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR")
def proto(folder: Path) -> None:
    """Write the .proto files below DIR, for protoc -I DIR or grpcurl -import-path DIR.

    lstmserve/v1/lstm.proto defines the service, and error_reason.proto beside it names the errors.
    lstmserve/kserve/v2/inference.proto is the part of Triton's protocol that the server has.
    google/rpc has what they import. The google/protobuf files come with every protoc.
    """
    try:
        for name, content in _contents().items():
            written = folder / name
            written.parent.mkdir(parents=True, exist_ok=True)
            written.write_bytes(content)
            click.echo(written)
    except OSError as error:
        raise click.ClickException(f"{error.filename or folder}: {error.strerror}") from error


def _contents() -> dict[str, bytes]:
    """Path -> content. googleapis-common-protos, a dependency, has Google's files."""
    ours, googles = _root(), resources.files("google.rpc")
    found = {name: ours.joinpath(name) for name in OURS}
    found |= {name: googles.joinpath(Path(name).name) for name in GOOGLES}
    return {name: source.read_bytes() for name, source in found.items()}


def _root() -> Traversable:
    """The folder of our files: in the package in a wheel, at the top in a checkout."""
    package = resources.files("lstmserve")
    installed = package / "proto"
    return installed if installed.is_dir() else package / ".." / ".." / "proto"
