"""Owns a Valkey and its replica: cut off, killed, promoted. Which is which changes each time."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any, Self

from redis.asyncio import Redis

from soak.timing import pause
from storing import Valkey

POLL_S = 0.05


class Replicated:
    """Writes are replicated when the replica is there; an ack does not wait for it."""

    def __init__(self, folder: Path) -> None:
        self._folders = (folder / f"valkey-{i}" for i in itertools.count())
        self.primary = self._start()
        self.replica = self._start("--replicaof", "127.0.0.1", str(self.primary.port))

    async def in_step(self) -> None:
        """Until the replica has everything that it was told."""
        async with Redis.from_url(self.replica.url) as replica:
            while (await replica.info("replication"))["master_link_status"] != "up":
                await pause(POLL_S)

    async def cut(self) -> None:
        """From now on the replica hears of nothing."""
        async with Redis.from_url(self.replica.url) as replica:
            await replica.execute_command("REPLICAOF", "NO", "ONE")

    async def fail_over(self) -> None:
        """kill -9 of the primary; the replica is one, and has none of its own."""
        await asyncio.to_thread(self.primary.kill)
        self.primary = self.replica

    async def replicate(self) -> None:
        """The primary gets a replica."""
        arguments = ("--replicaof", "127.0.0.1", str(self.primary.port))
        self.replica = await asyncio.to_thread(self._start, *arguments)

    async def read(self, keys: list[str]) -> list[bytes | None]:
        """What the primary has."""
        async with Redis.from_url(self.primary.url) as primary:
            found: list[Any] = await primary.mget(keys)
            return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.primary.kill()
        self.replica.kill()

    def _start(self, *options: str) -> Valkey:
        folder = next(self._folders)
        folder.mkdir()
        return Valkey(folder, "--repl-diskless-sync-delay", "0", *options)
