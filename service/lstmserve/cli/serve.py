"""`lstmserve serve` and `lstmserve token`: the commands of a server's operator.

Every setting of Config is one flag and one environment variable. This module imports the server
only to run it, because the base install lacks it. No command here calls a server or keeps a token.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import Field
from pathlib import Path
from typing import Any

import click

from lstmserve.config import GROUPS, Config, Setting, settings
from lstmserve.extras import hint, missing_modules
from lstmserve.tokens import make_token

PREFIX = "LSTMSERVE_"
CLIENT_VARIABLES = {"LSTMSERVE_TARGET"}  # the client's, often set in the same shell


def _type(setting: Setting) -> click.ParamType[Any]:
    if setting.choices:
        return click.Choice(setting.choices)
    if setting.kind is int and setting.low is not None and setting.high is not None:
        return click.IntRange(int(setting.low), int(setting.high))
    if setting.kind is float:
        return click.FloatRange(setting.low, setting.high)
    return click.Path(path_type=Path) if setting.kind is Path else click.STRING


def _option(field: Field[Any]) -> click.Option:
    setting: Setting = field.metadata["setting"]
    flag = "--" + field.name.replace("_", "-")
    is_flag = setting.kind is bool
    return click.Option(
        [f"{flag}/--no-{flag[2:]}" if is_flag else flag],
        type=click.BOOL if is_flag else _type(setting),
        default=field.default,
        help=setting.help,
        show_default=field.default is not None,
        envvar=PREFIX + field.name.upper(),
        show_envvar=True,
    )


def _serve(**values: Any) -> None:
    if missing := missing_modules():
        raise click.UsageError(f"{missing[0]} is missing: {hint('cpu', 'gpu')}; gpu is for CUDA")
    try:
        config = Config(**values)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    sys.exit(_run(config))


def _run(config: Config) -> int:
    # Process 1 of a container has no default action: it would ignore SIGTERM before Ready.
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda received, _: os._exit(128 + received))
    # Before the first import of grpc, whose own lines on stderr are not in the form of our logs.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        import structlog

        from lstmserve.server import server
        from lstmserve.server.machine import BadSetting
        from lstmserve.server.observe import logs
    except (ImportError, MemoryError) as error:  # too little memory for a library, mostly
        line = " ".join(str(error).split())
        raise click.ClickException(f"a library cannot be loaded: {line}") from error

    logs.configure(config.log)
    for name in _unknown_variables():
        structlog.get_logger().warning("unknown environment variable", name=name)
    try:
        return server.run(config)
    except BadSetting as error:
        raise click.UsageError(str(error)) from error
    except server.REFUSALS as error:
        raise click.ClickException(str(error)) from error


def _unknown_variables() -> list[str]:
    """Variables to warn about. Kubernetes sets LSTMSERVE_PORT for a Service named lstmserve."""
    known = {parameter.envvar for parameter in serve.params} | CLIENT_VARIABLES
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)


class GroupedHelpCommand(click.Command):
    """A command whose --help shows its flags in the groups of Config."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes a section for each group, and one for flags that are no settings."""
        helps = {each.name: each.get_help_record(ctx) for each in self.get_params(ctx)}
        groups = dict(GROUPS)
        settled = {name for names in GROUPS.values() for name in names}
        groups["Other"] = tuple(name for name in helps if name and name not in settled)
        for title, names in groups.items():
            with formatter.section(title):
                formatter.write_dl([record for name in names if (record := helps[name])])


serve = GroupedHelpCommand(
    "serve",
    callback=_serve,
    help="Serve the models of a folder over gRPC until SIGTERM. A second SIGTERM ends it at once.",
    params=[_option(field) for field in settings().values()],
)


@click.command()
@click.argument("tenant")
def token(tenant: str) -> None:
    """Make a token for TENANT: its line for the tokens file on stdout, the token on stderr.

    `lstmserve token acme >> tokens` adds the line to the file. The token is shown only once.
    """
    try:
        made, line = make_token(tenant)
    except ValueError as error:
        raise click.UsageError(f"TENANT is {error}") from error
    click.echo(f"token, shown this once: {made}", err=True)
    click.echo(line)
