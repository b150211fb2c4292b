"""Owns what is told about a session that is not here: closed, expired, lost, never opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lstmserve.config import Config
from lstmserve.engine.errors import (
    ServeError,
    SessionClosed,
    SessionExpired,
    SessionLost,
    SessionNotFound,
)
from lstmserve.engine.memory import SECOND_NS, Memory
from lstmserve.engine.table import SUSPECT

Lifetime = tuple[int, int, int]  # incarnation, epoch, step: as a store's Version

Ending = Literal["closed", "expired"]


@dataclass(frozen=True, slots=True)
class Tombstone:
    """How a session ended, and what it had come to."""

    incarnation: int
    ending: Ending
    step: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Held:
    """A session that was here, and went to the store, or to another server.

    `version` is what this server knew of it, acked steps included; `durable_step` what the store
    said that it had; `trust` the table's.
    """

    version: Lifetime
    durable_step: int
    trust: int
    is_evicted: bool


class Endings:
    """Tombstones by key. Without one, the answer depends on the request alone: someone else's

    session looks like one that never was.
    """

    def __init__(self, config: Config, boot_id: str) -> None:
        self._boot_id = boot_id
        self._tombstones: Memory[Tombstone] = Memory(
            config.tombstones_max, int(config.tombstone_s * SECOND_NS)
        )
        kept_s = config.session_ttl_s + config.tombstone_s
        self._held: Memory[Held] = Memory(config.tombstones_max, int(kept_s * SECOND_NS))
        self._claimed: Memory[tuple[Lifetime, int]] = Memory(
            config.tombstones_max, int(kept_s * SECOND_NS)
        )

    def put(self, key: str, tombstone: Tombstone, now_ns: int) -> None:
        """The session has ended."""
        self._tombstones.put(key, tombstone, now_ns)

    def hold(self, key: str, held: Held, now_ns: int) -> None:
        """The session is not here any more."""
        self._held.put(key, held, now_ns)

    def claim(self, key: str, version: Lifetime, trust: int, now_ns: int) -> None:
        """This server writes the session under an epoch or incarnation of its own. Should the
        answer be lost, it knows its record again."""
        self._claimed.put(key, (version, trust), now_ns)

    def trust_of(self, key: str, stored: Lifetime, now_ns: int) -> int | None:
        """What this server knows of a stored session that was here: its trust, SUSPECT if the
        record is older than what was here, None if it knows nothing of this version."""
        claimed = self._claimed.get(key, now_ns)
        if claimed is not None and claimed[0] == stored:
            return claimed[1]
        held = self._held.get(key, now_ns)
        if held is None:
            return None
        if held.version == stored:
            return held.trust
        is_same_life = stored[0] == held.version[0]
        is_older = stored < held.version or (is_same_life and stored[2] < held.durable_step)
        return SUSPECT if is_older else None

    def forget(self, key: str) -> None:
        """The id has a new life."""
        self._tombstones.forget(key)

    def settle(self, key: str) -> None:
        """What a store has of the id is here."""
        self._held.forget(key)
        self._claimed.forget(key)

    def sweep(self, now_ns: int) -> None:
        """Drops what is too old."""
        self._tombstones.sweep(now_ns)
        self._held.sweep(now_ns)
        self._claimed.sweep(now_ns)

    def closed_step(self, key: str, incarnation: int, now_ns: int) -> int:
        """The last step of a session that was closed. Raises error() for any other."""
        tombstone = self._get(key, incarnation, now_ns)
        if tombstone is None or tombstone.ending != "closed":
            raise self.error(key, incarnation, now_ns)
        return tombstone.step

    def has_expired(self, key: str, incarnation: int, epoch: int, now_ns: int) -> bool:
        """Whether this life of the id ended by its TTL, owned as it is by this epoch."""
        tombstone = self._get(key, incarnation, now_ns)
        if tombstone is None or tombstone.ending != "expired":
            return False
        return tombstone.epoch == epoch

    def error(self, key: str, incarnation: int, now_ns: int) -> ServeError:
        """SessionClosed, SessionExpired, SessionLost or SessionNotFound."""
        tombstone = self._get(key, incarnation, now_ns)
        if tombstone is not None and tombstone.ending == "closed":
            return SessionClosed("the session was closed: open it again")
        if tombstone is not None:
            return SessionExpired(
                "the session was idle for longer than its ttl and has ended: open it again"
            )
        held = self._held.get(key, now_ns)
        if held is not None and held.is_evicted and incarnation in (0, held.version[0]):
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

    def _get(self, key: str, incarnation: int, now_ns: int) -> Tombstone | None:
        tombstone = self._tombstones.get(key, now_ns)
        if tombstone is None or incarnation not in (0, tombstone.incarnation):
            return None
        return tombstone
