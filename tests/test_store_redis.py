"""The Redis store against a real server that stalls, dies, fills up, forgets and refuses."""

from __future__ import annotations

import asyncio
import signal
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from lstmserve.engine.errors import StoreTimeout, StoreUnavailable
from lstmserve.store import StoreRefused, Version, Write, Written, open_store, version_of
from lstmserve.store.redis import RedisStore, redis_key
from storing import Valkey, content, raised, write

OK = Written.OK
SECRET = "correct-horse"
FIRST, SECOND = content(Version(1, 1, 0)), content(Version(1, 1, 1))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Valkey]:
    """A server of the test's own."""
    with Valkey(tmp_path) as server:
        yield server


@pytest.fixture
async def store(server: Valkey) -> AsyncIterator[RedisStore]:
    """A store on it."""
    store = RedisStore(server.url, timeout_s=20, connections_max=3)
    yield store
    await store.close()


@pytest.fixture
async def admin(server: Valkey) -> AsyncIterator[Redis]:
    """The server's operator."""
    async with Redis.from_url(server.url) as client:
        yield client


async def test_stalled_server(server: Valkey, admin: Redis) -> None:
    """While the server is stopped a put is unknown and a load unavailable, and later both work
    again."""
    store = RedisStore(server.url, timeout_s=0.25, connections_max=3)
    await admin.set(redis_key("/a"), FIRST)
    server.signal(signal.SIGSTOP)
    for _ in range(4):  # more often than there are connections
        with pytest.raises(StoreTimeout):
            raised(await store.put([write("/a", (1, 1, 0), (1, 1, 1))]))
        with pytest.raises(StoreUnavailable):
            raised(await store.load(["/a"]))
    server.signal(signal.SIGCONT)
    while not await is_taken_over(store, "/a"):
        pass
    await store.close()


async def is_taken_over(store: RedisStore, key: str) -> bool:
    """Whether load and put work; writes sent during the stall may still arrive in between
    (CONFLICT)."""
    try:
        (raw,) = raised(await store.load([key]))
        old = version_of(raw)
        (outcome,) = raised(await store.put([write(key, old, (1, old.epoch + 1, old.step + 1))]))
    except (StoreUnavailable, StoreTimeout):  # it is not awake yet
        return False
    assert outcome in (OK, Written.CONFLICT)
    return bool(outcome is OK)


async def test_dead_server(server: Valkey, store: RedisStore) -> None:
    """A dead server is sent nothing, and the error says so; a new server is found by itself."""
    assert await store.put([write("/a", None, (1, 1, 0))]) == [OK]
    server.kill()
    for _ in range(100):  # the loop learns of the closed connections
        await asyncio.sleep(0)
    for _ in range(5):
        with pytest.raises(StoreUnavailable, match="no way to the store"):
            raised(await store.put([write("/a", (1, 1, 0), (1, 1, 1))]))
        with pytest.raises(StoreUnavailable, match="no way to the store") as dead:
            raised(await store.load(["/a"]))
        assert str(server.port) not in "".join(traceback.format_exception(dead.value))
        with pytest.raises(StoreUnavailable, match="no way to the store"):
            await store.quarantine("/a", b"")
    server.start()
    assert await store.load(["/a"]) == [None]  # this server keeps no data
    assert await store.put([write("/a", (1, 1, 0), (1, 1, 1))]) == [Written.CONFLICT]
    assert await store.put([write("/a", None, (2, 1, 0))]) == [OK]


async def test_late_reply_is_nobody_elses(server: Valkey) -> None:
    """The reply to a cancelled call that was sent already is not taken for the next call's."""
    store = RedisStore(server.url, timeout_s=20, connections_max=1)
    assert await store.put([write("/a", None, (1, 1, 0))]) == [OK]
    server.signal(signal.SIGSTOP)
    doomed = asyncio.ensure_future(store.put([write("/a", (1, 1, 9), (1, 1, 10))]))
    for _ in range(100):
        await asyncio.sleep(0)
    doomed.cancel()
    await asyncio.gather(doomed, return_exceptions=True)
    following = asyncio.ensure_future(store.load(["/a"]))
    for _ in range(100):
        await asyncio.sleep(0)
    server.signal(signal.SIGCONT)
    assert await following == [FIRST]
    await store.close()


async def test_restart_between_calls(tmp_path: Path) -> None:
    """A server that restarted with its data is used again at once, with the script."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with Valkey(tmp_path, *options) as server:
        store = RedisStore(server.url, timeout_s=5)
        assert await store.put([write("/a", None, (1, 1, 0))]) == [OK]
        for step in range(3):
            server.kill()
            server.start()
            for _ in range(100):
                await asyncio.sleep(0)
            old, new = (1, 1, step), (1, 1, step + 1)
            assert await store.put([write("/a", old, new), write("/b", old, new)]) == [
                OK,
                Written.CONFLICT,
            ]
        await store.close()


async def test_idle_connections_that_the_server_closes(store: RedisStore, admin: Redis) -> None:
    """If Valkey's `timeout` closes idle connections, the next call makes a new one and succeeds."""
    for version in (FIRST, SECOND):
        expected = None if version is FIRST else Version(1, 1, 0)
        assert await store.put([Write("/a", expected, version, 60)]) == [OK]
        assert await admin.client_kill_filter(_type="normal", skipme=True) >= 1
        assert await store.load(["/a"]) == [version]
        assert await admin.client_kill_filter(_type="normal", skipme=True) >= 1


async def test_forgotten_script(store: RedisStore, admin: Redis) -> None:
    """A server that has forgotten the script gets it again within the same call."""
    for step in range(3):
        await admin.script_flush()
        old = (1, 1, step - 1) if step else None
        writes = [write(f"/{name}", old, (1, 1, step)) for name in "abc"]
        assert await store.put(writes) == [OK] * 3


async def test_full_server(store: RedisStore, admin: Redis) -> None:
    """At maxmemory a write is FULL and the old record intact, and a delete passes."""
    assert await store.put([write("/a", None, (1, 1, 0)), write("/b", None, (1, 1, 0))]) == [OK] * 2
    await admin.config_set("maxmemory", "1")
    writes = [
        write("/a", (1, 1, 0), (1, 1, 1)),
        write("/new", None, (1, 1, 0)),
        write("/b", (1, 1, 0), None),
    ]
    assert await store.put(writes) == [Written.FULL, Written.FULL, OK]
    assert await store.load(["/a", "/new", "/b"]) == [FIRST, None, None]
    await store.quarantine("/a", FIRST)  # this takes no more room
    assert await store.load(["/a"]) == [None]
    await admin.config_set("maxmemory", "0")
    assert await store.put([write("/a", None, (1, 1, 0))]) == [OK]


async def test_refusing_server(store: RedisStore, admin: Redis) -> None:
    """A read-only replica refuses every write, which is surely not written, and later it heals."""
    assert await store.put([write("/a", None, (1, 1, 0))]) == [OK]
    await admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="refuses"):
            raised(await store.put([write("/a", (1, 1, 0), (1, 1, 1))]))
        for each in await store.put([write(f"/{name}", None, (1, 1, 0)) for name in "bc"]):
            assert isinstance(each, StoreUnavailable)
    await admin.execute_command("REPLICAOF", "NO", "ONE")
    assert await store.load(["/a", "/b"]) == [FIRST, None]
    assert await store.put([write("/a", (1, 1, 0), (1, 1, 1))]) == [OK]


async def test_a_foreign_value_fails_one_key(store: RedisStore, admin: Redis) -> None:
    """A key that holds a list is neither overwritten nor taken for empty, and others are served."""
    await admin.lpush(redis_key("/b"), "another program's list")
    ok, refused, last = await store.put([write(f"/{name}", None, (1, 1, 0)) for name in "abc"])
    assert (ok, last) == (OK, OK)
    assert isinstance(refused, StoreUnavailable)
    assert refused.is_of_key
    assert refused.cause == "a key of the store holds another program's value"
    first, foreign, third = await store.load(["/a", "/b", "/c"])
    assert (first, third) == (FIRST, FIRST)
    assert isinstance(foreign, StoreUnavailable)
    assert foreign.is_of_key
    assert await admin.lrange(redis_key("/b"), 0, -1) == [b"another program's list"]


async def test_a_refused_key_fails_no_other_load(
    store: RedisStore, admin: Redis, server: Valkey
) -> None:
    """A user who may read only one tenant's keys gets those, and the others are unavailable."""
    assert await store.put([write(f"acme/{name}", None, (1, 1, 0)) for name in "ab"]) == [OK] * 2
    rule = ("on", f">{SECRET}", "~s:acme:*", "+get")
    await admin.execute_command("ACL", "SETUSER", "acme", *rule)
    limited = RedisStore(server.url.replace("//", f"//acme:{SECRET}@"))
    first, other, second = await limited.load(["acme/a", "else/a", "acme/b"])
    assert (first, second) == (FIRST, FIRST)
    assert isinstance(other, StoreUnavailable)
    assert "ACL" in other.cause
    for each in await limited.load(["else/a", "else/b"]):
        assert isinstance(each, StoreUnavailable)
    await limited.close()


async def test_least_privilege(store: RedisStore, admin: Redis, server: Valkey) -> None:
    """The commands that the documentation grants suffice, and other keys cannot be reached."""
    commands = "+evalsha +eval +script|load +getrange +exists +get +set +del +rename +persist"
    await admin.execute_command(
        "ACL", "SETUSER", "lstm", "on", f">{SECRET}", "~s:*", *commands.split()
    )
    limited = RedisStore(server.url.replace("//", f"//lstm:{SECRET}@"))
    assert await limited.load(["/a"]) == [None]
    assert await limited.put([write("/a", None, (1, 1, 0))]) == [OK]
    assert await limited.put([write("/a", (1, 1, 0), (1, 1, 1))]) == [OK]
    await limited.quarantine("/a", SECOND)
    assert await limited.put([write("/b", None, (1, 1, 0))]) == [OK]
    assert await limited.put([write("/b", (1, 1, 0), None)]) == [OK]
    await limited.close()


async def test_secrets_stay_secret(server: Valkey, admin: Redis) -> None:
    """No error and no traceback quotes a refused password or a mistyped URL."""
    await admin.config_set("requirepass", "another")
    port = server.port
    refused = RedisStore(f"redis://user:{SECRET}@127.0.0.1:{port}")
    with pytest.raises(StoreUnavailable, match="AuthenticationError") as wrong:
        raised(await refused.load(["/a"]))
    await refused.close()
    nobody = RedisStore(f"redis://127.0.0.1:{port}")
    with pytest.raises(StoreUnavailable, match="AuthenticationError") as missing:
        raised(await nobody.put([write("/a", None, (1, 1, 0))]))
    await nobody.close()
    errors: list[BaseException] = [wrong.value, missing.value]
    for url in (
        f"redis://:{SECRET}@host:{SECRET}/0",
        f"redis://:{SECRET}@host/0?{SECRET}={SECRET}",
        f"redis://:{SECRET}@[::1/0",
        f"redis:/{SECRET}",
    ):
        with pytest.raises(StoreRefused) as mistyped:
            open_store(url)
        errors.append(mistyped.value)
    for error in errors:
        text = "".join(traceback.format_exception(error))
        source = [line for line in text.splitlines() if "File" not in line and SECRET in line]
        assert SECRET not in str(error)
        assert source == [], text


async def test_connections_are_few(store: RedisStore, admin: Redis) -> None:
    """Many calls at once share the few connections, and all are answered."""
    writes = [write(f"/{i}", None, (1, 1, i)) for i in range(200)]
    outcomes = await asyncio.gather(*(store.put([w]) for w in writes))
    assert outcomes == [[OK]] * 200
    assert len(await admin.client_list()) <= 3 + 1  # the operator's own one


async def test_what_lies_in_redis(store: RedisStore, admin: Redis) -> None:
    """Keys carry tenant and hex id, expire by themselves, and quarantined ones never do."""
    assert await store.put([write("acme/a*{b}", None, (1, 1, 0), ttl_s=30)]) == [OK]
    key = f"s:acme:{b'a*{b}'.hex()}"
    assert await admin.keys("*") == [key.encode()]
    assert 0 < await admin.pttl(key) <= 30_000
    await store.quarantine("acme/a*{b}", FIRST)
    (aside,) = await admin.keys("*")
    assert aside.startswith(f"{key}:corrupt:".encode())
    assert await admin.pttl(aside) == -1
    assert await admin.get(aside) == FIRST


async def test_corrupt_record_is_not_overwritten_as_nothing(
    store: RedisStore, admin: Redis
) -> None:
    """A record that is too short for a version still counts as a record for a write that expects
    none."""
    for size in (0, 1, 8, 31):
        await admin.set(redis_key("/a"), FIRST[:size])
        assert await store.put([write("/a", None, (1, 1, 0))]) == [Written.CONFLICT]
        assert await store.put([write("/a", (1, 1, 0), (1, 1, 1))]) == [Written.CONFLICT]
        assert await store.load(["/a"]) == [FIRST[:size]]
        await store.quarantine("/a", FIRST[:size])
        assert await store.put([write("/a", None, (1, 1, 0))]) == [OK]


async def test_tls_is_meant(server: Valkey) -> None:
    """rediss:// never talks to a server without TLS."""
    store = RedisStore(server.url.replace("redis:", "rediss:"), timeout_s=0.5)
    with pytest.raises(StoreUnavailable, match="no way to the store"):
        raised(await store.load(["/a"]))
    await store.close()


async def test_stale_owner_after_a_pause(store: RedisStore, server: Valkey) -> None:
    """A server that was stopped during a take-over cannot write over the new owner's steps."""
    sleeper = RedisStore(server.url)
    assert await sleeper.put([write("/a", None, (1, 1, 0))]) == [OK]
    assert await store.put([write("/a", (1, 1, 0), (1, 2, 1))]) == [OK]
    for step in range(1, 4):
        assert await store.put([write("/a", (1, 2, step), (1, 2, step + 1))]) == [OK]
        late = write("/a", (1, 1, step), (1, 1, step + 1))
        assert await sleeper.put([late]) == [Written.FENCED]
    assert await store.load(["/a"]) == [content(Version(1, 2, 4))]
    await sleeper.close()
