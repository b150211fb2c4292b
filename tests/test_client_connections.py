"""Which connections a client opens: enough for its streams, and none to loopback by a proxy."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing, closing
from queue import SimpleQueue
from typing import Any

import pytest

from lstmserve import AsyncClient, Client
from lstmserve.client import DeadlineExceeded
from lstmserve.client.channels import STREAMS_MAX, ChannelPool, Endpoint
from serving import COMMAND as SERVE
from serving import ROOT, Serve, environment

X = [0.5, -1.0, 2.0]
STREAMS = 300  # a server takes 256 on one connection
COMMAND = SERVE[:-1]
DEAD = "http://127.0.0.1:1"  # a port on which no process may listen
PROXIES = dict.fromkeys(
    ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"), DEAD
)


def test_three_hundred_streams_of_a_client(serve: Serve) -> None:
    """All 300 streams get their replies, and unary calls of this client and another one still
    work."""
    serving = serve()
    with ExitStack() as stack:
        client = stack.enter_context(Client(serving.target, timeout_s=10, retry_s_max=0))
        for _ in range(STREAMS):
            rest: SimpleQueue[Any] = SimpleQueue()
            stack.callback(rest.put, None)
            stream = client.session("tiny", keep=True).stream(
                itertools.chain([X], iter(rest.get, None))
            )
            stack.enter_context(closing(stream))
            assert next(stream).shape == (2,)
        client.session("tiny").step(X)
        other = stack.enter_context(Client(serving.target, timeout_s=10, retry_s_max=0))
        with other.session("tiny") as session:
            assert [y.shape for y in session.stream([X, X])] == [(2,), (2,)]
    assert serving.stop() == 0


async def test_three_hundred_streams_of_an_async_client(serve: Serve) -> None:
    """All 300 streams of an AsyncClient get their replies."""
    serving = serve()
    over = asyncio.Event()

    async def xs() -> AsyncIterator[list[float]]:
        yield X
        await over.wait()

    async with AsyncClient(serving.target, timeout_s=10, retry_s_max=0) as client:
        sessions = [await client.session("tiny", keep=True) for _ in range(STREAMS)]
        streams = [session.stream(xs()) for session in sessions]
        for stream in streams:
            assert (await anext(stream)).shape == (2,)
        await (await client.session("tiny")).step(X)
        async with (
            AsyncClient(serving.target, timeout_s=10, retry_s_max=0) as other,
            other.session("tiny") as session,
            aclosing(session.stream([X])) as ys,
        ):
            assert [y.shape async for y in ys] == [(2,)]
        over.set()
        for stream in streams:
            await stream.aclose()
    assert serving.stop() == 0


@pytest.mark.parametrize("is_unary", [False, True])
def test_a_call_beyond_the_servers_limit_names_it(serve: Serve, is_unary: bool) -> None:
    """If a server takes fewer streams than the client opens, the error names the server's flag."""
    serving = serve("--streams-max", "2")
    with ExitStack() as stack:
        client = stack.enter_context(Client(serving.target, timeout_s=1, retry_s_max=0))
        late = client.session("tiny", keep=True)
        for _ in range(2):
            rest: SimpleQueue[Any] = SimpleQueue()
            stack.callback(rest.put, None)
            session = client.session("tiny", keep=True)
            stream = session.stream(itertools.chain([X], iter(rest.get, None)))
            stack.enter_context(closing(stream))
            next(stream)
        with pytest.raises(DeadlineExceeded, match=r"streams of this client .* --streams-max"):
            late.step(X) if is_unary else list(late.stream([X]))
    assert serving.stop() == 0


def test_places_on_connections() -> None:
    """A connection takes streams up to its limit, and the first one with room gets the next."""
    made = itertools.count()
    pool = ChannelPool(lambda: next(made))
    taken = [pool.acquire() for _ in range(STREAMS_MAX)]
    assert {pooled.channel for pooled in taken} == {0}
    beyond = pool.acquire()
    assert beyond.channel == 1
    pool.release(taken[0])
    assert pool.acquire().channel == 0
    assert pool.acquire().channel == 1
    assert pool.close() == [0, 1]
    with pytest.raises(Exception, match="closed"):
        pool.acquire()


@pytest.mark.parametrize("arguments", [["health"], ["models"], ["step", "tiny"]])
def test_no_proxy_for_this_machine(serve: Serve, arguments: list[str]) -> None:
    """Commands reach a server on loopback whatever proxies the environment names."""
    serving = serve()
    done = run(*arguments, LSTMSERVE_TARGET=serving.target)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert run("top", "--once", "--json", "--metrics", serving.ready["metrics"]).returncode == 0
    assert serving.stop() == 0


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of ours in an environment with dead proxies and no exceptions."""
    given = environment(no_proxy="", NO_PROXY="", **PROXIES, **variables)
    return subprocess.run(
        [*COMMAND, *arguments], env=given, input="0.5,-1,2\n", capture_output=True, text=True
    )


def test_a_demo_beside_a_proxy(serve: Serve) -> None:
    """The example that scrapes its own server uses no proxy for that."""
    program = (
        "import sys\n"
        "from examples.serving import Server\n"
        "from examples.weather.demo import show_metrics\n"
        "show_metrics(Server('', sys.argv[1], int(sys.argv[2])))\n"
    )
    serving = serve()
    with Client(serving.target) as client, client.session("tiny") as session:
        session.step(X)
    given = environment(no_proxy="", NO_PROXY="", **PROXIES)
    given["PYTHONPATH"] += f":{ROOT}"
    arguments = [f"{serving.metrics_url}/metrics", str(serving.process.pid)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=given, capture_output=True, text=True
    )
    assert "1 steps" in done.stdout, done.stderr
    assert serving.stop() == 0


class Flavour:
    """Records the options of a channel."""

    def insecure_channel(self, target: str, options: Any) -> dict[str, Any]:
        """As grpc.insecure_channel."""
        return dict(options)


@pytest.mark.parametrize(
    ("target", "may_ask"),
    [
        ("127.0.0.1:1", 0),
        ("localhost:1", 0),
        ("[::1]:1", 0),
        ("dns:///localhost:1", 0),
        ("dns:localhost", 0),
        ("ipv4:127.0.0.1:1", 0),
        ("ipv6:[::1]:1", 0),
        ("unix:/tmp/socket", 0),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", 1),
        ("example.org:1", 1),
        ("dns:///example.org:1", 1),
        ("10.0.0.1:1", 1),
    ],
)
def test_a_proxy_is_asked_for_other_machines_alone(target: str, may_ask: int) -> None:
    """Clients reach other machines by the environment's proxy, except for `lstmserve health`."""
    endpoint = Endpoint(target, None, False)
    assert endpoint.open_channel(Flavour())["grpc.enable_http_proxy"] == may_ask
    assert endpoint.open_channel(Flavour(), uses_proxy=False)["grpc.enable_http_proxy"] == 0


def test_another_machine_is_reached_by_the_proxy() -> None:
    """A client asks its environment's proxy to connect it to another machine, as gRPC does."""
    program = (
        "import socket, threading\n"
        "from lstmserve import Client\n"
        "import os\n"
        "proxy = socket.create_server(('127.0.0.1', 0))\n"
        "os.environ['grpc_proxy'] = f'http://127.0.0.1:{proxy.getsockname()[1]}'\n"
        "def serve():\n"
        "    peer, _ = proxy.accept()\n"
        "    print(peer.recv(200).split(b'\\r\\n')[0].decode(), flush=True)\n"
        "    peer.close()\n"
        "threading.Thread(target=serve, daemon=True).start()\n"
        "try:\n"
        "    Client('lstm.example:7', timeout_s=5, retry_s_max=0).models()\n"
        "except Exception as error:\n"
        "    print(type(error).__name__)\n"
    )
    given = environment(no_proxy="", NO_PROXY="")
    done = subprocess.run(
        [sys.executable, "-c", program], env=given, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "CONNECT lstm.example:7 HTTP/1.1\nUnavailable\n", done.stderr
