"""Owns `lstmserve token`: makes a token and keeps nothing of it."""

from __future__ import annotations

import click

from lstmserve.tokens import make_token


@click.command()
@click.argument("tenant")
def token(tenant: str) -> None:
    """Make a token of TENANT: its line for the tokens file on stdout, the token on stderr.

    `lstmserve token acme >> tokens` enters it; the token is shown this once.
    """
    try:
        made, line = make_token(tenant)
    except ValueError as error:
        raise click.UsageError(f"TENANT is {error}") from error
    click.echo(f"token, shown this once: {made}", err=True)
    click.echo(line)
