"""The interface of a store: raw records by key, one compare-and-set each, and its errors.

The engine makes the keys, "TENANT/ID". A store knows of a record only its version, never its state.
This module does no I/O, and must not know any particular store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from lstmserve.refusal import ServeError
from lstmserve.store.record import Version


class StoreRefused(Exception):
    """The store cannot be used as configured: one line for the operator, without any secret."""


class StoreFull(ServeError):
    """The store has no room."""

    reason = "STORE_FULL"


class _StoreAway(ServeError):
    """`cause` tells the operator why, in plain words and without a secret; clients do not see it.

    `is_final` says that only a restart of this process can help. `is_of_key` says that the store
    serves, but cannot use what it has under this one key.
    """

    def __init__(
        self,
        message: str,
        *,
        cause: str = "",
        is_final: bool = False,
        is_of_key: bool = False,
        metadata: dict[str, str] | None = None,
        retry_s: float | None = None,
    ) -> None:
        super().__init__(message, metadata=metadata, retry_s=retry_s)
        self.cause = cause
        self.is_final = is_final
        self.is_of_key = is_of_key


class StoreUnavailable(_StoreAway):
    """The store did not serve the call: nothing was read, or surely nothing was written."""

    reason = "STORE_UNAVAILABLE"


class StoreTimeout(_StoreAway):
    """The store's answer was lost: whether it was written is unknown."""

    reason = "STORE_TIMEOUT"


class Written(Enum):
    """What the store answered to one write; all but OK changed nothing."""

    OK = auto()
    CONFLICT = auto()  # another version is there, or none where one was expected
    FENCED = auto()  # the same session under a higher epoch: another server owns it now
    FULL = auto()  # no room; the record that was there is intact


# The outcome of one key of a call. An error is returned in its key's place, not raised, so that the
# other keys keep their outcomes.
LoadOutcome = bytes | None | StoreUnavailable
WriteOutcome = Written | StoreUnavailable | StoreTimeout


@dataclass(frozen=True, slots=True)
class Write:
    """One compare-and-set: replace the `expected` version (None: nothing) by `content`.

    `content` is an encoded record, None deletes. It expires `ttl_s` seconds later by the store's
    own clock: then load() finds it no more, and a creation may take its place. Until the store
    drops it, a write that expects its version still succeeds.
    """

    key: str
    expected: Version | None
    content: bytes | None
    ttl_s: float

    def __post_init__(self) -> None:
        assert self.expected or self.content, "deletes nothing"
        assert self.ttl_s > 0, self.ttl_s


def refusal(expected: Version | None, found: Version | None) -> Written:
    """Why the store refuses a write that expected another version than the one it found."""
    if expected and found and expected.incarnation == found.incarnation:
        return Written.FENCED if expected.epoch < found.epoch else Written.CONFLICT
    return Written.CONFLICT


class Store(Protocol):
    """Keeps sessions beyond the life of the process. It never blocks the loop's thread.

    `load` and `put` return one outcome per key, in order, and raise no error of the store.
    """

    async def load(self, keys: Sequence[str]) -> list[LoadOutcome]:
        """The raw record of each key, None where there is none, or StoreUnavailable."""

    async def put(self, writes: Sequence[Write]) -> list[WriteOutcome]:
        """Sends all writes in one flush, in order; each is atomic by itself.

        StoreUnavailable means surely not written, StoreTimeout unknown. When a call is cancelled,
        or raises because of a bug, it is unknown whether each of its writes was written.
        """

    async def quarantine(self, key: str, content: bytes) -> None:
        """Moves a corrupt record aside for the operator, if the key still holds it.

        Repeating it is harmless. Raises StoreUnavailable, StoreTimeout or StoreFull.
        """

    async def close(self) -> None:
        """Releases files and connections; the store must not be called after it."""


class StoreOfServer(Store, Protocol):
    """A Store with the two methods that the server needs and the engine does not."""

    def spare(self, is_held: Callable[[str], bool]) -> None:
        """Keeps records of keys that this server holds from expiring, where the store can do that.

        The store calls `is_held` on the loop's thread.
        """

    async def check(self) -> str:
        """Tries whether the store serves; returns what endangers sessions there, or "".

        Raises StoreUnavailable, or StoreRefused for what only an operator can change.
        """
