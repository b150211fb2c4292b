"""The command `lstmserve export` and its flags. Importing it does not import torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from lstmserve.extras import hint
from lstmserve.spec import WINDOW_FILLS, WINDOW_MAX
from lstmserve_export.options import FILE, FlagsOnce, MissingExtra, flag, names, target_flags

COLUMNS = "The scaler's columns to take, in this order, by name or by number from 0."
# The flags that describe a module, and those that choose among the tensors of a file.
OF_MODULES = ("module_args", "example", "states", "output_names", "axes")
OF_TENSORS = (
    *("lstm", "head", "embedding", "pre_head", "output_activation", "drop"),
    *("residual", "initial_state"),
)


def _module(ctx: click.Context, param: click.Parameter, value: str) -> tuple[Path, str] | None:
    """FILE.py and CLASS, which may have dots; None for ""."""
    if not value:
        return None
    file, _, name = value.rpartition(":")
    if not file.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        raise click.BadParameter(f"{value!r} must be FILE.py:CLASS, as in train.py:Net")
    return Path(file), name


def _files(ctx: click.Context, param: click.Parameter, value: str) -> Path | dict[str, Path] | None:
    """A file, or NAME=FILE for several, apart by commas; None for ""."""
    is_named = re.match(r"[\w.]+=", value) and not Path(value).is_file()
    parts = re.split(r",(?=[\w.]+=)", value) if is_named else []
    if not parts:
        return FILE.convert(value, param, ctx) if value else None
    return {
        name: FILE.convert(file, param, ctx)
        for name, _, file in (part.partition("=") for part in parts)
    }


def _columns(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...] | str:
    """Numbers of columns, or "all"; none for ""."""
    if value == "all":
        return value
    columns = [each.strip() for each in value.split(",")] if value else []
    if not all(each.isascii() and each.isdecimal() for each in columns):
        raise click.BadParameter(f"{value!r} must be all, or columns of x as in 0,2")
    return tuple(map(int, columns))


def _state(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> Path | tuple[str, str] | None:
    """A file that exists, or the names of two tensors."""
    if not value:
        return None
    if (path := Path(value)).is_file():
        return path
    h, _, c = (part.strip() for part in value.partition(","))
    if not h or not c or "," in c:
        raise click.BadParameter(f"{value!r} is neither a file nor the names of two tensors: H0,C0")
    return h, c


@click.command("export", cls=FlagsOnce)
@click.argument("checkpoint", type=FILE)
@target_flags
@flag(
    "--module",
    default="",
    metavar="FILE.py:CLASS",
    callback=_module,
    help="Export this nn.Module as it is, with the weights of CHECKPOINT. RUNS FILE.py.",
)
@flag(
    "--module-args",
    default="",
    metavar="JSON",
    help="What CLASS is called with: an object of keyword arguments, or a list.",
)
@flag(
    "--example",
    type=FILE,
    help="What forward() takes: .npy, or .npz with an array for each argument.",
)
@flag(
    "--states",
    default="",
    metavar="A,B",
    callback=names,
    help="Arguments of forward() that are states, if the export cannot tell.",
)
@flag(
    "--output-names",
    default="",
    metavar="A,B",
    callback=names,
    help="Names of the results of forward() without the states.",
)
@flag(
    "--axes",
    type=click.Choice(["BT", "TB", "BFT", "BCFT", "B", "T"]),
    help="Axes of the inputs, if the export cannot tell: B batch, T time, F and C features.",
)
@flag(
    "--window",
    type=click.IntRange(2, WINDOW_MAX),
    metavar="W",
    help="Answer from the last W rows alone, as a network that was trained on windows of W rows.",
)
@flag(
    "--window-fill",
    type=click.Choice(WINDOW_FILLS),
    help="For the rows that a new session lacks: wait (no answer; default), zeros, or grow.",
)
@flag("--lstm", default="", metavar="PREFIX", help="Which LSTM to export, if the file has several.")
@flag(
    "--head",
    default="",
    metavar="NAMES",
    help="Layers after the LSTM, in order: names of Linears and norms, and activations, as in "
    "fc1,norm,leaky_relu=0.2,fc2; or none.",
)
@flag(
    "--drop",
    multiple=True,
    metavar="NAMES",
    callback=names,
    help="Tensors or modules of CHECKPOINT to leave out. No tensor is left out that is not named.",
)
@flag("--embedding", default="", metavar="NAME", help="The table that turns tokens into x.")
@flag(
    "--pre-head",
    type=click.Choice(["relu", "tanh", "none"]),
    default="none",
    help="Activation before the head.",
)
@flag(
    "--output-activation",
    type=click.Choice(["softmax", "sigmoid", "none"]),
    default="none",
    help="Activation after the head.",
)
@flag(
    "--input-scaler",
    default="",
    metavar="FILE",
    callback=_files,
    help="The scaler of x: .npz, .json or neuralhydrology's .yml; NAME=FILE,... by input.",
)
@flag("--input-columns", default="", metavar="A,B", callback=names, help=COLUMNS)
@flag("--input-mean", type=FILE, help="x becomes (x - mean) / scale: .npy or one number a line.")
@flag("--input-scale", type=FILE, help="See --input-mean; one alone is fine.")
@flag("--input-min", type=FILE, help="x becomes (x - min) / range; files as of --input-mean.")
@flag("--input-range", type=FILE, help="See --input-min.")
@flag(
    "--output-scaler",
    default="",
    metavar="FILE",
    callback=_files,
    help="The scaler of y, whose inverse comes last; as --input-scaler.",
)
@flag("--output-columns", default="", metavar="A,B", callback=names, help=COLUMNS)
@flag("--output-mean", type=FILE, help="y becomes y * scale + mean.")
@flag("--output-scale", type=FILE, help="See --output-mean; one alone is fine.")
@flag("--output-min", type=FILE, help="y becomes y * range + min.")
@flag("--output-range", type=FILE, help="See --output-min.")
@flag(
    "--residual",
    default="",
    metavar="all|COLUMNS",
    callback=_columns,
    help="Columns of x that are added to the head's output, one for each output, as in 0,2.",
)
@flag(
    "--initial-state",
    metavar="F|H0,C0",
    callback=_state,
    help="h and c from which a new session begins: .npz or .pt with h0 and c0, or two tensors of "
    "CHECKPOINT by name.",
)
@flag(
    "--golden", type=FILE, help="Inputs and outputs of your model to check, .npz (docs/EXPORT.md)."
)
def export_command(**flags: Any) -> None:
    """Turn CHECKPOINT, a trained recurrent network, into a model folder.

    Reads .pt, .pth, .ckpt, .bin and .safetensors, and runs no code in them. Checks that the
    exported model computes what torch computes, and writes MODELS/NAME/VERSION.

    With --module FILE.py:CLASS the export builds your own module and serves it whole, as its
    forward() is. That runs FILE.py. Without --module CHECKPOINT must be an nn.LSTM and its head,
    and no code of yours is run.
    """
    _check_way(flags)
    try:
        from lstmserve_export.command import run
        from lstmserve_export.refusal import Refused
    except ModuleNotFoundError as error:
        raise MissingExtra(f"export needs {error.name}: {hint('export')}") from error
    try:
        run(**flags)
    except Refused as error:
        raise click.ClickException(str(error)) from error


def _check_way(flags: dict[str, Any]) -> None:
    """Raises UsageError for a flag of the way that is not taken."""
    if flags["window_fill"] is not None and flags["window"] is None:
        raise click.UsageError("--window-fill needs --window W")
    is_module = flags["module"] is not None
    for name in OF_TENSORS if is_module else OF_MODULES:
        # The default of a choice is none, and a head may be none as well.
        if flags[name] not in (None, "", ()) and (flags[name] != "none" or name == "head"):
            flag = f"--{name.replace('_', '-')}"
            if not is_module:
                raise click.UsageError(f"{flag} needs --module FILE.py:CLASS")
            advice = "make it a part of the module"
            if name == "drop":
                advice = "a note names the tensors for which the module has no place"
            raise click.UsageError(
                f"{flag} has no meaning with --module, which exports forward() as it is: {advice}"
            )
