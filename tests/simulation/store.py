"""The fake store: the real compare-and-set on a dict, behind a line that loses and delays.

The odds say what is refused, lost or applied late, of whole calls and of single keys; store.py says
what a write means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from lstmserve.store import (
    LoadOutcome,
    StoreTimeout,
    StoreUnavailable,
    Version,
    Write,
    WriteOutcome,
    Written,
    decode,
    version_of,
)
from lstmserve.store.store import refusal
from simulation.faults import Faults
from simulation.loop import now_s, pass_time

TIMEOUT_S = 0.3

Result = TypeVar("Result")


class Shelf:
    """The records that all servers share: key -> (record, when it expires)."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.records: dict[str, tuple[bytes, float]] = {}
        self.is_down = False

    def load(self, key: str) -> bytes | None:
        """The record that has not expired."""
        content, expiry_s = self.records.get(key, (None, 0.0))
        return content if expiry_s > now_s() else None

    def go_back(self, older: dict[str, tuple[bytes, float]]) -> None:
        """Goes back to an older copy, like a replica that becomes the store."""
        if older != self.records:
            self.faults.note("store", "is older")
            self.faults.is_store_older = True
            self.faults.count["older stores"] += 1
            self.records = older

    def write(self, write: Write) -> Written:
        """Makes one compare-and-set."""
        content = self.load(write.key)
        found = None if content is None else version_of(content)
        self.faults.note(
            "store", write.key, "has", found, "gets", write.expected, "->", _new(write)
        )
        if refused := self.compare(write.expected, found):
            self.faults.count["store writes refused"] += 1
            self.faults.count["stale-owner writes refused"] += refused is Written.FENCED
            return refused
        if write.content is None:
            self.records.pop(write.key, None)
        else:
            self._check(found, decode(write.content).version)
            self.records[write.key] = (write.content, now_s() + write.ttl_s)
        return Written.OK

    @staticmethod
    def compare(expected: Version | None, found: Version | None) -> Written | None:
        """Why a write is refused, or None."""
        return None if found == expected else refusal(expected, found)

    def _check(self, found: Version | None, new: Version) -> None:
        """Checks that no write takes a session back, in its owner's number or its step."""
        if found is not None and found.incarnation == new.incarnation:
            self.faults.require(found.epoch <= new.epoch, f"epoch went back: {found} -> {new}")
            self.faults.require(found.step <= new.step, f"durable went back: {found} -> {new}")


class Line(Protocol):
    """The server at this end of the line."""

    async def awake(self) -> None:
        """Waits until the process runs; for ever if it is dead."""

    def crash(self) -> None:
        """Kills it."""


class StoreLine:
    """One server's Store."""

    def __init__(self, shelf: Shelf, server: Line) -> None:
        self._shelf = shelf
        self._faults = shelf.faults
        self._server = server

    async def load(self, keys: Sequence[str]) -> list[LoadOutcome]:
        try:
            return await self._exchange(lambda: [self._load(key) for key in keys])
        except (StoreUnavailable, StoreTimeout) as error:
            return [StoreUnavailable(error.message)] * len(keys)

    def _load(self, key: str) -> LoadOutcome:
        if self._faults.happens("store_key_unread"):
            self._faults.count["store keys not read"] += 1
            return StoreUnavailable("the key cannot be read", is_of_key=True)
        return self._shelf.load(key)

    def _write(self, write: Write) -> WriteOutcome:
        """Makes one write of a call; it alone may be refused, or its answer lost."""
        faults = self._faults
        if faults.happens("store_key_refused"):
            faults.count["store keys refused"] += 1
            return StoreUnavailable("the key cannot be written", is_of_key=True)
        if not faults.happens("store_key_lost"):
            return self._shelf.write(write)
        if faults.random.random() < 0.5:
            self._shelf.write(write)
        faults.count["store keys unknown"] += 1
        return StoreTimeout("the key's answer was lost")

    async def put(self, writes: Sequence[Write]) -> list[WriteOutcome]:
        """Makes the writes, perhaps long after the caller has given up or died."""
        try:
            return await self._put(writes)
        except (StoreUnavailable, StoreTimeout) as error:
            return [error.with_traceback(None)] * len(writes)

    async def _put(self, writes: Sequence[Write]) -> list[WriteOutcome]:
        """Raises StoreUnavailable and StoreTimeout if that happened to all writes."""
        faults = self._faults

        def apply() -> list[WriteOutcome] | None:
            if faults.happens("crash_before"):
                faults.count["crashes before commit"] += 1
                self._server.crash()
                return None
            count = len(writes)
            if is_cut := faults.happens("store_cut"):
                count = faults.random.randrange(count)
            outcomes = [self._write(write) for write in writes[:count]]
            left = len(writes) - count
            if faults.happens("crash_after"):
                faults.count["crashes after commit"] += 1
                self._server.crash()
            if is_cut and faults.random.random() < 0.5:
                return None
            return outcomes + [StoreTimeout("the store's answer ended early")] * left

        return await self._exchange(apply)

    async def quarantine(self, key: str, content: bytes) -> None:
        """Does nothing: no record is ever corrupt here."""
        raise AssertionError(f"{key} was found corrupt")

    async def close(self) -> None:
        """Does nothing: nothing is held."""

    async def _exchange(self, work: Callable[[], Result | None]) -> Result:
        """Sends work there and back. Raises StoreUnavailable, or StoreTimeout if it was sent."""
        faults = self._faults
        await self._server.awake()
        if self._shelf.is_down:
            await pass_time(0.01)
            faults.count["store outages met"] += 1
            raise StoreUnavailable("the store is away")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()

        def give(result: Result) -> None:
            if not answer.done():
                answer.set_result(result)

        def arrive() -> None:
            result = work()
            if result is None or faults.happens("store_lost_reply"):
                faults.count["store replies lost"] += 1
            else:
                loop.call_later(faults.store_delay_s(), give, result)

        if faults.happens("store_lost_request"):
            faults.count["store requests lost"] += 1
        else:
            loop.call_later(faults.store_delay_s(), arrive)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                result = await answer
        except TimeoutError:
            await self._server.awake()
            raise StoreTimeout("no answer", retry_s=0.1) from None
        await self._server.awake()
        return result


def _new(write: Write) -> Version | None:
    return None if write.content is None else version_of(write.content)
