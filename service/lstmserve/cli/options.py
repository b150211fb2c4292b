"""What the subcommands that call a server share: flags, NAME[:VERSION], connection, tables."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, TypeVar

import click
import grpc

from lstmserve.cli.csvrows import BadRow
from lstmserve.client import Client, LstmServeError
from lstmserve.client.channels import Endpoint
from lstmserve.client.checks import VERSION_MAX

Function = TypeVar("Function", bound=Callable[..., Any])
_ADVICE = {
    "BAD_TOKEN": "give yours with --token or LSTMSERVE_TOKEN",
    "UNAVAILABLE": "--target or LSTMSERVE_TARGET names the server",
    "MODEL_NOT_STEPPABLE": "run `lstmserve predict`",
    "MODEL_NOT_FOUND": "`lstmserve models` lists all",
    "SESSION_NOT_FOUND": "`lstmserve sessions list` lists all",
    "SESSION_EXISTS": "name another id, or run `lstmserve sessions close` first",
}


def flag(name: str, **attributes: Any) -> Callable[[Function], Function]:
    """An option --foo-bar that LSTMSERVE_FOO_BAR also sets."""
    variable = "LSTMSERVE_" + name.removeprefix("--").upper().replace("-", "_")
    return click.option(name, envvar=variable, show_envvar=True, **attributes)


def endpoint(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the flags of an Endpoint, which the function gets as `endpoint`."""

    @flag(
        "--target",
        default="127.0.0.1:50051",
        show_default=True,
        metavar="HOST:PORT",
        help="Address of the server.",
    )
    @flag("--token", help="Your tenant's token; the variable keeps it out of the process list.")
    @flag("--tls", is_flag=True, help="Use TLS, and trust the system's authorities.")
    @flag(
        "--tls-root",
        type=click.File("rb"),
        help="Use TLS, and trust these authorities instead, in PEM.",
    )
    @flag("--tls-client-cert", type=click.File("rb"), help="Your certificate chain in PEM.")
    @flag("--tls-client-key", type=click.File("rb"), help="Your certificate's key in PEM.")
    @functools.wraps(function)
    def call(
        target: str,
        token: str | None,
        tls: bool,
        tls_root: BinaryIO | None,
        tls_client_cert: BinaryIO | None,
        tls_client_key: BinaryIO | None,
        **others: Any,
    ) -> None:
        if (tls_client_cert is None) != (tls_client_key is None):
            raise click.UsageError("--tls-client-cert and --tls-client-key go together")
        root, key, cert = (
            None if file is None else file.read()
            for file in (tls_root, tls_client_key, tls_client_cert)
        )
        is_tls = tls or root is not None or cert is not None
        credentials = grpc.ssl_channel_credentials(root, key, cert) if is_tls else False
        try:
            found = Endpoint(target, token, credentials)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        function(endpoint=found, **others)

    return call


class ModelName(NamedTuple):
    """A model and its version; None is the newest."""

    name: str
    version: int | None


class ModelType(click.ParamType[ModelName]):
    """The argument NAME or NAME:VERSION."""

    name = "NAME[:VERSION]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> ModelName:
        """Fails if the version is not a whole number >= 1."""
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
def connect(endpoint: Endpoint) -> Iterator[Client]:
    """A client whose errors end the command with one line and exit code 1."""
    try:
        with Client(endpoint.target, token=endpoint.token, tls=endpoint.tls) as client:
            yield client
    except BadRow as error:
        raise click.ClickException(_line(str(error))) from error
    except LstmServeError as error:
        raise click.ClickException(explain(error)) from error


def explain(error: LstmServeError) -> str:
    """One line: the server's message, and what to do about it in a shell."""
    reason = error.reason or error.code.name
    advice = f"; {_ADVICE[reason]}" if reason in _ADVICE else ""
    return _line(f"{error.message}{advice} ({reason})")


def _line(text: str) -> str:
    return " ".join(text.split())


def stdin() -> int:
    """The descriptor of standard input. Raises ClickException where it is closed."""
    if sys.stdin is None:
        raise click.ClickException("standard input is closed")
    return sys.stdin.fileno()


def table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Prints columns, each as wide as its widest cell."""
    cells = [list(header), *([str(cell) for cell in line] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())
