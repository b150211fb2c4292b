"""Owns the store of many machines: Valkey or Redis. Never retries a write, never shows its URL.

One Lua script call per row is one fenced compare-and-set; all rows of a put go out in one flush.
What the server promises is what holds: acknowledged writes survive us, not the server's failover.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection
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

from lstmserve.store.errors import StoreTimeout, StoreUnavailable
from lstmserve.store.record import VERSION_SLICE, pack_version
from lstmserve.store.store import StoreRefused, Write, Written

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
_PUT_SHA: Final = hashlib.sha1(_PUT.encode(), usedforsecurity=False).hexdigest()

# What the server answers instead of doing what it was told.
_REFUSALS: Final = (ResponseError, BusyLoadingError, AuthenticationError)


def redis_key(key: str) -> str:
    """Of the engine's "TENANT/ID"; hex, so that no id can look like a hash tag or a pattern."""
    tenant, _, session_id = key.partition("/")
    return f"s:{tenant}:{session_id.encode().hex()}"


class RedisStore:
    """A Store on one Valkey (8 or later) or Redis (7.0 or later) server, not a cluster.

    `connections_max` calls run at once, more wait their turn. `timeout_s` bounds first the way to a
    ready connection, then the exchange on it. Nothing is sent before the first call.
    """

    def __init__(self, url: str, *, timeout_s: float = 2.0, connections_max: int = 4) -> None:
        """`url` as redis-py reads it: redis:// or rediss:// (TLS). Raises StoreRefused."""
        self._timeout_s = timeout_s
        try:
            self._pool = BlockingConnectionPool.from_url(
                url,
                max_connections=connections_max,
                timeout=timeout_s,
                socket_timeout=None,  # the whole exchange has one limit, here
                retry=Retry(NoBackoff(), 0),
                protocol=2,
                driver_info=None,
            )
            self._pool.connection_class(**self._pool.connection_kwargs)
        except (ValueError, TypeError, RedisError):  # their texts may quote the URL
            raise StoreRefused("the store's redis URL has an error") from None

    async def load(self, keys: Sequence[str]) -> list[bytes | None]:
        """As Store.load."""
        if not keys:
            return []
        try:
            (reply,) = await self._exchange([("MGET", *map(redis_key, keys))])
        except StoreTimeout as error:
            raise StoreUnavailable("the store did not answer") from error
        if isinstance(reply, Exception):
            raise _refused(reply)
        found: list[bytes | None] = reply
        return found

    async def put(self, writes: Sequence[Write]) -> list[Written]:
        """As Store.put."""
        commands = [_command(write) for write in writes]
        replies = await self._exchange(commands)
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # a restarted server has forgotten the script, and did nothing
            again = [("SCRIPT", "LOAD", _PUT), *(commands[i] for i in unknown)]
            try:
                _, *late = await self._exchange(again)
            except StoreUnavailable as error:
                raise _lost(error) if len(unknown) < len(writes) else error from None
            for i, reply in zip(unknown, late, strict=True):
                replies[i] = reply
        return _outcomes(replies)

    async def quarantine(self, key: str, content: bytes) -> None:
        """As Store.quarantine; the record is renamed, and kept until somebody deletes it."""
        name = redis_key(key)
        aside = f"{name}:corrupt:{hashlib.sha256(content).hexdigest()[:16]}"
        (reply,) = await self._exchange([("EVAL", _QUARANTINE, 2, name, aside, content)])
        if isinstance(reply, Exception):
            raise _refused(reply)

    async def close(self) -> None:
        """As Store.close."""
        await self._pool.disconnect()

    async def _exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """One reply per command, in order; where one was refused, its exception in its place.

        Raises StoreUnavailable before anything was sent, StoreTimeout from then on.
        """
        if not commands:
            return []
        connection = await self._connected()
        try:
            async with asyncio.timeout(self._timeout_s):
                packed = connection.pack_commands(commands)
                await connection.send_packed_command(packed, check_health=False)
                return [await _reply(connection) for _ in commands]
        except (RedisError, OSError) as error:  # OSError: TimeoutError is one
            await connection.disconnect(nowait=True)
            raise _lost(error) from None
        except BaseException:  # cancelled: the replies must not meet the next caller
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self._pool.release(connection)

    async def _connected(self) -> AbstractConnection:
        try:
            async with asyncio.timeout(self._timeout_s):
                found: AbstractConnection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # redis-py leaves it bare
                return found
        except AuthenticationError as error:
            raise _refused(error) from None
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"no way to the store: {type(error).__name__}") from None


def _command(write: Write) -> tuple[Any, ...]:
    """EVALSHA of the compare-and-set."""
    expected = b"" if write.expected is None else pack_version(write.expected)
    ttl_ms = max(1, round(write.ttl_s * 1000))
    return ("EVALSHA", _PUT_SHA, 1, redis_key(write.key), expected, write.content or b"", ttl_ms)


async def _reply(connection: AbstractConnection) -> Any:
    """The next reply, or the server's refusal as an exception; a broken connection raises."""
    try:
        return await connection.read_response(disconnect_on_error=False)
    except _REFUSALS as error:
        return error


def _outcomes(replies: list[Any]) -> list[Written]:
    """Raises StoreUnavailable when every write was refused, StoreTimeout when only some were."""
    outcomes = [Written.FULL if isinstance(reply, OutOfMemoryError) else reply for reply in replies]
    refused = [reply for reply in outcomes if isinstance(reply, Exception)]
    if refused and len(refused) == len(replies):
        raise _refused(refused[0])
    if refused:
        raise _lost(refused[0])
    return [Written[o.decode()] if isinstance(o, bytes) else o for o in outcomes]


def _refused(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"the store refuses: {type(error).__name__}")


def _lost(error: Exception) -> StoreTimeout:
    return StoreTimeout(f"the store's answer was lost: {type(error).__name__}")
