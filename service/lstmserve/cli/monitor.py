"""`lstmserve health` checks a server once; `lstmserve top` shows its metrics until it is stopped.

top/numbers.py computes what top shows, and top/screen.py draws it.
"""

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
import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from lstmserve.address import host_port
from lstmserve.cli import options
from lstmserve.client.channels import Endpoint
from lstmserve.client.status import from_rpc
from lstmserve.extras import hint

if TYPE_CHECKING:  # not in the base install
    from lstmserve.top.numbers import Numbers

STATES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
TIMEOUT_S = 10.0
NEEDED = ("prometheus_client", "rich")
HISTORY_MAX = 60  # samples in a sparkline
WINDOW = 10  # samples that a rate is taken over


@click.command()
@options.endpoint
@options.flag(
    "--service", default="", metavar="NAME", help="Check one gRPC service instead of the server."
)
def health(endpoint: Endpoint, service: str) -> None:
    """Print SERVING and exit 0 if the server is ready, else exit 1."""
    state = check(endpoint, service)
    if state != "SERVING":
        raise click.ClickException(state)
    click.echo(state)


def check(endpoint: Endpoint, service: str) -> str:
    """The state of `service`, "" for the server. Raises ClickException if no server answers.

    It uses no proxy, because an image's health check must not depend on one.

    HealthCheckRequest {string service = 1} and its reply {enum status = 1} have the wire form of
    StringValue and Int32Value, which saves the base install a package of stubs.
    """
    with endpoint.open_channel(grpc, uses_proxy=False) as channel:
        stub = channel.unary_unary(
            "/grpc.health.v1.Health/Check", StringValue.SerializeToString, Int32Value.FromString
        )
        try:
            status = stub(StringValue(value=service), timeout=TIMEOUT_S).value
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise click.ClickException(
                    f"the server has no service {service!r} (NOT_FOUND)"
                ) from error
            raise click.ClickException(options.explain(from_rpc(error))) from error
    return STATES[status] if 0 <= status < len(STATES) else f"state {status}"


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
    help="Seconds between two samples.",
)
@click.option("--once", is_flag=True, help="Print one picture, of the first --every-s, and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead, one object a line.")
def top(metrics: str, every_s: float, once: bool, as_json: bool) -> None:
    """Show the metrics of a server: sessions, rows per second, latencies, batches, errors.

    Runs until Ctrl-C. If stdout is not a terminal, --once is the default, except with --json.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise click.UsageError(f"{missing[0]} is missing: {hint('top')}")
    try:
        host, port = host_port("metrics", metrics)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    samples = _samples(host, port, every_s)
    with contextlib.suppress(KeyboardInterrupt):
        if as_json:
            _print_json(samples, once)
        else:
            _draw(metrics, samples, once)


class Sample(NamedTuple):
    """Numbers over the last few scrapes and over the last one, or what went wrong."""

    now: Numbers | None
    last: Numbers | None
    trouble: str = ""


def _samples(host: str, port: int, every_s: float) -> Iterator[Sample]:
    """A sample after each scrape but the first, without end.

    Raises ClickException if the first scrape fails.
    """
    from lstmserve.top.numbers import NoAnswer, compare, is_same_run, scrape

    try:
        scrapes = [scrape(host, port)]
    except NoAnswer as error:
        raise click.ClickException(str(error)) from error
    pause = threading.Event()
    while not pause.wait(every_s):
        try:
            latest = scrape(host, port)
        except NoAnswer as error:
            yield Sample(None, None, str(error))
            continue
        if not is_same_run(scrapes[-1], latest):
            scrapes = [latest]
            continue
        yield Sample(compare(scrapes[0], latest), compare(scrapes[-1], latest))
        scrapes = [*scrapes, latest][-WINDOW:]


def _print_json(samples: Iterator[Sample], once: bool) -> None:
    for sample in samples:
        click.echo(json.dumps(_json_value(dataclasses.asdict(_numbers(sample)))))
        if once:
            return


def _numbers(sample: Sample) -> Numbers:
    """The sample's numbers. Raises ClickException if it has none."""
    if sample.now is None:
        raise click.ClickException(sample.trouble)
    return sample.now


def _json_value(value: Any) -> Any:
    """Replaces what JSON lacks: NaN becomes null, infinity "+Inf" as Prometheus writes it."""
    if isinstance(value, dict):
        return {key: _json_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "+Inf" if math.isinf(value) else None
    return value


def _draw(address: str, samples: Iterator[Sample], once: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from lstmserve.top.screen import render

    console = Console()
    if once or not console.is_terminal:
        only = _numbers(next(samples))
        console.print(render(address, only, [only]))
        return
    now: Numbers | None = None
    history: list[Numbers] = []
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for sample in samples:
            now = sample.now or now
            history = [*history, *([sample.last] if sample.last else [])][-HISTORY_MAX:]
            if now:
                live.update(render(address, now, history, sample.trouble), refresh=True)
