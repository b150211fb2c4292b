"""Owns what the subcommands of a client share: flags, NAME[:VERSION], the connection, tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import click

from lstmserve.cli.csvrows import BadRow
from lstmserve.client import Client, LstmServeError

Function = TypeVar("Function", bound=Callable[..., Any])
VERSION_MAX = 2**31 - 1


def flag(name: str, **attributes: Any) -> Callable[[Function], Function]:
    """An option --foo-bar that LSTMSERVE_FOO_BAR sets too."""
    variable = "LSTMSERVE_" + name.removeprefix("--").upper().replace("-", "_")
    return click.option(name, envvar=variable, show_envvar=True, **attributes)


target = flag(
    "--target",
    default="127.0.0.1:50051",
    show_default=True,
    metavar="HOST:PORT",
    help="The server.",
)


class ModelName(NamedTuple):
    """A model; version None is the newest."""

    name: str
    version: int | None


class ModelType(click.ParamType[ModelName]):
    """NAME or NAME:VERSION."""

    name = "NAME[:VERSION]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> ModelName:
        """Fails for a version that is no whole number >= 1."""
        name, colon, version = str(value).partition(":")
        if not name:
            self.fail(f"{value!r} names no model", param, ctx)
        if not colon:
            return ModelName(name, None)
        if not (version.isascii() and version.isdecimal() and 1 <= int(version) <= VERSION_MAX):
            self.fail(
                f"version is {version!r}, must be a whole number in [1, {VERSION_MAX}]", param, ctx
            )
        return ModelName(name, int(version))


model = click.argument("model", type=ModelType(), metavar="NAME[:VERSION]")


@contextmanager
def connect(target: str) -> Iterator[Client]:
    """A client; what goes wrong is told in one line, exit 1."""
    try:
        with Client(target) as client:
            yield client
    except (LstmServeError, BadRow) as error:
        raise click.ClickException(" ".join(str(error).split())) from error


def table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Prints columns, each as wide as its widest cell."""
    cells = [list(header), *([str(cell) for cell in line] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())
