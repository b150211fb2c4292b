"""The command `lstmserve export` and its flags. Importing it does not import torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from lstmserve.extras import hint
from lstmserve.spec import WINDOW_FILLS, WINDOW_MAX

F = TypeVar("F", bound=Callable[..., Any])
VERSION_END = 10**9
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
COLUMNS = "The scaler's columns to take, in this order, by name or by number from 0."
# The flags that describe a module, and those that choose among the tensors of a file.
OF_MODULES = ("module_args", "example", "states", "output_names", "axes")
OF_TENSORS = (
    *("lstm", "head", "embedding", "pre_head", "output_activation", "drop"),
    *("residual", "initial_state"),
)


class MissingExtra(click.ClickException):
    """torch and its companions are not installed."""

    exit_code = 2


class FlagsOnce(click.Command):
    """A command that refuses a flag which is given twice, where click takes the last in silence."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the arguments. Raises UsageError."""
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for param in given:
            is_twice = isinstance(param, click.Option) and not param.multiple
            if is_twice and given.count(param) > 1:
                raise click.UsageError(f"{param.opts[0]} is given twice: give it once", ctx)
        return super().parse_args(ctx, args)


def _flag(name: str, **attributes: Any) -> Callable[[F], F]:
    """An option --foo-bar that LSTMSERVE_FOO_BAR also sets."""
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


def _module(ctx: click.Context, param: click.Parameter, value: str) -> tuple[Path, str] | None:
    """FILE.py and CLASS, which may have dots; None for ""."""
    if not value:
        return None
    file, _, name = value.rpartition(":")
    if not file.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        raise click.BadParameter(f"{value!r} must be FILE.py:CLASS, as in train.py:Net")
    return Path(file), name


def _names(
    ctx: click.Context, param: click.Parameter, value: str | tuple[str, ...]
) -> tuple[str, ...]:
    """Names apart by commas, in one value or several; none for ""."""
    value = ",".join((value,) if isinstance(value, str) else value)
    names = tuple(name.strip() for name in value.split(",")) if value else ()
    if not all(names):
        raise click.BadParameter(f"{value!r} must be names with commas between them")
    return names


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
@_flag("--name", help="Name of the model; by default the file's name without its ending.")
@_flag(
    "--models",
    type=click.Path(file_okay=False, path_type=Path),
    default="models",
    help="Folder to write the model to, as NAME/VERSION.",
)
@_flag(
    "--model-version",
    metavar="NEXT|N",
    default="NEXT",
    callback=_version,
    help="Version to write; NEXT is one above the newest that exists.",
)
@_flag("--force", is_flag=True, help="Replace the version if it exists.")
@_flag("--dry-run", is_flag=True, help="Do everything except write.")
@_flag(
    "--module",
    default="",
    metavar="FILE.py:CLASS",
    callback=_module,
    help="Export this nn.Module as it is, with the weights of CHECKPOINT. RUNS FILE.py.",
)
@_flag(
    "--module-args",
    default="",
    metavar="JSON",
    help="What CLASS is called with: an object of keyword arguments, or a list.",
)
@_flag(
    "--example",
    type=FILE,
    help="What forward() takes: .npy, or .npz with an array for each argument.",
)
@_flag(
    "--states",
    default="",
    metavar="A,B",
    callback=_names,
    help="Arguments of forward() that are states, if the export cannot tell.",
)
@_flag(
    "--output-names",
    default="",
    metavar="A,B",
    callback=_names,
    help="Names of the results of forward() without the states.",
)
@_flag(
    "--axes",
    type=click.Choice(["BT", "TB", "BFT", "BCFT", "B", "T"]),
    help="Axes of the inputs, if the export cannot tell: B batch, T time, F and C features.",
)
@_flag(
    "--window",
    type=click.IntRange(2, WINDOW_MAX),
    metavar="W",
    help="Answer from the last W rows alone, as a network that was trained on windows of W rows.",
)
@_flag(
    "--window-fill",
    type=click.Choice(WINDOW_FILLS),
    help="For the rows that a new session lacks: wait (no answer; default), zeros, or grow.",
)
@_flag(
    "--lstm", default="", metavar="PREFIX", help="Which LSTM to export, if the file has several."
)
@_flag(
    "--head",
    default="",
    metavar="NAMES",
    help="Layers after the LSTM, in order: names of Linears and norms, and activations, as in "
    "fc1,norm,leaky_relu=0.2,fc2; or none.",
)
@_flag(
    "--drop",
    multiple=True,
    metavar="NAMES",
    callback=_names,
    help="Tensors or modules of CHECKPOINT to leave out. No tensor is left out that is not named.",
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
@_flag(
    "--input-scaler",
    default="",
    metavar="FILE",
    callback=_files,
    help="The scaler of x: .npz, .json or neuralhydrology's .yml; NAME=FILE,... by input.",
)
@_flag("--input-columns", default="", metavar="A,B", callback=_names, help=COLUMNS)
@_flag("--input-mean", type=FILE, help="x becomes (x - mean) / scale: .npy or one number a line.")
@_flag("--input-scale", type=FILE, help="See --input-mean; one alone is fine.")
@_flag("--input-min", type=FILE, help="x becomes (x - min) / range; files as of --input-mean.")
@_flag("--input-range", type=FILE, help="See --input-min.")
@_flag(
    "--output-scaler",
    default="",
    metavar="FILE",
    callback=_files,
    help="The scaler of y, whose inverse comes last; as --input-scaler.",
)
@_flag("--output-columns", default="", metavar="A,B", callback=_names, help=COLUMNS)
@_flag("--output-mean", type=FILE, help="y becomes y * scale + mean.")
@_flag("--output-scale", type=FILE, help="See --output-mean; one alone is fine.")
@_flag("--output-min", type=FILE, help="y becomes y * range + min.")
@_flag("--output-range", type=FILE, help="See --output-min.")
@_flag(
    "--residual",
    default="",
    metavar="all|COLUMNS",
    callback=_columns,
    help="Columns of x that are added to the head's output, one for each output, as in 0,2.",
)
@_flag(
    "--initial-state",
    metavar="F|H0,C0",
    callback=_state,
    help="h and c from which a new session begins: .npz or .pt with h0 and c0, or two tensors of "
    "CHECKPOINT by name.",
)
@_flag(
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
