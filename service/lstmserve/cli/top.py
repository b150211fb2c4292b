"""Owns `lstmserve top`: looks again and again, and shows it. Computes and draws nothing itself."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from lstmserve.address import host_port
from lstmserve.cli import options
from lstmserve.extras import hint

if TYPE_CHECKING:  # not in the base install
    from lstmserve.top.numbers import Numbers

NEEDED = ("prometheus_client", "rich")
SHOWN_MAX = 60  # numbers of the past, for the lines
WINDOW = 10  # looks that a rate is taken over


@click.command()
@options.flag(
    "--metrics",
    default="127.0.0.1:9464",
    show_default=True,
    metavar="HOST:PORT",
    help="The server's metrics address.",
)
@options.flag(
    "--every-s",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="Seconds from one look to the next.",
)
@click.option("--once", is_flag=True, help="Print one picture, of one --every-s, and exit.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead.")
def top(metrics: str, every_s: float, once: bool, as_json: bool) -> None:
    """Show what a server does: sessions, rows per second, latencies, batches, errors.

    Ends with Ctrl-C. Where stdout is no terminal, --once is meant unless --json is.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise click.UsageError(f"{missing[0]} is missing: {hint('top')}")
    try:
        host, port = host_port("metrics", metrics)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    looks = _looks(host, port, every_s)
    with contextlib.suppress(KeyboardInterrupt):
        if as_json:
            _lines(looks, once)
        else:
            _pictures(metrics, looks, once)


class Shown(NamedTuple):
    """After a look: numbers over the last few looks and over the last one, or what went wrong."""

    now: Numbers | None
    last: Numbers | None
    trouble: str = ""


def _looks(host: str, port: int, every_s: float) -> Iterator[Shown]:
    """For ever. Raises ClickException when the first look fails; it alone shows nothing."""
    from lstmserve.top.numbers import compare, is_same_run
    from lstmserve.top.scrape import NoAnswer, scrape

    try:
        looks = [scrape(host, port)]
    except NoAnswer as error:
        raise click.ClickException(str(error)) from error
    pause = threading.Event()
    while not pause.wait(every_s):
        try:
            look = scrape(host, port)
        except NoAnswer as error:
            yield Shown(None, None, str(error))
            continue
        if not is_same_run(looks[-1], look):
            looks = [look]
            continue
        yield Shown(compare(looks[0], look), compare(looks[-1], look))
        looks = [*looks, look][-WINDOW:]


def _lines(looks: Iterator[Shown], once: bool) -> None:
    for shown in looks:
        click.echo(json.dumps(_known(dataclasses.asdict(_must(shown)))))
        if once:
            return


def _must(shown: Shown) -> Numbers:
    """The numbers. Raises ClickException when there are none."""
    if shown.now is None:
        raise click.ClickException(shown.trouble)
    return shown.now


def _known(value: Any) -> Any:
    """JSON has no NaN and no infinity: null, and "+Inf" as Prometheus writes it."""
    if isinstance(value, dict):
        return {key: _known(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_known(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "+Inf" if math.isinf(value) else None
    return value


def _pictures(address: str, looks: Iterator[Shown], once: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from lstmserve.top.screen import screen

    console = Console()
    if once or not console.is_terminal:
        only = _must(next(looks))
        console.print(screen(address, only, [only]))
        return
    now: Numbers | None = None
    history: list[Numbers] = []
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for shown in looks:
            now = shown.now or now
            history = [*history, *([shown.last] if shown.last else [])][-SHOWN_MAX:]
            if now:
                live.update(screen(address, now, history, shown.trouble), refresh=True)
