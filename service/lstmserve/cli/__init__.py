"""The `lstmserve` command: its subcommands by name, and how it exits. Does none of their work.

It imports the module of a subcommand when that is called, so that no subcommand pays for the
imports of another.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType
from typing import Final

import click

# Where each subcommand is, and its line in --help, which imports none of them.
COMMANDS: Final = {
    "export": ("lstmserve_export.cli:export_command", "Turn a checkpoint into a verified model."),
    "import": (
        "lstmserve_export.import_cli:import_command",
        "Turn an ONNX file that any tool made into a verified model.",
    ),
    "serve": ("lstmserve.cli.serve:serve", "Serve a folder of models over gRPC."),
    "token": ("lstmserve.cli.serve:token", "Make a token for a tenant of a server with --tokens."),
    "models": ("lstmserve.cli.models:models", "List the models that a server serves."),
    "step": (
        "lstmserve.cli.sessions:step",
        "Send CSV rows through a session, and print y for each.",
    ),
    "predict": (
        "lstmserve.cli.models:predict",
        "Run whole CSV sequences; the server keeps no state.",
    ),
    "sessions": ("lstmserve.cli.sessions:sessions", "List, inspect, move and close sessions."),
    "top": ("lstmserve.cli.monitor:top", "Watch the metrics of a server."),
    "health": ("lstmserve.cli.monitor:health", "Check whether a server is ready."),
    "proto": ("lstmserve.cli.proto:proto", "Write the .proto files, to build other clients from."),
}
_INTERRUPTED = 130  # 128 + SIGINT, the exit code that shells use


class Commands(click.Group):
    """The subcommands of COMMANDS, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Keeps the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists them in --help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Commands)
@click.version_option(package_name="lstmserve")
def commands() -> None:
    """Serve trained LSTMs: you send x and get y, and the server keeps each session's state."""


def main() -> None:
    """The console script. Exits with 0: done, 1: refused or failed, 2: bad usage or value.

    SIGTERM and SIGHUP (a terminal that closes) end it as Ctrl-C does, and it closes what is open.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP, and so does this
            signal.signal(number, _end)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC would add lines to our one-line errors
    try:
        code = commands.main(prog_name="lstmserve", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        code = _INTERRUPTED
    except OSError as error:  # a full disk behind > or -, mostly
        click.echo(f"Error: {_named(error)}", err=True)
        code = 1
        # Python would try to write the rest at its end, and report the error a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def _end(number: int, _: FrameType | None) -> None:
    """Raises SystemExit once; the next signal ends the process at once."""
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


def _named(error: OSError) -> str:
    what = "output" if error.filename is None else error.filename
    return f"{what}: {error.strerror or error}"
