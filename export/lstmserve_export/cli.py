"""The command `lstmserve export`. Importing it costs no torch; the work is elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from lstmserve.extras import hint

F = TypeVar("F", bound=Callable[..., Any])
VERSION_END = 10**9
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class MissingExtra(click.ClickException):
    """torch and its companions are not installed."""

    exit_code = 2


def _flag(name: str, **attributes: Any) -> Callable[[F], F]:
    """An option that its environment variable sets too."""
    variable = "LSTMSERVE_" + name.removeprefix("--").upper().replace("-", "_")
    return click.option(
        name, envvar=variable, show_default=bool(attributes.get("default")), **attributes
    )


def _version(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """An integer >= 1, or None for NEXT."""
    if value == "NEXT":
        return None
    if value.isascii() and value.isdecimal() and 1 <= int(value) < VERSION_END:
        return int(value)
    raise click.BadParameter(f"{value!r} is neither NEXT nor in [1, {VERSION_END - 1}]")


@click.command("export")
@click.argument("checkpoint", type=FILE)
@_flag("--name", help="The model's name; else the file's, without its ending.")
@_flag(
    "--models",
    type=click.Path(file_okay=False, path_type=Path),
    default="models",
    help="Folder that the model goes into, as NAME/VERSION.",
)
@_flag(
    "--model-version",
    metavar="NEXT|N",
    default="NEXT",
    callback=_version,
    help="The version to write; NEXT is one above those that are there.",
)
@_flag("--force", is_flag=True, help="Replace the version if it exists.")
@_flag("--dry-run", is_flag=True, help="Do all but write.")
@_flag("--lstm", default="", metavar="PREFIX", help="Which LSTM, where there are several.")
@_flag(
    "--head",
    default="",
    metavar="NAMES",
    help="Linear layers after the LSTM as NAME[,relu|tanh|sigmoid,NAME]..., or none.",
)
@_flag("--embedding", default="", metavar="NAME", help="The table that turns tokens into x.")
@_flag(
    "--pre-head",
    type=click.Choice(["relu", "tanh", "none"]),
    default="none",
    help="Activation before the head.",
)
@_flag(
    "--output-activation",
    type=click.Choice(["softmax", "sigmoid", "none"]),
    default="none",
    help="Activation after the head.",
)
@_flag("--input-mean", type=FILE, help="x becomes (x - mean) / scale: .npy or one number a line.")
@_flag("--input-scale", type=FILE, help="See --input-mean; one alone is fine.")
@_flag("--output-mean", type=FILE, help="y becomes y * scale + mean.")
@_flag("--output-scale", type=FILE, help="See --output-mean; one alone is fine.")
@_flag("--golden", type=FILE, help="Pairs of your own model to prove, .npz (docs/EXPORT.md).")
def export_command(**flags: Any) -> None:
    """Turn CHECKPOINT, a trained nn.LSTM and its head, into a model folder.

    Reads .pt, .pth, .ckpt, .bin and .safetensors; runs no code in them. Proves that the exported
    model computes what torch does, and writes MODELS/NAME/VERSION.
    """
    try:
        from lstmserve_export.command import run
        from lstmserve_export.refusal import Refused
    except ModuleNotFoundError as error:
        raise MissingExtra(f"export needs {error.name}: {hint('export')}") from error
    try:
        run(**flags)
    except Refused as error:
        raise click.ClickException(str(error)) from error
