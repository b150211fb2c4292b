"""The store of servers that write behind fails over to a replica that lacks the last writes.

A live server still has the steps that the store lost, and stores them again. So its sessions go on,
except for those that the replica never had. At every second failover a server is killed, too, and
of its sessions only the replica's steps are left. Clients that keep their inputs send them again.
The others get an error exactly when steps were lost, and go on from what is left or begin again.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from soak.crowd import BEHIND_S
from soak.debtor import Debtor
from soak.failover import ELECTION_S, LAG_S, Taken, steps_left
from soak.fleet import Fleet, Pod, fleet_of
from soak.kill9 import PODS
from soak.patron import UNKNOWN, patrons_at_work
from soak.replicated import Replicated
from soak.storefront import StoreFront
from soak.timing import pause, percentile

POLL_S = 0.02
LATE_S = 4.0  # of a flush beyond its interval: the store's timeout, and a shared machine
UNHEARD_S = BEHIND_S + 0.5  # a flush whose answer was cut off, and the one before it
HEALED_S_MAX = 30.0


@dataclass(kw_only=True)
class Found(Taken):
    """What one run found."""

    kills: int = 0
    kept: int = 0  # how often a session went on though the replica was behind
    resumed: int = 0
    waits_stored_s: list[float] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)  # lstm_durable_lag_seconds, store away
    under_s: float = 0.0  # by how much the metric was less than what a client knew
    over_s: float = 0.0  # by how much it was more than the longest possible wait

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        super().check()
        assert self.kills > 0
        assert self.kept > 0
        assert UNKNOWN in self.taken_back.values()
        assert self.resumed > 0
        assert self.waits_stored_s
        assert max(self.waits_stored_s) < BEHIND_S + LATE_S
        assert max(self.lags_s) > ELECTION_S, "the metric never saw that the store was away"
        assert self.under_s == 0.0
        assert self.over_s < UNHEARD_S

    def figures(self) -> str:
        """The figures in one line, for people."""
        waits = self.waits_stored_s
        return (
            f"{super().figures()}; {self.kills} servers killed meanwhile; {self.kept} times a live "
            f"server stored again what the replica lacked; {self.resumed} sessions without a log "
            f"went on from what was left; a new step stored p50 {percentile(waits, 50)} s, max "
            f"{max(waits):.2f} s after its ack (--behind-s-max {BEHIND_S}); durable lag up to "
            f"{max(self.lags_s):.2f} s, less than clients knew by {self.under_s:.2f} s, more by at "
            f"most {self.over_s:.2f} s"
        )


def run(folder: Path, *, failovers: int, every_s: float, sessions: int) -> Found:
    """Runs three servers that reach their store by one address; the store fails over behind it."""
    found = Found(mode="behind", kind="library", clients=sessions)
    flags = ("--store-mode", "behind", "--behind-s-max", str(BEHIND_S))
    with Replicated(folder) as stores:
        front = StoreFront(stores.primary.port)
        with fleet_of(folder, PODS, "--store", front.url, *flags) as fleet:
            fleet.is_sticky = True  # a move would itself lose the steps that are not stored
            asyncio.run(_Failovers(fleet, found, front, stores).run(failovers, every_s))
    return found


class _Failovers:
    def __init__(self, fleet: Fleet, found: Found, front: StoreFront, stores: Replicated) -> None:
        self._fleet, self._found, self._front, self._stores = fleet, found, front, stores
        self._patrons: Sequence[Debtor] = ()

    async def run(self, failovers: int, every_s: float) -> None:
        crowd = patrons_at_work(Debtor, self._fleet, self._found, self._front, logs=True)
        async with crowd as self._patrons:
            for i in range(failovers):
                await pause(every_s)
                await self._fail_over(is_killing=i % 2 == 0)
                self._found.failovers += 1
        for each in self._patrons:
            self._found.resumed += each.resumed
            self._found.waits_stored_s += each.waits_stored_s

    async def _fail_over(self, is_killing: bool) -> None:
        stores, front = self._stores, self._front
        await stores.in_step()
        await stores.cut()
        for each in (*self._patrons[::8], *self._patrons[1::8]):
            each.leave()  # the replica will not have the client's next session
        await pause(LAG_S)
        self._stay(True)
        await stores.fail_over()
        await front.refuse()
        killed = max(self._fleet.pods, key=self._mixed) if is_killing else None
        bereft = set() if killed is None else {each.name for each in self._at(killed)}
        if killed is not None:
            await killed.end(signal.SIGKILL)
            self._found.kills += 1
        await pause(ELECTION_S)  # calls that are under way end
        await self._compare(bereft)
        live = [pod for pod in self._fleet.pods if pod is not killed]
        self._found.lags_s += [await self._lag_s(pod, bereft) for pod in live]
        await front.lead_to(stores.primary.port)
        await asyncio.gather(stores.replicate(), self._until_stored())
        self._stay(False)
        if killed is not None:
            await killed.start()
        for pod in self._fleet.pods:
            await self._lag_s(pod)

    def _at(self, pod: Pod) -> list[Debtor]:
        """The patrons whose sessions are on the pod."""
        return [each for each in self._patrons if self._fleet.home(each.name) is pod.serving]

    def _mixed(self, pod: Pod) -> int:
        """How many patrons the pod has, with a log or without, whichever are fewer."""
        logs = [each.has_log for each in self._at(pod)]
        return min(logs.count(True), logs.count(False))

    def _stay(self, is_so: bool) -> None:
        """Keeps patrons from changing their session: they would miss an error about the old one."""
        for each in self._patrons:
            each.stays = is_so

    async def _compare(self, bereft: set[str]) -> None:
        """Compares the steps on the new primary with those that were acknowledged.

        The server of the `bereft` sessions is dead.
        """
        for each, step in await steps_left(self._stores, self._patrons):
            if step >= len(each.outputs):
                continue
            if step == UNKNOWN or each.name in bereft:
                self._found.take_back(each, step)
            else:
                self._found.kept += 1

    async def _until_stored(self) -> None:
        """Waits until each client has a step that was answered and stored since the store is up."""
        due_s, waiting = time.monotonic() + HEALED_S_MAX, list(self._patrons)
        while waiting := [each for each in waiting if not each.is_stored()]:
            late = [each.name for each in waiting]
            assert time.monotonic() < due_s, f"neither told nor stored: {late}"
            await pause(POLL_S)
        for each in self._patrons:
            each.forget_left()

    async def _lag_s(self, pod: Pod, bereft: Set[str] = frozenset()) -> float:
        """Reads the lag metric, and compares it with what clients know.

        The `bereft` sessions are on no server.
        """
        began_s = time.monotonic()
        owed = [ack for each in self._patrons for ack in each.lacking_with_left(pod.serving)]
        lag_s: float = await asyncio.to_thread(pod.serving.metric, "lstm_durable_lag_seconds")
        now_s = time.monotonic()
        here = [each.lacking() for each in self._at(pod) if each.name not in bereft]
        least_s = max((began_s - ack.acked_s for ack in here if ack is not None), default=0.0)
        most_s = max((now_s - ack.sent_s for ack in owed), default=0.0)
        self._found.under_s = max(self._found.under_s, least_s - lag_s)
        self._found.over_s = max(self._found.over_s, lag_s - most_s)
        return lag_s
