"""The store of many machines: Valkey or Redis.

One call of a Lua script is one fenced compare-and-set; all writes of a put go out in one flush. A
record is as durable as the server keeps it: acknowledged writes survive this process, but not a
failover of the server. This module must not retry a write whose answer was lost, and must not show
its URL.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoScriptError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
)

from lstmserve.store.record import VERSION_SLICE, Version, pack_version
from lstmserve.store.redis_causes import Cause, cause_of
from lstmserve.store.store import (
    LoadOutcome,
    StoreRefused,
    StoreTimeout,
    StoreUnavailable,
    Write,
    WriteOutcome,
    Written,
)

# KEYS[1]; ARGV: the packed version expected ('': none), the new content ('': delete), its ttl in
# ms. The version lies in the record's header (record.py); '<i8' is exact below 2^53.
_PUT: Final = f"""
local expected = ARGV[1]
local found = redis.call('GETRANGE', KEYS[1], {VERSION_SLICE.start}, {VERSION_SLICE.stop - 1})
if found ~= expected or (expected == '' and redis.call('EXISTS', KEYS[1]) == 1) then
  if expected == '' or #found < #expected then return 'CONFLICT' end
  if found:sub(1, 8) ~= expected:sub(1, 8) then return 'CONFLICT' end
  local newer = struct.unpack('<i8', found, 9) > struct.unpack('<i8', expected, 9)
  return newer and 'FENCED' or 'CONFLICT'
end
if ARGV[2] == '' then redis.call('DEL', KEYS[1])
else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 'OK'
"""
# KEYS: the record's, and where it goes; ARGV[1]: the corrupt content.
_QUARANTINE: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('RENAME', KEYS[1], KEYS[2])
return redis.call('PERSIST', KEYS[2])
"""
# Runs every command that a record needs, and leaves no trace. The ACL must allow each of them.
_TRIAL: Final = """
redis.call('SET', KEYS[1], ARGV[1], 'PX', 10000)
redis.call('RENAME', KEYS[1], KEYS[2])
redis.call('PERSIST', KEYS[2])
return redis.call('DEL', KEYS[2])
"""
_TRIAL_KEYS: Final = ("s:!:747269616c", "s:!:747269616c:corrupt:0")  # no tenant is called "!"
_EVICTING: Final = (
    "its maxmemory-policy is {}: it drops sessions in silence when it is full; set noeviction"
)
_FULL: Final = "it is full: maxmemory is reached, and it takes no writes until there is room"
_PUT_SHA: Final = hashlib.sha1(_PUT.encode(), usedforsecurity=False).hexdigest()

_LOST: Final = "the store's answer was lost: {}"
# What the server answers instead of executing the command.
_REFUSALS: Final = (ResponseError, BusyLoadingError, AuthenticationError)


def redis_key(key: str) -> str:
    """The key of "TENANT/ID"; hex, so that no id can look like a hash tag or a pattern."""
    tenant, _, session_id = key.partition("/")
    return f"s:{tenant}:{session_id.encode().hex()}"


class _Misconfigured(StoreUnavailable):
    """The operator of the store, or of this server, has to change something."""


class _MisconfiguredLate(StoreTimeout):
    """A wrong setup that shows only after a command was sent."""


class _ByAddress(Connection):
    """A connection that resolves the host's name itself, before it connects.

    When uvloop is cancelled while it does both, it leaves a failed look-up that nothing retrieves.
    """

    _address = ""

    def _connection_arguments(self) -> dict[str, Any]:
        arguments = {**super()._connection_arguments(), "host": self._address}
        return {**arguments, "server_hostname": self.host} if "ssl" in arguments else arguments

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        failure: OSError | None = None
        for self._address in dict.fromkeys(str(address[0]) for *_, address in found):
            try:
                await super()._connect()  # type: ignore[no-untyped-call]  # redis-py leaves it bare
            except OSError as error:
                failure = error
            else:
                return
        assert failure is not None
        raise failure


class _ByAddressTls(_ByAddress, SSLConnection):
    """A _ByAddress with TLS; the certificate must match the host's name."""


class RedisStore:
    """A Store on one Valkey (8 or later) or Redis (7.0 or later) server, not a cluster.

    `connections_max` calls run at once; further calls wait. `timeout_s` limits first the wait for a
    ready connection, then the exchange on it. Nothing is sent before the first call.
    """

    def __init__(self, url: str, *, timeout_s: float = 2.0, connections_max: int = 4) -> None:
        """`url` has redis-py's form: redis:// or rediss:// (TLS). Raises StoreRefused."""
        self._timeout_s = timeout_s
        try:
            _check_form(url)
            self._pool = BlockingConnectionPool.from_url(
                url,
                max_connections=connections_max,
                timeout=timeout_s,
                socket_timeout=None,  # _exchange() limits the whole exchange
                retry=Retry(NoBackoff(), 0),
                protocol=2,
                driver_info=None,
            )
            kind = self._pool.connection_class
            self._is_tls = issubclass(kind, SSLConnection)
            self._pool.connection_class = _ByAddressTls if self._is_tls else _ByAddress
            trial = self._pool.connection_class(**self._pool.connection_kwargs)
            if isinstance(trial, SSLConnection):
                trial.ssl_context.get()
        except OSError as error:  # ssl.SSLError is one
            is_content = isinstance(error, ssl.SSLError)
            why = "they hold no certificate" if is_content else error.strerror
            raise StoreRefused(
                f"the certificate files that the store's URL names cannot be read: {why}"
            ) from None
        except (ValueError, TypeError, RedisError):  # their texts may quote the URL
            raise StoreRefused(
                "the store's redis URL has an error: give redis://USER:PASSWORD@HOST:PORT/DB, and "
                "percent-encode all but letters and digits in the password"
            ) from None
        self._is_proven = False  # whether a trial has passed since the last failure

    def spare(self, is_held: Callable[[str], bool]) -> None:
        """Does nothing: the server expires records by itself."""

    async def check(self) -> str:
        """Tries every command until a first trial has passed, then one load."""
        try:
            advice = "" if self._is_proven else await self._try()
            (trial,) = await self.load(["!/trial"])
            if isinstance(trial, StoreUnavailable):
                raise trial
        except (_Misconfigured, _MisconfiguredLate) as error:
            raise StoreRefused(f"the store cannot be used: {error.cause}") from None
        except StoreTimeout as error:
            raise StoreUnavailable(error.message, cause=error.cause) from None
        self._is_proven = True
        return advice

    async def _try(self) -> str:
        expected = pack_version(Version(1, 1, 1))
        replies = await self._exchange(
            [
                ("SCRIPT", "LOAD", _PUT),
                ("EVAL", _TRIAL, 2, *_TRIAL_KEYS, b"trial"),
                ("EVALSHA", _PUT_SHA, 1, _TRIAL_KEYS[0], expected, b"", 1),
                ("GET", _TRIAL_KEYS[0]),
                ("INFO", "memory"),
            ]
        )
        *needed, memory = replies
        for reply in needed:
            if isinstance(reply, OutOfMemoryError):
                return _FULL  # it still answers what it has: refused writes say STORE_FULL
            if isinstance(reply, Exception):
                raise self._error(reply)
        return _advice(memory)

    async def load(self, keys: Sequence[str]) -> list[LoadOutcome]:
        replies = await self._exchange([("GET", redis_key(key)) for key in keys])
        return [self._loaded(reply) for reply in replies]

    async def put(self, writes: Sequence[Write]) -> list[WriteOutcome]:
        commands = [_command(write) for write in writes]
        replies = await self._exchange(commands)
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # a restarted server has forgotten the script, and did nothing
            again = [("SCRIPT", "LOAD", _PUT), *(commands[i] for i in unknown)]
            _, *late = await self._exchange(again)
            for i, reply in zip(unknown, late, strict=True):
                replies[i] = reply
        return [self._written(reply) for reply in replies]

    async def quarantine(self, key: str, content: bytes) -> None:
        """Renames the record, which stays until the operator deletes it."""
        name = redis_key(key)
        aside = f"{name}:corrupt:{hashlib.sha256(content).hexdigest()[:16]}"
        (reply,) = await self._exchange([("EVAL", _QUARANTINE, 2, name, aside, content)])
        if isinstance(reply, Exception):
            raise self._error(reply)

    async def close(self) -> None:
        await self._pool.disconnect()

    async def _exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Sends the commands. Returns one reply per command, in order.

        A reply may be an exception: StoreUnavailable if nothing was sent, StoreTimeout if the
        answer was lost, one of redis-py's if the server refused the command.
        """
        if not commands:
            return []
        try:
            connection = await self._connected()
        except StoreUnavailable as error:
            return [error] * len(commands)
        replies: list[Any] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                packed = connection.pack_commands(commands)
                await connection.send_packed_command(packed, check_health=False)
                for _ in commands:
                    replies.append(await _reply(connection))  # noqa: PERF401 -- an error keeps them
        except (RedisError, OSError) as error:  # OSError: TimeoutError is one
            await connection.disconnect(nowait=True)
            replies += [self._lost(error)] * (len(commands) - len(replies))
        except BaseException:  # cancelled: the replies must not meet the next caller
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self._pool.release(connection)
        return replies

    async def _connected(self) -> AbstractConnection:
        try:
            async with asyncio.timeout(self._timeout_s):
                found: AbstractConnection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # redis-py leaves it bare
                return found
        except AuthenticationError as error:
            raise self._refused(error) from None
        except (RedisError, OSError) as error:
            message = f"no way to the store: {type(error).__name__}"
            raise self._unavailable(message, error, is_tls=self._is_tls) from None

    def _loaded(self, reply: Any) -> LoadOutcome:
        """The outcome of a key whose GET had this reply; MGET would say nil for a foreign type."""
        if isinstance(reply, StoreTimeout):
            return StoreUnavailable("the store did not answer", cause=reply.cause)
        if isinstance(reply, Exception):
            return reply if isinstance(reply, StoreUnavailable) else self._refused(reply)
        found: bytes | None = reply
        return found

    def _written(self, reply: Any) -> WriteOutcome:
        """The outcome of a write; if the server refused it, its script wrote nothing."""
        if isinstance(reply, OutOfMemoryError):
            return Written.FULL
        if isinstance(reply, Exception):
            return self._error(reply)
        return Written[reply.decode()]

    def _error(self, reply: Exception) -> StoreUnavailable | StoreTimeout:
        """The store's error for an exception in place of a reply."""
        return reply if isinstance(reply, StoreUnavailable | StoreTimeout) else self._refused(reply)

    def _refused(self, error: Exception) -> StoreUnavailable:
        return self._unavailable(f"the store refuses: {type(error).__name__}", error)

    def _unavailable(
        self, message: str, error: Exception, *, is_tls: bool = False
    ) -> StoreUnavailable:
        cause = self._cause(error, is_tls=is_tls)
        kind = _Misconfigured if cause.is_misconfigured else StoreUnavailable
        return kind(message, cause=cause.words, is_of_key=cause.is_of_key)

    def _lost(self, error: Exception) -> StoreTimeout:
        cause = self._cause(error)
        kind = _MisconfiguredLate if cause.is_misconfigured else StoreTimeout
        return kind(_LOST.format(type(error).__name__), cause=cause.words)

    def _cause(self, error: Exception, *, is_tls: bool = False) -> Cause:
        self._is_proven = False
        return cause_of(error, is_tls=is_tls)


def _check_form(url: str) -> None:
    """Raises ValueError for what redis-py would ignore silently, and connect elsewhere."""
    parts = urlsplit(url)
    if not parts.hostname or parts.fragment or not re.fullmatch(r"/?|/\d+/?", parts.path):
        raise ValueError("no host, a fragment, or a path that is no database's number")
    if parts.query:
        parse_qs(parts.query, strict_parsing=True)


def _command(write: Write) -> tuple[Any, ...]:
    """The EVALSHA command of one compare-and-set."""
    expected = b"" if write.expected is None else pack_version(write.expected)
    ttl_ms = max(1, round(write.ttl_s * 1000))
    return ("EVALSHA", _PUT_SHA, 1, redis_key(write.key), expected, write.content or b"", ttl_ms)


async def _reply(connection: AbstractConnection) -> Any:
    """The next reply, or the server's refusal as an exception; a broken connection raises."""
    try:
        return await connection.read_response(disconnect_on_error=False)
    except _REFUSALS as error:
        return error


def _advice(memory: Any) -> str:
    """What in INFO memory endangers sessions; "" where the ACL does not allow INFO."""
    if not isinstance(memory, bytes):
        return ""
    lines = (line.partition(":") for line in memory.decode(errors="replace").splitlines())
    facts = {name: value for name, _, value in lines}
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy == "noeviction" or facts.get("maxmemory", "0") == "0":
        return ""
    return _EVICTING.format(policy)
