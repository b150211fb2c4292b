"""What goes wrong in a run, how often, and how often it did. The seed makes every choice."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields, replace
from random import Random

from simulation.loop import START_S, now_s


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(frozen=True, slots=True)
class Odds:
    """The probability of each fault, per occasion."""

    lost: float  # a packet
    repeated: float  # a request is sent once more, soon or after later steps
    late: float  # a packet, by seconds
    cancelled: float  # the server hears that a client gave up
    rerouted: float  # a stale router picks any server
    store_slow: float
    store_lost_request: float
    store_lost_reply: float
    store_cut: float  # a part of the writes is done, with or without a reply
    store_key_refused: float  # one write of a call
    store_key_lost: float  # the answer to one write of a call
    store_key_unread: float  # one key of a load
    crash_before: float  # of the server, when its write arrives
    crash_after: float
    failing: float  # a run of the kernel
    pauses: float  # per second: a server stands still, and wakes up late
    crashes: float  # per second, at any moment
    drains: float  # per second: a server ends in order
    outages: float  # per second, of the store
    store_older: float  # per second: the store goes back to an older copy of itself


HIGHEST = Odds(
    lost=0.15,
    repeated=0.2,
    late=0.1,
    cancelled=0.7,
    rerouted=0.3,
    store_slow=0.2,
    store_lost_request=0.05,
    store_lost_reply=0.08,
    store_cut=0.04,
    store_key_refused=0.04,
    store_key_lost=0.04,
    store_key_unread=0.03,
    crash_before=0.01,
    crash_after=0.02,
    failing=0.05,
    pauses=0.3,
    crashes=0.1,
    drains=0.1,
    outages=0.1,
    store_older=0.8,
)
ORDERLY = Odds(*(0.0 for _ in fields(Odds)))  # nothing is ever lost or rolled back
OLDER = 0.25  # the share of seeds whose store may go back


class Faults:
    """The seed's dice. Each run has some kinds of fault, rare or frequent, and no others."""

    def __init__(self, seed: int, *, is_orderly: bool = False) -> None:
        self.random = Random(seed)
        self.count: Counter[str] = Counter()
        self.violations: list[str] = []
        self.is_calm = False
        self.is_noted = False
        self.is_store_older = False  # whether the store went back at least once
        share = self.random.choice
        odds = Odds(*(share((0, 0.3, 1)) * getattr(HIGHEST, each.name) for each in fields(Odds)))
        self.odds = replace(ORDERLY, drains=HIGHEST.drains) if is_orderly else self._apart(odds)

    def _apart(self, odds: Odds) -> Odds:
        """Either the store may go back, or servers may end: nothing is promised of both at once."""
        if self.random.random() >= OLDER:
            return replace(odds, store_older=0.0)
        return replace(
            odds, crash_before=0.0, crash_after=0.0, crashes=0.0, drains=0.0, rerouted=0.0
        )

    def happens(self, name: str) -> bool:
        """Whether the fault happens now."""
        odds: float = getattr(self.odds, name)
        return not self.is_calm and odds > 0 and self.random.random() < odds

    def packet_delay_s(self) -> float:
        """How long a packet is under way."""
        if self.happens("late"):
            return self.random.uniform(0.2, 6.0)
        return self.random.uniform(0.001, 0.02)

    def store_delay_s(self) -> float:
        """How long a message between server and store is under way, one way."""
        if self.happens("store_slow"):
            return self.random.uniform(0.05, 1.0)
        return self.random.uniform(0.0005, 0.003)

    def note(self, *words: object) -> None:
        """Prints one line about the run, if it is the run of a single seed."""
        if self.is_noted:
            print(f"{now_s() - START_S:9.4f}", *(str(word)[:200] for word in words))

    def require(self, is_true: bool, text: str) -> None:
        """Notes and raises a violation."""
        if not is_true:
            self.violations.append(text)
            raise Violation(text)
