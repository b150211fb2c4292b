"""`lstmserve models` lists what a server serves; `lstmserve predict` runs whole sequences.

Neither keeps a session.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from lstmserve.cli import csvrows, options
from lstmserve.client import ModelInfo
from lstmserve.client.channels import Endpoint
from lstmserve.spec import TensorSpec

FILE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


@click.command()
@options.endpoint
def models(endpoint: Endpoint) -> None:
    """List every version of every model that the server serves.

    EXACT is "yes" if the bits of a result depend neither on what else the server computes at the
    same time nor on how a sequence is cut. Otherwise it is the largest difference that the server
    measured at its start.
    """
    header = (
        *("MODEL", "VERSION", "DEVICE", "KIND", "EXACT", "INPUTS", "OUTPUTS", "STATES"),
        *("LENGTH-MAX", "FINGERPRINT"),
    )
    with options.connect(endpoint) as client:
        options.table(
            header,
            [
                (
                    m.name,
                    m.version,
                    m.device,
                    _kind(m),
                    "yes" if m.is_exact else f"to {m.difference:.1g}",
                    _tensors(m.inputs),
                    _tensors(m.outputs),
                    _tensors(m.states),
                    m.length_max,
                    m.fingerprint[:12],
                )
                for m in client.models()
            ],
        )


def _kind(model: ModelInfo) -> str:
    """Of an nn.LSTM, whose states have layers and width, what they do not say."""
    if model.lstm is None:
        return model.kind
    return "lstm" if model.is_streaming else "lstm (bidirectional)"


def _tensors(tensors: Iterable[TensorSpec]) -> str:
    """As x[8] or tokens:int64."""
    return " ".join(
        each.name
        + (f"[{','.join(map(str, each.shape))}]" if each.shape else "")
        + (f":{each.dtype}" if each.dtype != "float32" else "")
        for each in tensors
    )


@click.command()
@options.model
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE...")
@options.endpoint
@options.flag("--last-only", is_flag=True, help="Print only the y of each file's last row.")
def predict(
    model: options.ModelName, files: tuple[Path, ...], endpoint: Endpoint, last_only: bool
) -> None:
    """Run each FILE of CSV rows (- is stdin) as one whole sequence, from the initial state.

    Prints one row of y for each row, with an empty line between files. With --last-only it prints
    one row for each file.
    """
    with options.connect(endpoint) as client:
        info = client.model(model.name, version=model.version)
        inputs = [_read(file, info) for file in files]
        ys = client.predict(info.name, inputs, version=info.version, return_sequences=not last_only)
        if last_only:
            click.echo("".join(csvrows.text(csvrows.first_axis(y)) for y in ys), nl=False)
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
