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
    measured at its start. KIND also says how many rows a window has, and what stands for those
    that a new session lacks, and whether a model without states takes whole sequences alone.
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
    """The kind, and what the names and shapes of the tensors do not say."""
    is_both = model.lstm is not None and model.lstm.bidirectional
    kind = f"{model.kind} (bidirectional)" if is_both else model.kind
    kind = kind if model.states else f"{kind} (whole sequences)"
    return f"{kind}, window {model.window} ({model.window_fill})" if model.window else kind


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
    one row for each file. A row without a y, where the model waits for a whole window, prints empty
    fields. A model without states prints as many rows as its network gives: one for each row,
    fewer, or one for the file.
    """
    with options.connect(endpoint) as client:
        info = client.model(model.name, version=model.version)
        inputs = [_read(file, info) for file in files]
        ys = client.predict(info.name, inputs, version=info.version, return_sequences=not last_only)
        if last_only:
            click.echo("".join(csvrows.lines(info, csvrows.first_axis(y), 1) for y in ys), nl=False)
        else:
            counts = [csvrows.count(x) if info.states else 0 for x in inputs]
            texts = (csvrows.lines(info, y, n) for y, n in zip(ys, counts, strict=True))
            click.echo("\n".join(texts), nl=False)


def _read(file: Path, model: ModelInfo) -> csvrows.Steps:
    try:
        if str(file) == "-":
            return csvrows.whole(options.stdin(), model)
        with file.open("rb") as stream:
            return csvrows.whole(stream.fileno(), model)
    except csvrows.BadRow as error:
        raise csvrows.BadRow(f"{file}: {error}") from None
