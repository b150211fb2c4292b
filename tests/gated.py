"""A store that a test can hold up, cut off or break, in front of the real file store."""

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
    """Passes `load` and `put` on to the file store, unless one of the troubles is set."""

    def __init__(self, store: Store) -> None:
        self.behind = store
        self.loads = 0
        self.puts: list[Sequence[Write]] = []
        self.going, self.loading = asyncio.Event(), asyncio.Event()  # cleared: puts, loads wait
        self.answering = asyncio.Event()  # cleared: answers to puts come later
        for each in (self.going, self.loading, self.answering):
            each.set()
        self.not_sent: Trouble | None = None  # raised in place of a put
        self.lost: Trouble | None = None  # raised after a put
        self.is_full = False  # whether it takes nothing but deletions
        self._is_taken: Callable[[Write], bool] | None = None

    async def load(self, keys: Sequence[str]) -> list[LoadOutcome]:
        self.loads += 1
        await self.loading.wait()
        return await self.behind.load(keys)

    async def put(self, writes: Sequence[Write]) -> list[WriteOutcome]:
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
        await self.behind.quarantine(key, content)

    async def close(self) -> None:
        await self.behind.close()

    async def version(self, session_id: str) -> Version | None:
        """The stored version of a session without a tenant."""
        (content,) = raised(await self.behind.load([f"/{session_id}"]))
        return None if content is None else version_of(content)

    def only(self, is_taken: Callable[[Write], bool] | None) -> None:
        """Refuses all other writes from now on; None refuses none."""
        self._is_taken = is_taken

    @contextlib.contextmanager
    def held(self, *, are_loads: bool = False) -> Iterator[None]:
        """Holds up puts, or loads, while the block runs."""
        going = self.loading if are_loads else self.going
        going.clear()
        try:
            yield
        finally:
            going.set()

    @contextlib.contextmanager
    def refusing(self, error: Trouble) -> Iterator[None]:
        """Refuses puts with the error while the block runs."""
        self.not_sent = error
        try:
            yield
        finally:
            self.not_sent = None

    @contextlib.contextmanager
    def losing(self, error: Trouble) -> Iterator[None]:
        """Loses the answers of puts while the block runs."""
        self.lost = error
        try:
            yield
        finally:
            self.lost = None


def failed(trouble: Trouble, writes: Sequence[Write]) -> list[WriteOutcome]:
    """The outcomes of writes that met the trouble. Raises a bug."""
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
