"""Owns `lstmserve step`: CSV rows in, CSV rows out, as they come. Keeps no rows."""

from __future__ import annotations

import sys

import click

from lstmserve.cli import csvrows, options
from lstmserve.cli.remembered import Remembered
from lstmserve.client import Client, Session
from lstmserve.errors import (
    LstmServeError,
    SessionClosed,
    SessionExpired,
    SessionLost,
    SessionNotFound,
    SessionReplaced,
)
from lstmserve.reasons import REASONS


@click.command()
@options.model
@options.target
@options.flag("--session", metavar="ID", help="Open or resume this session, and keep it.")
@options.flag(
    "--if-lost",
    type=click.Choice(["fail", "new"]),
    default="fail",
    show_default=True,
    help="When the session that an earlier call had is gone: exit 1, or go on from zeros.",
)
@options.flag("--close", is_flag=True, help="Close --session at the end.")
@options.flag("--last-only", is_flag=True, help="Print only the y of the last row.")
def step(
    model: options.ModelName,
    target: options.Target,
    session: str | None,
    if_lost: str,
    close: bool,
    last_only: bool,
) -> None:
    """Stream CSV rows from stdin through a session; a row of y for each comes out at once.

    Without --session the session lasts as long as the command. With it, the next call with the
    same ID goes on where this one ended, or exits 1 where the server lost it: which ones there
    were is kept in $XDG_STATE_HOME/lstmserve. Rows that arrive together go as one step.
    """
    with options.connect(target) as client:
        if session is None:
            with client.session(model.name, version=model.version) as conversation:
                _stream(conversation, last_only)
            return
        remembered = Remembered(target.address)
        conversation = _open(client, model, session, remembered, may_be_new=if_lost == "new")
        remembered.put(session, conversation.incarnation)
        try:
            _stream(conversation, last_only)
        finally:
            if close:
                conversation.close()
                remembered.forget(session)


def _open(
    client: Client,
    model: options.ModelName,
    session_id: str,
    remembered: Remembered,
    *,
    may_be_new: bool,
) -> Session:
    """Resumes the session of that id, or opens it. Raises an error that says how to go on.

    That is SessionLost, SessionExpired, SessionClosed or SessionReplaced, when an earlier call of
    this shell had a session that is not there any more, unless it `may_be_new`.
    """
    known = None if may_be_new else remembered.get(session_id)
    if known is not None:
        _check(client, session_id, known)
    return client.session(
        model.name, version=model.version, id=session_id, if_exists="resume", keep=True
    )


def _check(client: Client, session_id: str, incarnation: int) -> None:
    """Raises as _open when the session of this incarnation is not there."""
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
    advice = "nothing was stepped; --if-lost new goes on without it"
    text = f"the session of the last call is gone: {why}; {advice}"
    return kind(text, code=REASONS[reason].code, reason=reason)


def _stream(conversation: Session, last_only: bool) -> None:
    """Steps the rows of standard input to its end. Raises BadRow, after the rows before it."""
    last = None
    row_count = 0
    try:
        for x in csvrows.arriving(options.stdin(), conversation.model_info):
            last = conversation.step(x, return_sequences=not last_only)
            row_count += len(x)
            if not last_only:
                _print(csvrows.text(last))
    except csvrows.BadRow as error:
        raise csvrows.BadRow(f"{error}; {row_count} rows before it were stepped") from None
    finally:
        if last_only and last is not None:
            _print(csvrows.text(last[None]))


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
