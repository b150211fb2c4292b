"""`lstmserve step` sends CSV rows through a session; `lstmserve sessions` inspects and moves them.

Neither keeps rows or states. known_sessions.py remembers which sessions the user has opened.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import BinaryIO

import click
import numpy as np

from lstmserve.cli import csvrows, options
from lstmserve.cli.known_sessions import KnownSessions
from lstmserve.client import Client, Session, SessionInfo, State
from lstmserve.client.channels import Endpoint
from lstmserve.errors import (
    LstmServeError,
    SessionClosed,
    SessionExpired,
    SessionLost,
    SessionNotFound,
    SessionReplaced,
)
from lstmserve.reasons import REASONS

WHOLE = 1000  # characters, more than any help text has
identity = click.argument("id")


@click.command()
@options.model
@options.endpoint
@options.flag("--session", metavar="ID", help="Open or resume the session ID, and keep it open.")
@options.flag(
    "--if-lost",
    type=click.Choice(["fail", "new"]),
    default="fail",
    show_default=True,
    help="If the session of an earlier call is gone: exit 1, or go on from the initial state.",
)
@options.flag("--close", is_flag=True, help="Close --session at the end.")
@options.flag("--last-only", is_flag=True, help="Print only the y of the last row.")
def step(
    model: options.ModelName,
    endpoint: Endpoint,
    session: str | None,
    if_lost: str,
    close: bool,
    last_only: bool,
) -> None:
    """Send CSV rows from stdin through a session, and print a row of y for each at once.

    Without --session the session ends with the command. With it, the next call with the same ID
    continues where this one ended, or exits 1 if the server has lost the session. To notice that,
    the command remembers sessions in $XDG_STATE_HOME/lstmserve. Rows that arrive together go as
    one step. A row without a y, where the model waits for a whole window, prints empty fields.
    """
    with options.connect(endpoint) as client:
        if session is None:
            with client.session(model.name, version=model.version) as conversation:
                _stream(conversation, last_only)
            return
        known = KnownSessions(endpoint.target)
        conversation = _open(client, model, session, known, may_be_new=if_lost == "new")
        known.put(session, conversation.incarnation)
        try:
            _stream(conversation, last_only)
        finally:
            if close:
                conversation.close()
                known.forget(session)


def _open(
    client: Client,
    model: options.ModelName,
    session_id: str,
    known: KnownSessions,
    *,
    may_be_new: bool,
) -> Session:
    """Resumes the session of that id, or opens it.

    Unless it `may_be_new`, raises SessionLost, SessionExpired, SessionClosed or SessionReplaced if
    the session that an earlier command opened is gone. The error says how to go on.
    """
    incarnation = None if may_be_new else known.get(session_id)
    if incarnation is not None:
        _check(client, session_id, incarnation)
    return client.session(
        model.name, version=model.version, id=session_id, if_exists="resume", keep=True
    )


def _check(client: Client, session_id: str, incarnation: int) -> None:
    """Raises _open's errors unless the session has this incarnation."""
    try:
        found = client.attach(session_id)
    except SessionNotFound:
        raise _gone(
            SessionLost, "SESSION_LOST", "the server restarted without --store, or dropped it"
        ) from None
    except (SessionClosed, SessionExpired, SessionLost) as error:
        raise _gone(type(error), error.reason, error.message) from None
    if found.incarnation != incarnation:
        raise _gone(
            SessionReplaced, "SESSION_REPLACED", "the id was opened again, from another state"
        )


def _gone(kind: type[LstmServeError], reason: str, why: str) -> LstmServeError:
    advice = "no row was stepped; --if-lost new starts a new session"
    text = f"the session of an earlier command is gone: {why}; {advice}"
    return kind(text, code=REASONS[reason].code, reason=reason)


def _stream(conversation: Session, last_only: bool) -> None:
    """Steps all rows of standard input. Raises BadRow once the rows before the bad one are done."""
    last = None
    row_count, model = 0, conversation.model_info
    try:
        for x in csvrows.arriving(options.stdin(), model):
            last = conversation.step(x, return_sequences=not last_only)
            row_count += csvrows.count(x)
            if not last_only:
                _print(csvrows.lines(model, last, csvrows.count(x)))
    except csvrows.BadRow as error:
        raise csvrows.BadRow(f"{error}; {row_count} rows before it were stepped") from None
    finally:
        if last_only and row_count:
            _print(csvrows.lines(model, csvrows.first_axis(last), 1))


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class FullHelpGroup(click.Group):
    """A group whose --help shows the first sentence of each subcommand whole."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Overrides click's method, which cuts them to one line."""
        helps = [(name, each.get_short_help_str(WHOLE)) for name, each in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(helps)


@click.group(cls=FullHelpGroup)
def sessions() -> None:
    """List, inspect, move and close sessions."""


@sessions.command("list")
@options.endpoint
@options.flag("--model", metavar="NAME", help="Only the sessions of this model.")
def list_(endpoint: Endpoint, model: str | None) -> None:
    """List the open sessions."""
    with options.connect(endpoint) as client:
        options.table(
            ("SESSION", "MODEL", "STEP", "PENDING", "EXPIRES"),
            [
                (s.id, f"{s.model}:{s.version}", s.step, s.pending_steps, f"{s.expire_time:%FT%TZ}")
                for s in client.sessions(model)
            ],
        )


@sessions.command()
@identity
@options.endpoint
def get(id: str, endpoint: Endpoint) -> None:  # noqa: A002  # the argument's name on the command line
    """Print what the server knows about session ID."""
    with options.connect(endpoint) as client:
        info = client.info(id)
    names = [field.name for field in fields(SessionInfo)]
    width = max(map(len, names))
    for name in names:
        click.echo(f"{name:{width}}  {getattr(info, name)}")


@sessions.command()
@identity
@options.endpoint
def state(id: str, endpoint: Endpoint) -> None:  # noqa: A002  # as above
    """Print the states of session ID as CSV: the name, the row in it, its values.

    For an nn.LSTM that is h or c, the layer, and its values. For a model with a window it is
    x.window, the row, the oldest first, and its values; then window.length, how many of the rows
    the session has given. A bool is 0 or 1.
    """
    with options.connect(endpoint) as client:
        found = client.attach(id).state()
    for name, values in found.tensors.items():
        numbers = values.astype(np.int64) if values.dtype == bool else values
        rows = numbers.reshape(-1, values.shape[-1] if values.ndim else 1)
        for i, line in enumerate(csvrows.text(rows).splitlines()):
            click.echo(f"{name},{i},{line}")


@sessions.command()
@identity
@click.argument("file", type=click.File("wb", lazy=True))
@options.endpoint
def export(id: str, file: BinaryIO, endpoint: Endpoint) -> None:  # noqa: A002  # as above
    """Write the state of session ID to FILE (- is stdout), as a serialised lstmserve.v1.State."""
    with options.connect(endpoint) as client:
        file.write(client.export(id))


@sessions.command("import")
@options.model
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@options.flag(
    "--session", metavar="ID", help="Id of the new session; by default the server chooses it."
)
@options.endpoint
def import_(model: options.ModelName, file: Path, session: str | None, endpoint: Endpoint) -> None:
    """Open a session that starts from the state in FILE, and print its id."""
    with options.connect(endpoint) as client:
        info = client.model(model.name, version=model.version)
        try:
            state = State.from_bytes(file.read_bytes(), info)
        except ValueError as error:
            raise click.ClickException(f"{file}: {error}") from error
        opened = client.session(info.name, version=info.version, id=session, state=state)
        if session is not None:
            KnownSessions(endpoint.target).put(opened.id, opened.incarnation)
        click.echo(opened.id)


@sessions.command()
@identity
@options.flag("--to", metavar="ID", help="Id of the new session; by default the server chooses it.")
@options.endpoint
def fork(id: str, to: str | None, endpoint: Endpoint) -> None:  # noqa: A002  # as above
    """Open a session that starts from the state of session ID, and print its id."""
    with options.connect(endpoint) as client:
        opened = client.attach(id).fork(to)
        if to is not None:
            KnownSessions(endpoint.target).put(opened.id, opened.incarnation)
        click.echo(opened.id)


@sessions.command()
@identity
@options.endpoint
def close(id: str, endpoint: Endpoint) -> None:  # noqa: A002  # as above
    """Close session ID after its waiting steps. Closing it again is no error."""
    with options.connect(endpoint) as client:
        client.close_session(id)
    KnownSessions(endpoint.target).forget(id)
