"""Wrong setups of Redis: each is reported with its cause, and none reveals a secret."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

from certificates import Authority
from lstmserve.client import Client
from lstmserve.config import Config
from lstmserve.errors import LstmServeError
from lstmserve.server.observe.outage import Outage
from lstmserve.store import StoreRefused, open_store
from lstmserve.store.redis import RedisStore
from lstmserve.store.store import StoreUnavailable
from modelmaking import TINY, random_input
from serving import FREE_PORTS, Serve, run_serve
from storing import Valkey, raised

SECRET = "correct-horse"
ACL = [
    "+evalsha",
    "+eval",
    "+script|load",
    "+getrange",
    "+exists",
    "+get",
    "+set",
    "+del",
    "+rename",
    "+persist",
]
Options = tuple[str, ...]


def user(*rules: str) -> Options:
    """A Valkey's flags: one user with these rules, besides the default one."""
    return ("--user", "lstm", "on", f">{SECRET}", *rules)


# name: the server's flags, the URL (PORT is the server's), a part of the cause.
WRONG: dict[str, tuple[Options, str, str]] = {
    "password missing": (("--requirepass", SECRET), "redis://127.0.0.1:PORT/0", "asks for a pass"),
    "password wrong": (
        ("--requirepass", SECRET),
        "redis://:other-horse@127.0.0.1:PORT/0",
        "does not know that user with that password",
    ),
    "password not set there": (
        (),
        f"redis://:{SECRET}@127.0.0.1:PORT/0",
        "the server's default user has none",
    ),
    "user unknown": (
        (),
        f"redis://somebody:{SECRET}@127.0.0.1:PORT/0",
        "does not know that user with that password",
    ),
    "no such database": ((), "redis://127.0.0.1:PORT/99", "no database of the URL's number"),
    "ACL lacks a command": (
        user("~s:*", *ACL, "-rename"),
        f"redis://lstm:{SECRET}@127.0.0.1:PORT/0",
        "its ACL denies",
    ),
    "ACL lacks scripts": (
        user("~s:*", *ACL, "-evalsha"),
        f"redis://lstm:{SECRET}@127.0.0.1:PORT/0",
        "its ACL denies",
    ),
    "ACL lacks the keys": (
        user("~other:*", "+@all"),
        f"redis://lstm:{SECRET}@127.0.0.1:PORT/0",
        "its ACL denies",
    ),
    "cluster": (("--cluster-enabled", "yes"), "redis://127.0.0.1:PORT/0", "part of a cluster"),
}


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Callable[..., Valkey]]:
    """Starts servers with flags, each in a folder of its own."""
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> Valkey:
            folder = tmp_path / f"valkey{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            return stack.enter_context(Valkey(folder, *options))

        yield start


async def cause_of(url: str, timeout_s: float = 5) -> str:
    """What both kinds of check at the start report."""
    store = open_store(url, timeout_s=timeout_s)
    assert store is not None
    try:
        await store.check()
    except StoreRefused as error:
        return f"refused: {error}"
    except StoreUnavailable as error:
        return f"away: {error.cause}"
    finally:
        await store.close()
    return "serves"


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_setup_is_refused_with_its_cause(
    valkey: Callable[..., Valkey], name: str
) -> None:
    """The check refuses what time does not heal, names the cause, and quotes no secret."""
    options, url, expected = WRONG[name]
    found = await cause_of(url.replace("PORT", str(valkey(*options).port)))
    assert found.startswith("refused: the store cannot be used: "), found
    assert expected in found
    assert "horse" not in found


@contextlib.asynccontextmanager
async def tls_front(server: Valkey, authority: Authority, host: str) -> AsyncIterator[int]:
    """The port of a TLS front of the server, which has no TLS here; its certificate is for host."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.sign("valkey", host))

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, on = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(copy(reader, on), copy(back, writer))

    front = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
    async with front:
        yield front.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("host", "url", "expected"),
    [
        ("127.0.0.1", "redis://127.0.0.1:PORT/0", "TLS needs rediss://"),
        ("127.0.0.1", "rediss://127.0.0.1:PORT/0", "authority that is not trusted"),
        ("127.0.0.1", "rediss://127.0.0.1:PORT/0?ssl_ca_certs=OTHER", "not trusted"),
        ("10.1.2.3", "rediss://127.0.0.1:PORT/0?ssl_ca_certs=CA", "is of another address"),
        ("127.0.0.1", "rediss://127.0.0.1:PORT/0?ssl_ca_certs=CA", "serves"),
        ("localhost", "rediss://localhost:PORT/0?ssl_ca_certs=CA", "serves"),
    ],
)
async def test_tls(tmp_path: Path, host: str, url: str, expected: str) -> None:
    """TLS against plain text, an unknown authority and another name are reported, and the right
    setup serves."""
    ours, other = Authority(tmp_path), Authority(tmp_path, "other")
    with Valkey(tmp_path) as server:
        async with tls_front(server, ours, host) as port:
            await try_tls(url.replace("PORT", str(port)), ours, other, expected)


async def try_tls(url: str, ours: Authority, other: Authority, expected: str) -> None:
    """Asserts the cause that the URL gets, once the files are in it."""
    url = url.replace("OTHER", str(other.path)).replace("CA", str(ours.path))
    assert expected in await cause_of(url)


async def test_a_sentinel_is_no_store(tmp_path: Path) -> None:
    """A Sentinel's port is reported as a Sentinel."""
    config = tmp_path / "sentinel.conf"
    with Valkey(tmp_path) as primary:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        config.write_text(f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n")
        process = subprocess.Popen(  # noqa: ASYNC220 -- a moment
            [primary.binary, str(config), "--sentinel"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout
            assert any("Sentinel ID" in line for line in process.stdout)
            found = await cause_of(f"redis://127.0.0.1:{port}/0")
        finally:
            process.kill()
            process.communicate()
    assert found.startswith("refused: ")
    assert "Sentinel" in found


async def test_another_servers_port_is_no_store() -> None:
    """A server with another protocol is refused, because time does not make it a store."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found = await cause_of(f"redis://127.0.0.1:{port}/0")
    assert found.startswith("refused: ")
    assert "neither Valkey nor Redis" in found


def test_a_certificate_that_is_not_there(tmp_path: Path) -> None:
    """A missing file is told from one that holds no certificate."""
    (tmp_path / "empty.pem").touch()
    for name, why in (("none.pem", "No such file"), ("empty.pem", "they hold no certificate")):
        with pytest.raises(StoreRefused, match=why):
            RedisStore(f"rediss://127.0.0.1/0?ssl_ca_certs={tmp_path / name}")


async def test_an_outage_is_no_misconfiguration(valkey: Callable[..., Valkey]) -> None:
    """No listener, an unknown name, a read-only replica and a frozen server are outages with a
    cause."""
    server = valkey()
    assert "away: nothing listens" in await cause_of("redis://127.0.0.1:1/0")
    assert "away: DNS does not" in await cause_of("redis://store.invalid/0", 20)
    replica = valkey("--replicaof", "127.0.0.1", "1", "--replica-serve-stale-data", "yes")
    assert "away: it is a read-only replica" in await cause_of(replica.url)
    assert "away: no answer to TLS" in await cause_of(server.url.replace("s:", "ss:"), 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert "no answer within" in await cause_of(f"redis://127.0.0.1:{port}/0", 0.2)
    assert await cause_of(server.url) == "serves"


async def test_a_policy_that_drops_sessions_is_told(valkey: Callable[..., Valkey]) -> None:
    """An evicting policy with a memory limit is a warning, and without a limit nothing is
    evicted."""
    for options, expected in (
        (("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"), "allkeys-lru"),
        (("--maxmemory", "100mb", "--maxmemory-policy", "volatile-ttl"), "volatile-ttl"),
        (("--maxmemory", "100mb"), ""),
        (("--maxmemory-policy", "allkeys-lru"), ""),
        (("--maxmemory", "1"), "it is full"),
    ):
        store = RedisStore(valkey(*options).url)
        advice = await store.check()
        assert (expected in advice) if expected else (advice == "")
        await store.close()


async def test_a_check_leaves_nothing(valkey: Callable[..., Valkey]) -> None:
    """The trial's keys are gone, and the rule of docs/STORES.md allows all of it."""
    server = valkey(*user("~s:*", *ACL))
    store = RedisStore(server.url.replace("//", f"//lstm:{SECRET}@"))
    assert await store.check() == ""
    admin: Any = RedisStore(server.url)
    assert await admin._exchange([("DBSIZE",)]) == [0]
    await store.close()
    await admin.close()


MISTYPED = (
    f"redis:/:{SECRET}@h",
    f"redis:{SECRET}@h",
    f"valkey:{SECRET}@h",
    f"{SECRET}:x@h",
    f"{SECRET}",
    f"http://:{SECRET}@h/0",
    f"REDIS://:{SECRET}@h",
)
UNREADABLE = (
    f"valkey://h/0?password={SECRET}&no_such={SECRET}",
    f"redis://:{SECRET}/x@h/0",
    f"redis://:12#{SECRET}@h/0",
    f"redis://:12?{SECRET}@h/0",
    f"redis://h/{SECRET}",
    f"redis:///{SECRET}",
    f"rediss://h/0?ssl_ca_certs=/no/such/{SECRET}",
)


@pytest.mark.parametrize("url", [*MISTYPED, *UNREADABLE])
def test_a_mistyped_url_tells_no_password(models: Path, url: str) -> None:
    """However the URL is mistyped, the command line's error shows its scheme at most."""
    ended = run_serve("--models", models, *FREE_PORTS, LSTMSERVE_STORE=url)
    assert ended.returncode in (1, 2)
    assert "Error: " in ended.stderr.splitlines()[-1]
    assert SECRET not in ended.stderr + ended.stdout


def test_valkey_is_another_name_of_redis() -> None:
    """The settings and the store accept valkey:// and valkeys://."""
    for url in ("valkey://127.0.0.1/0", "valkeys://127.0.0.1/0"):
        assert isinstance(open_store(Config(store=url).store), RedisStore)


def test_a_wrong_setup_ends_the_start(models: Path, valkey: Callable[..., Valkey]) -> None:
    """A wrong setup exits with 1 and one line with the cause, and no password is on stderr."""
    port = valkey("--requirepass", SECRET).port
    url = f"redis://:other-horse@127.0.0.1:{port}/0"
    ended = run_serve("--models", models, *FREE_PORTS, LSTMSERVE_STORE=url)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        "Error: the store cannot be used: it does not know that user with that password"
    ]


def test_a_start_waits_for_its_store(serve: Serve, tmp_path: Path) -> None:
    """If the store is away at the start, /readyz is 503 with the cause until the store answers, and
    then ready."""
    with Valkey(tmp_path) as server:
        server.kill()
        serving = serve("--store", server.url)
        assert serving.ready["event"] == "waiting for the store"
        waiting = "Service Unavailable\nstore: nothing listens at its host and port\n"
        while serving.get("/readyz") != (503, waiting):  # the first check comes once it serves
            pass
        assert serving.get("/livez")[0] == 200
        server.start()
        while serving.get("/readyz") != (200, "OK\n"):
            pass
        assert len(serving.wait_for("store lost")) == len(serving.wait_for("ready")) == 1
        assert serving.stop() == 0
        assert serving.noise == []


def test_an_outage_under_load_is_few_lines(serve: Serve, tmp_path: Path) -> None:
    """Hundreds of failed calls give a line for each cause, and one with the count at the end."""
    with Valkey(tmp_path) as server:
        serving = serve("--store", server.url, "--store-timeout-s", "0.3")
        with Client(serving.target, timeout_s=5, retry_s_max=0) as client:
            sessions = [client.session("tiny", id=f"s{i}", keep=True) for i in range(8)]
            server.kill()
            for _ in range(40):
                for session in sessions:
                    with pytest.raises(LstmServeError):
                        session.step(random_input(TINY, (1,), 0))
            assert serving.get("/readyz")[0] == 200  # others are no better off
            while "store: nothing listens" not in serving.get("/readyz")[1]:
                pass
            server.start()
            while serving.get("/readyz") != (200, "OK\n"):
                pass
        assert serving.metric("lstm_store_errors_total") >= 320
        (lost,), (back,) = serving.events("store lost"), serving.events("store back")
        assert lost["cause"]
        assert back["calls_failed"] >= 320
        assert len(serving.events("store still away")) <= 2
        assert len([line for line in serving.log if "store" in line["event"]]) <= 4
        serving.stop()
        assert serving.noise == []


def test_a_store_that_comes_and_goes_is_no_flood() -> None:
    """However often it changes, the log has few lines a minute, and then one with how many were
    left out."""
    outage = Outage()
    with capture_logs() as lines:
        for second in range(50):
            outage.failed("put", "it hangs", second)
            outage.passed(second + 0.5, second + 0.4, "put")
        assert len(lines) == 8
        outage.failed("put", "it hangs", 100)
    assert lines[-1]["lines_left_out"] == 92
    assert lines[-1]["cause"] == "it hangs"


def test_a_long_outage_is_a_line_a_minute() -> None:
    """During an outage the log counts once a minute, and only a call that began after a failure
    ends it."""
    outage = Outage()
    with capture_logs() as lines:
        for second in range(200):
            outage.failed("put", "it hangs", second)
            outage.passed(second, second, "load")  # another kind of call does not count
        outage.passed(201, 198, "put")
        assert outage.cause == "it hangs"
        outage.passed(201, 200, "put")
    events = [line["event"] for line in lines]
    assert events == ["store lost", *["store still away"] * 3, "store back"]
    assert [line.get("calls_failed") for line in lines] == [None, 61, 121, 181, 200]
    assert lines[-1]["after_s"] == 201


def test_a_cancelled_look_up_leaves_nothing() -> None:
    """An unknown host name is reported, and its failed look-up leaves no unretrieved error."""
    left: list[dict[str, Any]] = []

    async def try_often() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: left.append(context))
        store = RedisStore("redis://store.invalid:6379/0", timeout_s=0.0001)
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                raised(await store.load(["/a"]))
        await loop.run_in_executor(None, socket.getfqdn)
        await store.close()
        with pytest.raises(socket.gaierror):
            await loop.getaddrinfo("store.invalid", 1)
        gc.collect()

    uvloop.run(try_often())
    gc.collect()
    assert left == []
