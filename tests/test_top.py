"""`lstmserve top`: its numbers against the server's, its picture in a terminal, its refusals."""

from __future__ import annotations

import http.server
import json
import math
import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from lstmserve import Client
from lstmserve.server.observe.http import HttpServer
from lstmserve.server.observe.metrics import Metrics
from lstmserve.top import screen
from lstmserve.top.numbers import compare, quantile, scrape
from mixedload import MixedLoad, loaded_servers
from modelmaking import TINY, random_input
from serving import WAIT_S_MAX, Serve, Serving, environment
from test_cli import INTERRUPTIBLE, Shell

QUICK = ("--every-s", "0.2")


@pytest.fixture(scope="module")
def load(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Serving, MixedLoad]]:
    """A server with a store under a mixed load, and the load."""
    with loaded_servers(models, tmp_path_factory.mktemp("valkey")) as (servings, load):
        yield servings[0], load


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell without a server."""
    return Shell("127.0.0.1:1", tmp_path)


def metrics_of(serving: Serving) -> tuple[str, int]:
    """Host and port of the metrics."""
    host, _, port = serving.ready["metrics"].rpartition(":")
    return host, int(port)


def test_the_numbers_are_the_server_s(serve: Serve) -> None:
    """Between two scrapes exactly what happened is counted, per second of the time between them."""
    serving = serve()
    before = scrape(*metrics_of(serving))
    with Client(serving.target) as client, client.session("tiny", keep=True) as session:
        for length in (1, 2, 5):
            session.step(random_input(TINY, (length,), 0))
    after = scrape(*metrics_of(serving))
    numbers = compare(before, after)
    s = after.time_s - before.time_s
    assert numbers.steps_per_s * s == pytest.approx(3)
    assert numbers.rows_per_s * s == pytest.approx(8)
    assert (numbers.sessions, numbers.steps, numbers.faults) == (1, 3, 0)
    assert (numbers.opened, numbers.closed, numbers.errors) == ({"new": 1}, {}, {})
    assert numbers.batches[0] == (1, 3)
    assert numbers.batch_mean == 1
    assert 0 < numbers.compute.p50_s <= numbers.compute.p99_s < 1
    assert numbers.step.p99_s >= numbers.queue.p50_s
    assert numbers.store is None
    (model,) = numbers.models
    assert (model.name, model.slots_used, model.pending_steps) == ("tiny:1", 1, 0)
    assert numbers.is_ready
    assert serving.metric("lstm_steps_total") == numbers.steps


@pytest.mark.parametrize(
    ("q", "counts", "wanted"),
    [
        (0.5, [(1.0, 10.0), (2.0, 10.0)], 1.0),
        (0.75, [(1.0, 10.0), (2.0, 10.0)], 1.5),
        (0.99, [(1.0, 0.0), (4.0, 4.0), (math.inf, 0.0)], 3.97),
        (0.99, [(1.0, 1.0), (math.inf, 9.0)], 1.0),  # nothing above the last bound is known
        (0.5, [(1.0, 0.0), (math.inf, 0.0)], math.nan),
    ],
)
def test_quantiles_are_prometheus_s(
    q: float, counts: list[tuple[float, float]], wanted: float
) -> None:
    """They equal histogram_quantile's: linear within a bucket, and the last finite bound above
    it."""
    assert quantile(q, counts) == pytest.approx(wanted, nan_ok=True)


def test_one_line_of_json_has_it_all(shell: Shell, load: tuple[Serving, MixedLoad]) -> None:
    """It has rates above 0 under load, errors by reason, the store, and no NaN, which JSON
    lacks."""
    serving, mixed = load
    mixed.wait(1)
    out = shell.out("top", "--metrics", serving.ready["metrics"], *QUICK, "--once", "--json")
    numbers = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    for name in ("steps_per_s", "rows_per_s", "errors_per_s", "cpu_cores", "memory_bytes"):
        assert numbers[name] > 0, name
    assert {"FENCED", "NON_FINITE", "SESSION_NOT_FOUND"} <= numbers["errors"].keys()
    assert numbers["store"]["p99_s"] > 0
    assert numbers["batches"][-1][0] == "+Inf"


def test_once_prints_a_picture(shell: Shell, load: tuple[Serving, MixedLoad]) -> None:
    """If stdout is no terminal, --once prints 80 columns without colours or cursor moves."""
    serving, mixed = load
    mixed.wait(0.1)
    out = shell.out("top", "--metrics", serving.ready["metrics"], *QUICK)
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    for words in ("sessions", "latency", "batch size", "NON_FINITE", "tiny:1", "store errors"):
        assert words in out
    assert "nan" not in out.lower()


def test_a_terminal_is_drawn_again_and_again(load: tuple[Serving, MixedLoad]) -> None:
    """It draws on the alternate screen until Ctrl-C, which exits with 0 and restores the
    terminal."""
    serving, mixed = load
    with Terminal("--metrics", serving.ready["metrics"], *QUICK) as terminal:
        terminal.read_until(rf"(lstmserve .*?ready.*?{serving.ready['metrics']}.*?){{3}}")
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until(r"\x1b\[\?1049l")
        assert terminal.process.wait(WAIT_S_MAX) == 0
    mixed.wait(0)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_gives_the_terminal_back(load: tuple[Serving, MixedLoad], name: str) -> None:
    """After a signal the terminal shows its own screen and the cursor again."""
    serving, mixed = load
    with Terminal("--metrics", serving.ready["metrics"], *QUICK) as terminal:
        terminal.read_until(r"lstmserve .*?ready")
        terminal.process.send_signal(signal.Signals[name])
        terminal.read_until(r"\x1b\[\?1049l")
        assert terminal.process.wait(WAIT_S_MAX) == 128 + signal.Signals[name]
    mixed.wait(0)


def test_a_server_that_goes_is_said_so(serve: Serve) -> None:
    """The last numbers stay, with the reason why there are no newer ones."""
    serving = serve()
    with Terminal("--metrics", serving.ready["metrics"], *QUICK) as terminal:
        terminal.read_until("ready")
        serving.kill()
        terminal.read_until("Connection refused")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(WAIT_S_MAX) == 0


class Terminal:
    """`lstmserve top` on a terminal of 110 columns and 50 lines; ended by its pid."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        size = {"COLUMNS": "110", "LINES": "50", "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [*INTERRUPTIBLE, "top", *arguments],
            env=environment(**size),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self.seen = ""

    def read_until(self, pattern: str) -> None:
        """Reads until the output has the pattern."""
        while not re.search(pattern, self.seen, re.DOTALL):
            try:
                self.seen += os.read(self._ours, 1 << 16).decode(errors="replace")
            except OSError as error:  # the process has ended
                raise AssertionError(f"{pattern} never in {self.seen}") from error

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


def test_nobody_there_is_one_line(shell: Shell) -> None:
    """An address that refuses, and an invalid one, give one line."""
    assert "127.0.0.1:1: Connection refused" in shell.refusal("top", "--metrics", "127.0.0.1:1")
    assert "must be HOST:PORT" in shell.refusal("top", "--metrics", "9464", code=2)
    assert "is not in the range" in shell.refusal("top", "--every-s", "0", code=2)


def test_somebody_else_is_named_so(shell: Shell, server: Serving) -> None:
    """A foreign web server, and our own gRPC port, which speaks no HTTP/1, are named as such."""
    with http.server.HTTPServer(("127.0.0.1", 0), Silent) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        address = f"127.0.0.1:{other.server_port}"
        assert "is no lstmserve" in shell.refusal("top", "--metrics", address, "--once")
        other.shutdown()
        thread.join()
    refusal = shell.refusal("top", "--metrics", server.target)
    assert re.search("does not speak HTTP|reset", refusal), refusal


class Silent(http.server.BaseHTTPRequestHandler):
    """A server of HTTP that finds nothing."""

    def do_GET(self) -> None:
        """Answers 404."""
        self.send_error(404)

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


def test_a_hung_loop_is_said_so(shell: Shell) -> None:
    """If /metrics is 503, top says what that means."""
    registry = CollectorRegistry()
    Metrics(registry, hangs)
    server = HttpServer("127.0.0.1", 0, registry, bool, bool)
    server.start()
    try:
        refusal = shell.refusal("top", "--metrics", f"127.0.0.1:{server.port}")
    finally:
        server.stop()
    assert "event loop hangs" in refusal


def hangs(_: Any) -> Any:
    """Fails as the server's own read of a hung loop does."""
    raise TimeoutError


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0, "0"), (0.25, "0.2"), (9.96, "10.0"), (1234, "1,234"), (12345, "12.3k"), (2.5e6, "2.5M")],
)
def test_numbers_are_short(value: float, wanted: str) -> None:
    """Numbers have at most five characters and a unit."""
    assert screen.short(value) == wanted
    assert screen.short(math.nan) == "-"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0, "0 s"), (25e-6, "25 µs"), (0.00123, "1.23 ms"), (2.5, "2.5 s"), (math.nan, "-")],
)
def test_times_have_a_unit_that_fits(value: float, wanted: str) -> None:
    """Times have a unit from microseconds to seconds."""
    assert screen.seconds(value) == wanted


def test_lines_and_bars_are_as_wide_as_asked() -> None:
    """The largest value is a full block, zero the lowest one, and an unknown value a blank."""
    assert screen.sparkline([0, 1, math.nan, 2], 6) == "  ▁▅ █"
    assert screen.sparkline([1, 2, 3], 2) == "▆█"
    assert screen.sparkline([], 2) == "  "
    assert screen.bar(0.5, 4) == "██  "
    assert screen.bar(0.28, 4) == "█▏  "
    assert screen.bar(7, 3) == "███"
    assert [screen.age(s) for s in (5, 65, 3700, 90_000)] == [
        "5 s",
        "1 min",
        "1 h 1 min",
        "1 d 1 h",
    ]
