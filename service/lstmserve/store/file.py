"""The embedded store of one machine: a SQLite database behind one thread, with time limits.

It must never block the event loop; database.py, which does the work, blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from lstmserve.store.clock import Read, read_clocks
from lstmserve.store.database import RecordDatabase
from lstmserve.store.store import (
    LoadOutcome,
    StoreTimeout,
    StoreUnavailable,
    Write,
    WriteOutcome,
)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

FILE_NAME = "sessions.sqlite3"


class FileStore:
    """A Store in a folder that one process at a time can open.

    What was put survives kill -9, and with `sync` a power cut too, as far as disk and file system
    keep what fsync promises. `bytes_max` limits the file without its log; beyond it, as on a full
    disk, writes are FULL. `read` reads the machine's clocks.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sync: bool = False,
        bytes_max: int | None = None,
        timeout_s: float = 5.0,
        read: Read = read_clocks,
    ) -> None:
        """Opens or creates the folder, and blocks meanwhile. Raises StoreRefused."""
        self._is_held: Callable[[str], bool] = lambda _: False
        self._expired: list[str] = []  # found by a sweep and not yet dropped
        self._timeout_s = timeout_s
        self._thread = ThreadPoolExecutor(1, "lstmserve-store")
        try:
            opening = self._thread.submit(
                RecordDatabase, folder / FILE_NAME, sync=sync, bytes_max=bytes_max, read=read
            )
            self._database = opening.result()
        except BaseException:
            self._thread.shutdown()
            raise

    def spare(self, is_held: Callable[[str], bool]) -> None:
        self._is_held = is_held

    async def check(self) -> str:
        """Checks that the file is still at its path, and that the disk answers."""
        try:
            await self._run(self._database.check)
        except TimeoutError as error:
            raise StoreUnavailable("the store did not answer", cause=self._slow) from error
        return ""

    async def load(self, keys: Sequence[str]) -> list[LoadOutcome]:
        held = {key for key in keys if self._is_held(key)}
        try:
            return await self._run(self._database.load, keys, held)
        except TimeoutError:
            return [StoreUnavailable("the store did not answer", cause=self._slow)] * len(keys)

    async def put(self, writes: Sequence[Write]) -> list[WriteOutcome]:
        doomed = [key for key in self._expired if not self._is_held(key)]
        self._expired = []
        try:
            outcomes, self._expired = await self._run(self._database.put, writes, doomed)
        except TimeoutError:
            return [StoreTimeout("the store did not answer", cause=self._slow)] * len(writes)
        return outcomes

    async def quarantine(self, key: str, content: bytes) -> None:
        """Moves the record to the table `quarantine`."""
        try:
            await self._run(self._database.quarantine, key, content)
        except TimeoutError as error:
            raise StoreTimeout("the store did not answer", cause=self._slow) from error

    async def close(self) -> None:
        """Closes the database, but does not wait for a disk that hangs."""
        try:
            await self._run(self._database.close)
        except TimeoutError:
            pass
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def _slow(self) -> str:
        return f"the disk has not answered for {self._timeout_s:g} s"

    async def _run(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """The work's result, once the work before it is done. Raises TimeoutError."""
        async with asyncio.timeout(self._timeout_s):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, work, *arguments)
