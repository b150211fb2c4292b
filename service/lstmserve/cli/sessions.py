"""Owns `lstmserve sessions`: each subcommand is one or two calls. Keeps nothing."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import BinaryIO

import click

from lstmserve.cli import csvrows, options
from lstmserve.cli.remembered import Remembered
from lstmserve.client import SessionInfo, State

WHOLE = 1000  # characters, more than any help has
identity = click.argument("id")


class Uncut(click.Group):
    """A group whose --help shows the first sentence of each subcommand whole."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Click cuts them to a line."""
        helps = [(name, each.get_short_help_str(WHOLE)) for name, each in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(helps)


@click.group(cls=Uncut)
def sessions() -> None:
    """Look at, move and close sessions."""


@sessions.command("list")
@options.target
@options.flag("--model", metavar="NAME", help="Only of this model.")
def list_(target: options.Target, model: str | None) -> None:
    """List the open sessions."""
    with options.connect(target) as client:
        options.table(
            ("SESSION", "MODEL", "STEP", "PENDING", "EXPIRES"),
            [
                (s.id, f"{s.model}:{s.version}", s.step, s.pending_steps, f"{s.expire_time:%FT%TZ}")
                for s in client.sessions(model)
            ],
        )


@sessions.command()
@identity
@options.target
def get(id: str, target: options.Target) -> None:  # noqa: A002  # the argument's name on the command line
    """Print what the server knows of session ID."""
    with options.connect(target) as client:
        info = client.info(id)
    names = [field.name for field in fields(SessionInfo)]
    width = max(map(len, names))
    for name in names:
        click.echo(f"{name:{width}}  {getattr(info, name)}")


@sessions.command()
@identity
@options.target
def state(id: str, target: options.Target) -> None:  # noqa: A002  # as above
    """Print h and c of session ID as CSV: h or c, the layer, its values."""
    with options.connect(target) as client:
        h, c = client.attach(id).state()
    for name, part in (("h", h), ("c", c)):
        for layer, line in enumerate(csvrows.text(part).splitlines()):
            click.echo(f"{name},{layer},{line}")


@sessions.command()
@identity
@click.argument("file", type=click.File("wb", lazy=True))
@options.target
def export(id: str, file: BinaryIO, target: options.Target) -> None:  # noqa: A002  # as above
    """Write the state of session ID to FILE (- is stdout), a serialised lstmserve.v1.State."""
    with options.connect(target) as client:
        file.write(client.export(id))


@sessions.command("import")
@options.model
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@options.flag("--session", metavar="ID", help="The new session's id; else it is made.")
@options.target
def import_(
    model: options.ModelName, file: Path, session: str | None, target: options.Target
) -> None:
    """Open a session that goes on from the state in FILE, and print its id."""
    with options.connect(target) as client:
        info = client.model(model.name, version=model.version)
        try:
            state = State.from_bytes(file.read_bytes(), info)
        except ValueError as error:
            raise click.ClickException(f"{file}: {error}") from error
        opened = client.session(info.name, version=info.version, id=session, state=state)
        if session is not None:
            Remembered(target.address).put(opened.id, opened.incarnation)
        click.echo(opened.id)


@sessions.command()
@identity
@options.flag("--to", metavar="ID", help="The new session's id; else it is made.")
@options.target
def fork(id: str, to: str | None, target: options.Target) -> None:  # noqa: A002  # as above
    """Open a session that goes on from where session ID is, and print its id."""
    with options.connect(target) as client:
        opened = client.attach(id).fork(to)
        if to is not None:
            Remembered(target.address).put(opened.id, opened.incarnation)
        click.echo(opened.id)


@sessions.command()
@identity
@options.target
def close(id: str, target: options.Target) -> None:  # noqa: A002  # as above
    """Close session ID, after the steps that wait; twice is fine."""
    with options.connect(target) as client:
        client.close_session(id)
    Remembered(target.address).forget(id)
