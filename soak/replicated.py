"""A Valkey and its replica, to cut off, kill and promote. Their roles change each time."""

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
    """Writes go to the replica when it is there; an ack does not wait for it."""

    def __init__(self, folder: Path) -> None:
        self._folders = (folder / f"valkey-{i}" for i in itertools.count())
        self.primary = self._start()
        self.replica = self._start("--replicaof", "127.0.0.1", str(self.primary.port))

    async def in_step(self) -> None:
        """Waits until the replica has every write."""
        async with Redis.from_url(self.replica.url) as replica:
            while (await replica.info("replication"))["master_link_status"] != "up":
                await pause(POLL_S)

    async def cut(self) -> None:
        """Cuts the replica off from all later writes."""
        async with Redis.from_url(self.replica.url) as replica:
            await replica.execute_command("REPLICAOF", "NO", "ONE")

    async def fail_over(self) -> None:
        """Kills the primary with kill -9, and promotes the replica, which then has no replica."""
        await asyncio.to_thread(self.primary.kill)
        self.primary = self.replica

    async def replicate(self) -> None:
        """Gives the primary a new replica."""
        arguments = ("--replicaof", "127.0.0.1", str(self.primary.port))
        self.replica = await asyncio.to_thread(self._start, *arguments)

    async def read(self, keys: list[str]) -> list[bytes | None]:
        """What the primary has under these keys."""
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
