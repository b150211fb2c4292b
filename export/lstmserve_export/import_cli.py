"""The command `lstmserve import` and its flags. It needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click

from lstmserve.extras import hint
from lstmserve.spec import WINDOW_MAX
from lstmserve_export.options import FILE, FlagsOnce, MissingExtra, flag, names, target_flags

NO_AXIS: Final = "none"


def _pairs(
    ctx: click.Context, param: click.Parameter, value: str | tuple[str, ...]
) -> dict[str, str]:
    """NAME=VALUE, several times."""
    return _split((value,) if isinstance(value, str) else value, "NAME=VALUE")


def _split(texts: Iterable[str], form: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in texts:
        name, equals, text = each.rpartition("=")
        if not equals or not name or not text:
            raise click.BadParameter(f"{each!r} must be {form}")
        if name in found:
            raise click.BadParameter(f"{name} is given twice: give it once")
        found[name] = text
    return found


def _axes(
    ctx: click.Context, param: click.Parameter, value: str | tuple[str, ...]
) -> dict[str, int | None]:
    """NAME=AXIS or NAME=none, several times or with commas; `none` alone is for every tensor, by
    the name ""."""
    texts = names(ctx, param, value)
    found: dict[str, int | None] = {}
    form = "NAME=AXIS, NAME=none or none"
    for name, text in _split((each for each in texts if each != NO_AXIS), form).items():
        if text != NO_AXIS and not (text.isascii() and text.isdecimal()):
            raise click.BadParameter(f"{name}={text} must be an axis from 0, or none")
        found[name] = None if text == NO_AXIS else int(text)
    return found | ({"": None} if NO_AXIS in texts else {})


def _states(
    ctx: click.Context, param: click.Parameter, value: str | tuple[str, ...]
) -> tuple[str, ...]:
    """IN:OUT, several times or with commas."""
    found = names(ctx, param, value)
    for each in found:
        before, _, after = each.partition(":")
        if not before or not after:
            raise click.BadParameter(f"{each!r} must be IN:OUT, an input and an output of the file")
    return found


def _bytes(ctx: click.Context, param: click.Parameter, value: float | None) -> int | None:
    """Bytes of GiB."""
    return None if value is None else int(value * (1 << 30))


@click.command("import", cls=FlagsOnce)
@click.argument("file", type=FILE, metavar="MODEL.onnx")
@target_flags
@flag(
    "--state",
    multiple=True,
    metavar="IN:OUT",
    callback=_states,
    help="An input that is a state, and the output that has it after the step; by default found.",
)
@flag(
    "--input",
    multiple=True,
    metavar="NAME",
    callback=names,
    help="An input to serve; by default each that is neither a state nor a constant.",
)
@flag(
    "--output",
    multiple=True,
    metavar="NAME",
    callback=names,
    help="An output to serve, in this order; by default each that is no state.",
)
@flag(
    "--constant",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_pairs,
    help="An input that has this value in every step, as in sr=16000.",
)
@flag(
    "--batch-axis",
    multiple=True,
    metavar="NAME=AXIS|none",
    callback=_axes,
    help="The axis of a tensor along which sessions lie, from 0, or none; by default found. none "
    "alone: one session a run.",
)
@flag(
    "--rows",
    type=click.IntRange(1),
    metavar="N",
    help="Rows of an input that one step takes, such as the samples of a frame; by default 1.",
)
@flag(
    "--window",
    type=click.IntRange(2, WINDOW_MAX),
    metavar="W",
    help="Of a file without states: answer each row from the last W rows.",
)
@flag(
    "--window-fill",
    type=click.Choice(["wait", "zeros"]),
    help="For the rows that a new session lacks: wait (no answer; default) or zeros.",
)
@flag(
    "--initial-state",
    type=FILE,
    metavar="F",
    help="The states from which a new session begins, .npz with an array by name; default zeros.",
)
@flag(
    "--golden",
    type=FILE,
    metavar="F",
    help="Your own inputs and outputs to check, .npz (docs/IMPORT.md).",
)
@flag(
    "--memory-limit",
    type=click.FloatRange(0.5),
    metavar="GIB",
    callback=_bytes,
    help="Memory that the import may take; by default 4 GiB and 32 times the file.",
)
@flag(
    "--time-limit",
    type=click.FloatRange(1),
    metavar="S",
    help="Seconds that the import may take; by default 600 and one for each MiB.",
)
def import_command(**flags: Any) -> None:
    """Turn MODEL.onnx, which any tool may have made, into a model folder.

    Finds the states and the axes of batch and time, checks that the served model answers as
    onnxruntime does for the file alone, and writes MODELS/NAME/VERSION. The server then runs the
    graph as it is in the file: import only files that you trust. The file is read in a process of
    its own, with limits.
    """
    if flags["window_fill"] is not None and flags["window"] is None:
        raise click.UsageError("--window-fill needs --window W")
    try:
        from lstmserve_export.import_run import run
        from lstmserve_export.refusal import Refused
    except ModuleNotFoundError as error:
        raise MissingExtra(f"import needs {error.name}: {hint('cpu')}") from error
    file: Path = flags.pop("file")
    try:
        run(file, **flags)
    except Refused as error:
        raise click.ClickException(str(error)) from error
