"""Owns `lstmserve step`: CSV rows in, CSV rows out, as they come. Keeps no rows."""

from __future__ import annotations

import sys

import click

from lstmserve.cli import csvrows, options


@click.command()
@options.model
@options.target
@options.flag("--session", metavar="ID", help="Open or resume this session, and keep it.")
@options.flag("--close", is_flag=True, help="Close --session at the end.")
@options.flag("--last-only", is_flag=True, help="Print only the y of the last row.")
def step(
    model: options.ModelName,
    target: options.Target,
    session: str | None,
    close: bool,
    last_only: bool,
) -> None:
    """Stream CSV rows from stdin through a session; a row of y for each comes out at once.

    Without --session the session lasts as long as the command. With it, the next call with the
    same ID goes on where this one ended. Rows that arrive together go as one step.
    """
    keep = session is not None and not close
    with (
        options.connect(target) as client,
        client.session(
            model.name, version=model.version, id=session, if_exists="resume", keep=keep
        ) as conversation,
    ):
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
