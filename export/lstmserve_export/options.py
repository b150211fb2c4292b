"""What the commands export and import have in common: kinds of flags, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
VERSION_END = 10**9
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class MissingExtra(click.ClickException):
    """A library that the command needs is not installed."""

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


def flag(name: str, **attributes: Any) -> Callable[[F], F]:
    """An option --foo-bar that LSTMSERVE_FOO_BAR also sets."""
    variable = "LSTMSERVE_" + name.removeprefix("--").upper().replace("-", "_")
    return click.option(
        name, envvar=variable, show_default=bool(attributes.get("default")), **attributes
    )


def version(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """An integer >= 1, or None for NEXT."""
    if value == "NEXT":
        return None
    if value.isascii() and value.isdecimal() and 1 <= int(value) < VERSION_END:
        return int(value)
    raise click.BadParameter(f"{value!r} is neither NEXT nor in [1, {VERSION_END - 1}]")


def names(
    ctx: click.Context, param: click.Parameter, value: str | tuple[str, ...]
) -> tuple[str, ...]:
    """Names apart by commas, in one value or several; none for ""."""
    value = ",".join((value,) if isinstance(value, str) else value)
    found = tuple(name.strip() for name in value.split(",")) if value else ()
    if not all(found):
        raise click.BadParameter(f"{value!r} must be names with commas between them")
    return found


def target_flags(command: F) -> F:
    """Adds the flags that say where the model goes."""
    flags = (
        flag("--name", help="Name of the model; by default the file's name without its ending."),
        flag(
            "--models",
            type=click.Path(file_okay=False, path_type=Path),
            default="models",
            help="Folder to write the model to, as NAME/VERSION.",
        ),
        flag(
            "--model-version",
            metavar="NEXT|N",
            default="NEXT",
            callback=version,
            help="Version to write; NEXT is one above the newest that exists.",
        ),
        flag("--force", is_flag=True, help="Replace the version if it exists."),
        flag("--dry-run", is_flag=True, help="Do everything except write."),
    )
    for each in reversed(flags):
        command = each(command)
    return command
