"""Owns what a store is to the engine: raw records by key, one compare-and-set each. No I/O.

Keys are the engine's, "TENANT/ID". A store knows of a record only its version, never its state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from lstmserve.store.record import Version


class StoreRefused(Exception):
    """The store cannot be used as configured: one line for the operator, without any secret."""


class Written(Enum):
    """What became of one write; all but OK changed nothing."""

    OK = auto()
    CONFLICT = auto()  # another version is there, or none where one was expected
    FENCED = auto()  # the same session under a higher epoch: another server owns it now
    FULL = auto()  # no room; the record that was there is intact


@dataclass(frozen=True, slots=True)
class Write:
    """One compare-and-set: replace the `expected` version (None: nothing) by `content`.

    `content` is an encoded record, None deletes. It expires `ttl_s` seconds later by the store's
    own clock: then load() finds it no more, and a creation may take its place. Until it is gone
    for good, whoever knows its version may still write it.
    """

    key: str
    expected: Version | None
    content: bytes | None
    ttl_s: float

    def __post_init__(self) -> None:
        assert self.expected or self.content, "deletes nothing"
        assert self.ttl_s > 0, self.ttl_s


def refusal(expected: Version | None, found: Version | None) -> Written:
    """Why a write that expected another version than the one found is refused."""
    if expected and found and expected.incarnation == found.incarnation:
        return Written.FENCED if expected.epoch < found.epoch else Written.CONFLICT
    return Written.CONFLICT


class Store(Protocol):
    """Where sessions outlive the process. Called on the loop's thread, and never blocks it."""

    async def load(self, keys: Sequence[str]) -> list[bytes | None]:
        """The raw record of each key, None where there is none. Raises StoreUnavailable."""

    async def put(self, writes: Sequence[Write]) -> list[Written]:
        """All writes in one flush, in order, each atomic by itself; one outcome each.

        Raises StoreUnavailable (surely nothing was written) or StoreTimeout (unknown, for each).
        A cancelled call is as unknown as a timed-out one.
        """

    async def quarantine(self, key: str, content: bytes) -> None:
        """Moves a corrupt record aside for the operator, if it is still what the key holds.

        Raises StoreUnavailable, StoreTimeout or StoreFull; again is harmless.
        """

    async def close(self) -> None:
        """Lets go of files and connections; nothing may be called after it."""


class StoreOfServer(Store, Protocol):
    """What a server asks of its store beside what its engine does."""

    def spare(self, is_held: Callable[[str], bool]) -> None:
        """Records of keys that are held here do not expire, where the store leaves that to us.

        `is_held` is called on the loop's thread.
        """

    async def check(self) -> str:
        """Whether it would serve; what there endangers sessions, "" when nothing is known to.

        Raises StoreUnavailable, or StoreRefused for what only an operator can change.
        """
