"""A store that a test may hold up, cut or break; behind it is the real file store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lstmserve.store import (
    LoadOutcome,
    Store,
    StoreTimeout,
    StoreUnavailable,
    Version,
    Write,
    WriteOutcome,
    Written,
    open_store,
    version_of,
)
from storing import raised
from wire import Wire, serving

Trouble = Callable[[], BaseException]


class Gate:
    """`load` and `put` of the store behind, unless one of the troubles is set."""

    def __init__(self, store: Store) -> None:
        self.behind = store
        self.loads = 0
        self.puts: list[Sequence[Write]] = []
        self.going, self.loading = asyncio.Event(), asyncio.Event()  # cleared: puts, loads wait
        self.answering = asyncio.Event()  # cleared: what is put is answered later
        for each in (self.going, self.loading, self.answering):
            each.set()
        self.not_sent: Trouble | None = None  # happens in place of a put
        self.lost: Trouble | None = None  # happens after a put
        self.is_full = False  # takes nothing but deletions
        self._is_taken: Callable[[Write], bool] | None = None

    async def load(self, keys: Sequence[str]) -> list[LoadOutcome]:
        """As Store.load."""
        self.loads += 1
        await self.loading.wait()
        return await self.behind.load(keys)

    async def put(self, writes: Sequence[Write]) -> list[WriteOutcome]:
        """As Store.put."""
        self.puts.append(writes)
        await self.going.wait()
        if self.not_sent is not None:
            return failed(self.not_sent, writes)
        if self._is_taken is not None and not all(map(self._is_taken, writes)):
            return failed(lambda: StoreUnavailable("away"), writes)
        if self.is_full and any(write.content for write in writes):
            return [Written.FULL] * len(writes)
        written = await self.behind.put(writes)
        await self.answering.wait()
        if self.lost is not None:
            return failed(self.lost, writes)
        return written

    async def quarantine(self, key: str, content: bytes) -> None:
        """As Store.quarantine."""
        await self.behind.quarantine(key, content)

    async def close(self) -> None:
        """As Store.close."""
        await self.behind.close()

    async def version(self, session_id: str) -> Version | None:
        """What is stored of a session without a tenant."""
        (content,) = raised(await self.behind.load([f"/{session_id}"]))
        return None if content is None else version_of(content)

    def only(self, is_taken: Callable[[Write], bool] | None) -> None:
        """Other writes are refused from now on; None: none is."""
        self._is_taken = is_taken

    @contextlib.contextmanager
    def held(self, *, are_loads: bool = False) -> Iterator[None]:
        """Puts, or loads, wait meanwhile."""
        going = self.loading if are_loads else self.going
        going.clear()
        try:
            yield
        finally:
            going.set()

    @contextlib.contextmanager
    def refusing(self, error: Trouble) -> Iterator[None]:
        """Nothing is put meanwhile."""
        self.not_sent = error
        try:
            yield
        finally:
            self.not_sent = None

    @contextlib.contextmanager
    def losing(self, error: Trouble) -> Iterator[None]:
        """What is put meanwhile has no answer."""
        self.lost = error
        try:
            yield
        finally:
            self.lost = None


def failed(trouble: Trouble, writes: Sequence[Write]) -> list[WriteOutcome]:
    """The outcome of writes that met the trouble; a bug is raised."""
    error = trouble()
    if isinstance(error, StoreUnavailable | StoreTimeout):
        return [error] * len(writes)
    raise error


@contextlib.asynccontextmanager
async def gated(folder: Path, **settings: Any) -> AsyncIterator[tuple[Wire, Gate]]:
    """A server in this process, and its store."""
    store = open_store(f"file:{folder / 'store'}", timeout_s=20)
    assert store is not None
    gate = Gate(store)
    models = folder / "models"
    models.mkdir(exist_ok=True)
    try:
        async with serving(models, store=gate, **settings) as wire:
            yield wire, gate
    finally:
        await store.close()
