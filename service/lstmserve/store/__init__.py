"""The stores, in which sessions outlive the process.

This package must not know the engine, the transport or the log.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lstmserve.extras import hint
from lstmserve.store.file import FileStore
from lstmserve.store.record import (
    CorruptRecord,
    Record,
    StoredState,
    UnknownRecord,
    Version,
    decode,
    encode,
    lstm_states,
    version_of,
)
from lstmserve.store.store import (
    LoadOutcome,
    Store,
    StoreFull,
    StoreOfServer,
    StoreRefused,
    StoreTimeout,
    StoreUnavailable,
    Write,
    WriteOutcome,
    Written,
)

__all__ = [
    "CorruptRecord",
    "LoadOutcome",
    "Record",
    "Store",
    "StoreFull",
    "StoreOfServer",
    "StoreRefused",
    "StoreTimeout",
    "StoreUnavailable",
    "StoredState",
    "UnknownRecord",
    "Version",
    "Write",
    "WriteOutcome",
    "Written",
    "decode",
    "encode",
    "lstm_states",
    "open_store",
    "version_of",
]


REDIS_KINDS: Final = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
}


def open_store(
    url: str,
    *,
    timeout_s: float = 2.0,
    sync: bool = False,
    bytes_max: int | None = None,
    connections_max: int = 4,
) -> StoreOfServer | None:
    """Opens the store that `url` names, and blocks meanwhile; None for "memory".

    `file:DIR` takes `sync` and `bytes_max`, `redis://` and `rediss://` (or `valkey://` and
    `valkeys://`, which mean the same) take `connections_max`. Raises StoreRefused with one line for
    the operator, which does not contain the URL.
    """
    kind, _, rest = url.partition(":")
    if url == "memory":
        return None
    if kind == "file" and rest:
        return FileStore(Path(rest), sync=sync, bytes_max=bytes_max, timeout_s=timeout_s)
    if kind in REDIS_KINDS and rest.startswith("//"):
        try:
            from lstmserve.store.redis import RedisStore
        except ImportError as error:
            raise StoreRefused(f"redis:// needs redis-py: {hint('store')}") from error
        return RedisStore(
            f"{REDIS_KINDS[kind]}:{rest}", timeout_s=timeout_s, connections_max=connections_max
        )
    raise StoreRefused("a store is memory, file:DIR, redis://HOST or rediss://HOST")
