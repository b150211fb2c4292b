"""What this server remembers of sessions that it no longer has, and the errors that follow from it.

A session may have been closed, expired, moved to the store or another server, lost in a restart, or
never opened. The memory is bounded, reads no clock, and never asks the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lstmserve.config import Config
from lstmserve.engine.clock import SECOND_NS
from lstmserve.engine.errors import (
    ServeError,
    SessionClosed,
    SessionExpired,
    SessionLost,
    SessionNotFound,
)
from lstmserve.engine.table import SUSPECT
from lstmserve.engine.ttl_cache import TtlCache

Lifetime = tuple[int, int, int]  # incarnation, epoch, step: as a store's Version

Ending = Literal["closed", "expired"]


@dataclass(frozen=True, slots=True)
class Tombstone:
    """How a session ended, and its last incarnation, epoch and step."""

    incarnation: int
    ending: Ending
    step: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Departure:
    """A session that moved to the store or to another server.

    `version` includes acknowledged steps that only this server knew; `durable_step` is the last one
    that the store confirmed; `trust` is the table's.
    """

    version: Lifetime
    durable_step: int
    trust: int
    is_evicted: bool


class PastSessions:
    """Tombstones, departures and claims by key, each kept for a while.

    Without a tombstone the error depends only on the request, so another tenant's session cannot be
    told from one that never existed.
    """

    def __init__(self, config: Config, boot_id: str) -> None:
        self._boot_id = boot_id
        count_max, tombstone_ns = config.tombstones_max, int(config.tombstone_s * SECOND_NS)
        kept_ns = int((config.session_ttl_s + config.tombstone_s) * SECOND_NS)
        self._tombstones: TtlCache[Tombstone] = TtlCache(count_max, tombstone_ns)
        self._departures: TtlCache[Departure] = TtlCache(count_max, kept_ns)
        self._claims: TtlCache[tuple[Lifetime, int]] = TtlCache(count_max, kept_ns)

    def add_tombstone(self, key: str, tombstone: Tombstone, now_ns: int) -> None:
        self._tombstones.put(key, tombstone, now_ns)

    def add_departure(self, key: str, departure: Departure, now_ns: int) -> None:
        self._departures.put(key, departure, now_ns)

    def add_claim(self, key: str, version: Lifetime, trust: int, now_ns: int) -> None:
        """Notes that this server is about to write the session under a new epoch or incarnation.

        If the store's answer is lost, the server recognises its own record later.
        """
        self._claims.put(key, (version, trust), now_ns)

    def trust_of(self, key: str, stored: Lifetime, now_ns: int) -> int | None:
        """The trust that a stored session deserves, by what this server knows of it.

        SUSPECT if the record is older than what was here; None if the server knows nothing of it.
        """
        claimed = self._claims.get(key, now_ns)
        if claimed is not None and claimed[0] == stored:
            return claimed[1]
        departure = self._departures.get(key, now_ns)
        if departure is None:
            return None
        if departure.version == stored:
            return departure.trust
        is_same_life = stored[0] == departure.version[0]
        is_older = stored < departure.version
        is_older |= is_same_life and stored[2] < departure.durable_step
        return SUSPECT if is_older else None

    def drop_tombstone(self, key: str) -> None:
        """Forgets the tombstone of a key that has a new session."""
        self._tombstones.drop(key)

    def drop_departure(self, key: str) -> None:
        """Forgets the departure of a session that is here again, as the store has it."""
        self._departures.drop(key)
        self._claims.drop(key)

    def sweep(self, now_ns: int) -> None:
        """Drops what is too old."""
        self._tombstones.sweep(now_ns)
        self._departures.sweep(now_ns)
        self._claims.sweep(now_ns)

    def closed_step(self, key: str, incarnation: int, now_ns: int) -> int:
        """The last step of a session that was closed. Raises error() for any other session."""
        tombstone = self._tombstone(key, incarnation, now_ns)
        if tombstone is None or tombstone.ending != "closed":
            raise self.error(key, incarnation, now_ns)
        return tombstone.step

    def has_expired(self, key: str, incarnation: int, epoch: int, now_ns: int) -> bool:
        """Whether this incarnation expired here while this server owned it under `epoch`."""
        tombstone = self._tombstone(key, incarnation, now_ns)
        if tombstone is None or tombstone.ending != "expired":
            return False
        return tombstone.epoch == epoch

    def error(self, key: str, incarnation: int, now_ns: int) -> ServeError:
        """The error for a session that is gone: closed, expired, lost, or not found."""
        tombstone = self._tombstone(key, incarnation, now_ns)
        if tombstone is not None and tombstone.ending == "closed":
            return SessionClosed("the session was closed: open it again")
        if tombstone is not None:
            return SessionExpired(
                "the session was idle for longer than its ttl and has ended: open it again"
            )
        departure = self._departures.get(key, now_ns)
        if (
            departure is not None
            and departure.is_evicted
            and incarnation in (0, departure.version[0])
        ):
            return SessionLost(
                "the session had moved out to the store, which has it no more: it expired there, "
                "or the store dropped it",
                metadata={"boot_id": self._boot_id},
            )
        if not incarnation:
            return SessionNotFound("no session has this id: open it first", field="session_id")
        return SessionLost(
            "this server does not have the session: it restarted, or the router sent you "
            "elsewhere; a server with --store keeps its sessions through a restart",
            metadata={"boot_id": self._boot_id},
        )

    def _tombstone(self, key: str, incarnation: int, now_ns: int) -> Tombstone | None:
        tombstone = self._tombstones.get(key, now_ns)
        if tombstone is None or incarnation not in (0, tombstone.incarnation):
            return None
        return tombstone
