"""Bytes of a session on Valkey's disk: `PYTHONPATH=service:tests python -m bench.valkey_disk`."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

from redis.asyncio import Redis

from lstmserve.store import Record, Version, Write, encode, lstm_states
from lstmserve.store.redis import RedisStore
from storing import Valkey

SESSIONS, STEPS, FLUSH = 2000, 5, 100
AOF = ("--appendonly", "yes", "--auto-aof-rewrite-percentage", "0")
POLL_S = 0.1


def _write(number: int, step: int, state_bytes: int) -> Write:
    states = lstm_states(os.urandom(state_bytes), os.urandom(state_bytes))
    new = Version(7, 1, step)
    content = encode(
        Record(
            *new,
            model="weather",
            model_version=1,
            fingerprint=os.urandom(32),
            ttl_ns=86_400 * 10**9,
            open_time_ns=1,
            states=states,
            digest=step,
        )
    )
    expected = Version(7, 1, step - 1) if step else None
    return Write(f"acme/station-{number:08d}", expected, content, 86_400.0)


async def _put(store: RedisStore, step: int, state_bytes: int) -> None:
    for first in range(0, SESSIONS, FLUSH):
        numbers = range(first, first + FLUSH)
        await store.put([_write(number, step, state_bytes) for number in numbers])


async def _saved(admin: Redis) -> None:
    """Waits until Valkey writes nothing any more."""
    while True:
        facts = await admin.info("persistence")
        if not any(facts[f"{kind}_in_progress"] for kind in ("aof_rewrite", "rdb_bgsave")):
            return
        await asyncio.sleep(POLL_S)


def _bytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / SESSIONS


async def measure(hidden: int, layers: int) -> str:
    """One line of bytes: RDB, AOF as written, each further step, AOF once it is rewritten."""
    size = 4 * hidden * layers
    found = []
    for options in ((), AOF):
        with tempfile.TemporaryDirectory() as folder, Valkey(Path(folder), *options) as server:
            store, admin = RedisStore(server.url, timeout_s=60), Redis.from_url(server.url)
            await _put(store, 0, size)
            if not options:
                await admin.save()
            found.append(_bytes(Path(folder)))
            if options:
                for step in range(1, STEPS + 1):
                    await _put(store, step, size)
                found.append((_bytes(Path(folder)) - found[-1]) / STEPS)
                await admin.bgrewriteaof()
                await _saved(admin)
                await asyncio.sleep(1)  # the history is deleted in the background
                found.append(_bytes(Path(folder)))
            await store.close()
            await admin.aclose()
    record = len(_write(0, 0, size).content or b"")
    words = ("RDB", "AOF", "each further step", "AOF after a rewrite")
    facts = ", ".join(f"{word} {value:,.0f}" for word, value in zip(words, found, strict=True))
    return f"H={hidden}, {layers} layers, record {record:,}: {facts}"


def main() -> None:
    """Prints the figures of docs/SCALING.md."""
    for hidden, layers in ((128, 1), (512, 2)):
        print(asyncio.run(measure(hidden, layers)))


if __name__ == "__main__":
    main()
