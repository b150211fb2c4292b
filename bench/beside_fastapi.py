"""`python -m bench.beside_fastapi FASTAPI`: bench/fastapi_server.py beside `lstmserve serve`.

FASTAPI is a virtual environment that has what the 13 lines need:

    python3 -m venv FASTAPI
    FASTAPI/bin/pip install torch==2.13.0 numpy fastapi 'uvicorn[standard]'

Both serve the same checkpoint on the same core, one after the other, round after round. Each
connection belongs to one session and sends its next step when the last one is answered. First by
raw connections, which cost next to nothing; then one session by a client library: http.client of
Python's standard library there, lstmserve's Client here. Both servers must give the same y.
"""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from bench import requests
from bench.checkout import Version, serving_of
from bench.http2 import Connection
from bench.load import Load, Sample
from bench.machine import ROOT, commit, description, on_core, pin_load
from bench.measures import SPEC
from bench.rounds import MODEL, Effort, Side, require_applied, take_turns
from bench.versions import beside, cost, rate
from lstmserve import Client
from lstmserve_export import export

COUNTS = (1, 8, 32)
START_S_MAX = 60.0
CHECKED_STEPS, TOLERANCE = 5, 1e-5
HEADS = (
    "sessions",
    "server",
    "steps/s",
    "CPU us a step",
    "ms, p50",
    "ms, p99",
    "steps/s / FastAPI's",
    "per CPU second / FastAPI's",
)
Reply = Callable[[np.ndarray], np.ndarray]


class HttpConnection:
    """One kept-alive HTTP/1.1 connection of a load, with what Load wants of a Connection."""

    def __init__(self, address: tuple[str, int], bodies: Iterator[bytes], path: str) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._bodies = bodies
        self._head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        self._received = b""
        self._send()

    def receive(self) -> int:
        """Reads what there is; 1 when that ends a reply, and the next request is sent."""
        data = self.socket.recv(1 << 16)
        assert data, "the server closed the connection"
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return 0
        assert head.startswith(b"HTTP/1.1 200 "), self._received
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return 0
        self._received = b""
        self._send()
        return 1

    def _send(self) -> None:
        body = next(self._bodies)
        self.socket.sendall(f"{self._head}content-length: {len(body)}\r\n\r\n".encode() + body)

    def close(self) -> None:
        """Ends the connection."""
        self.socket.close()


class TimedLoad(Load):
    """A Load of one request at a time for each connection, which keeps how long each took."""

    def __init__(self, connections: Sequence[Any]) -> None:
        super().__init__(connections)
        self.times_s: list[float] = []
        self._is_warm = False

    def measure(self, seconds: float, cpu_s: Callable[[], float]) -> Sample:
        """Measures like a Load; the times of the warm-up before it do not count."""
        if not self._is_warm:
            self.times_s.clear()
            self._is_warm = True
        return super().measure(seconds, cpu_s)

    def drive(self, seconds: float) -> int:
        """Sends a request whenever the last one was answered; returns how many answers came."""
        answers = 0
        now_s = time.perf_counter()
        end_s = now_s + seconds
        began_s: dict[int, float] = {}  # a request that was sent in the last turn has no beginning
        while now_s < end_s:
            for key, _ in self._selector.select():
                received = key.data.receive()
                now_s = time.perf_counter()
                if received:
                    answers += received
                    if key.fd in began_s:
                        self.times_s.append(now_s - began_s[key.fd])
                    began_s[key.fd] = now_s
        return answers


class CallLoad(TimedLoad):
    """The same by a client library: one session, one call at a time."""

    def __init__(self, call: Callable[[], object], close: Callable[[], object]) -> None:
        super().__init__([])
        self._call, self._close = call, close

    def drive(self, seconds: float) -> int:
        """Calls for `seconds`, one call after the other; returns how many calls were answered."""
        start_s = now_s = time.perf_counter()
        for count in itertools.count(1):
            self._call()
            before_s, now_s = now_s, time.perf_counter()
            self.times_s.append(now_s - before_s)
            if now_s >= start_s + seconds:
                return count
        raise AssertionError

    def close(self) -> None:
        super().close()
        self._close()


@contextmanager
def fastapi_of(environment: Path, folder: Path) -> Iterator[tuple[tuple[str, int], int]]:
    """The address and the process of uvicorn with the 13 lines, on the server's core."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = [str(environment / "bin" / "uvicorn"), "fastapi_server:app", "--app-dir"]
    flags = [str(ROOT / "bench"), "--port", str(port), "--no-access-log", "--log-level", "warning"]
    process = subprocess.Popen(on_core([*program, *flags]), cwd=folder)
    try:
        _await(port, process)
        yield ("127.0.0.1", port), process.pid
    finally:
        process.terminate()
        process.wait()


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + START_S_MAX
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while process.poll() is None and time.monotonic() < end_s:
        try:
            direct.open(f"http://127.0.0.1:{port}/openapi.json").close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("uvicorn did not start")


def http_call(address: tuple[str, int], session: str) -> tuple[Reply, Callable[[], None]]:
    """A step by http.client, and what ends the connection."""
    connection = http.client.HTTPConnection(*address)

    def call(x: np.ndarray) -> np.ndarray:
        headers = {"content-type": "application/json"}
        connection.request("POST", f"/step/{session}", json.dumps(x.tolist()), headers)
        return np.array(json.loads(connection.getresponse().read()), np.float32)

    return call, connection.close


def our_call(target: str) -> tuple[Reply, Callable[[], None]]:
    """A step by Client, and what ends it."""
    client = Client(target)
    return client.session(MODEL).step, client.close


def raw_load(address: tuple[str, int], count: int) -> TimedLoad:
    """Sessions of FastAPI's, a connection each."""
    rows = np.random.default_rng(0).standard_normal((64, SPEC.input_size)).astype(np.float32)
    bodies = [json.dumps(row.tolist()).encode() for row in rows]
    paths = [f"/step/raw-{count}-{number}" for number in range(count)]
    return TimedLoad([HttpConnection(address, itertools.cycle(bodies), path) for path in paths])


def our_raw_load(target: str, count: int) -> TimedLoad:
    """Our sessions, a connection each, numbered steps."""
    address = ("127.0.0.1", int(target.rpartition(":")[2]))
    steps = [requests.steps(each, SPEC) for each in requests.open_sessions(target, MODEL, count)]
    path = requests.PATH + "Step"
    return TimedLoad([Connection(address, path, each, streamed=False) for each in steps])


def require_same(*calls: tuple[Reply, Callable[[], None]]) -> None:
    """Raises when two servers answer the first steps of a session differently; ends both calls."""
    (ours, _), (theirs, _) = calls
    for x in np.random.default_rng(1).standard_normal((CHECKED_STEPS, SPEC.input_size)):
        np.testing.assert_allclose(ours(x), theirs(x), atol=TOLERANCE)
    for _, close in calls:
        close()


def save_network(folder: Path) -> None:
    """net.pt of random weights, and the model that lstmserve exports from it."""
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(SPEC.input_size, SPEC.hidden_size)
    head = torch.nn.Linear(SPEC.hidden_size, SPEC.output_size)
    net = torch.nn.ModuleDict({"lstm": lstm, "head": head})
    torch.save(net.state_dict(), folder / "net.pt")
    export(lstm, head, name=MODEL, models=folder / "models")


def lines(name: str, sides: Sequence[Side], effort: Effort) -> Iterator[str]:
    """Of the table, one a side; the first side is FastAPI."""
    loads: list[Any] = [side.load for side in sides]
    taken = take_turns(sides, effort)
    (_, theirs), *_ = taken.items()
    for load, (side, samples) in zip(loads, taken.items(), strict=True):
        p50, p99 = np.percentile(load.times_s, [50, 99]) * 1000
        cells = [name, side, rate(samples), cost(samples), f"{p50:.2f}", f"{p99:.2f}"]
        if samples is not theirs:
            cells += [beside(samples, theirs, "per_s"), beside(samples, theirs, "per_cpu_s")]
        yield f"| {' | '.join(cells + [''] * (len(HEADS) - len(cells)))} |"


def compared(environment: Path, effort: Effort) -> Iterator[str]:
    """The lines of the whole table."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        save_network(folder)
        serving = stack.enter_context(serving_of(Version("ours", ROOT, {}), folder / "models"))
        address, pid = stack.enter_context(fastapi_of(environment, folder))
        require_same(our_call(serving.target), http_call(address, "checked"))
        for count in COUNTS:
            sides = [
                Side("FastAPI", pid, raw_load(address, count)),
                Side("lstmserve", serving.process.pid, our_raw_load(serving.target, count)),
            ]
            yield from lines(f"{count}", sides, effort)
        theirs, end_theirs = http_call(address, "one")
        ours, end_ours = our_call(serving.target)
        x = np.zeros(SPEC.input_size, np.float32)
        sides = [
            Side("FastAPI", pid, CallLoad(lambda: theirs(x), end_theirs)),
            Side("lstmserve", serving.process.pid, CallLoad(lambda: ours(x), end_ours)),
        ]
        yield from lines("1, by a client library", sides, effort)
        require_applied(serving)


@click.command()
@click.argument("environment", type=click.Path(path_type=Path, exists=True), metavar="FASTAPI")
@click.option("--rounds", default=9, show_default=True, help="Turns of each side.")
@click.option("--seconds", default=1.0, show_default=True, help="Of one turn.")
def main(environment: Path, rounds: int, seconds: float) -> None:
    """Prints a table in Markdown: each server's rate, cost and times, and ours beside FastAPI's."""
    pin_load()
    click.echo(f"`{' '.join(['python -m bench.beside_fastapi', *sys.argv[1:]])}`, {commit()}.")
    click.echo(f"{description()}.\n")
    click.echo(f"| {' | '.join(HEADS)} |\n|{' --- |' * len(HEADS)}")
    for line in compared(environment.absolute(), Effort(rounds, seconds)):
        click.echo(line)


if __name__ == "__main__":
    main()
