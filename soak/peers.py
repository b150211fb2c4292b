"""Clients that freeze, go deaf or die harm neither the server nor others nor their own sessions.

A frozen client is stopped with streams open and replies unread; its kernel still acknowledges. A
deaf one is stopped, and what is sent to it vanishes (soak.victim): the server sees a half-open
connection. A dead one is killed.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lstmserve.server.transport import arguments as transport
from serving import COMMAND, Serving
from soak.calls import Calls
from soak.conversation import Conversation
from soak.findings import Violations, add
from soak.fleet import Fleet, fleet_of
from soak.timing import pause, percentile
from soak.victim import Peer, damaged, victim_of

TALKS = 8
PACE_S = 0.025
LOOK_S = 0.1
GROWTH_MAX = 16e6
RATIO_MAX = 1.2
NOTICE_S_MAX = 120  # a wait of this length is a failure
KINDS = {"frozen": signal.SIGSTOP, "deaf": signal.SIGSTOP, "dead": signal.SIGKILL}
WRITE_S = 3600  # for a server with a short keepalive: only that may cut its peers
SHORT = """
from lstmserve.server.transport import arguments as transport
transport.KEEPALIVE_MS = transport.PING_TIMEOUT_MS = 1000
from lstmserve.cli.serve import serve
serve()
"""


@dataclass
class Found:
    """What one run found; times in seconds."""

    notice_s_max: float
    are_ratios_gated: bool
    peers: int = 0
    noticed_s: dict[str, float] = field(default_factory=dict)  # the longest time to notice, by kind
    retransmitted: int = 0  # connections of deaf clients on which the server had no answer
    growths: list[float] = field(default_factory=list)  # bytes
    without_s: list[float] = field(default_factory=list)  # p99 of a phase
    beside_s: list[float] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)  # sessions
    violations: Violations = field(default_factory=Violations)

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        self.violations.check()
        assert self.damaged == []
        assert self.retransmitted == self.peers / len(KINDS) > 0
        assert max(self.growths) < GROWTH_MAX, self.growths
        assert max(self.noticed_s.values()) < self.notice_s_max, self.noticed_s
        assert not self.are_ratios_gated or self.ratio < RATIO_MAX, self.ratio

    @property
    def ratio(self) -> float:
        """p99 of the others' steps beside the victims / before them: the median of the pairs."""
        return float(np.median(np.divide(self.beside_s, self.without_s)))

    def figures(self) -> str:
        """The figures in one line, for people."""
        noticed = ", ".join(f"{kind} {s:.1f} s" for kind, s in self.noticed_s.items())
        return (
            f"{self.peers} peers with 2 streams each; let go after at most {noticed} (limit "
            f"{self.notice_s_max:.0f} s); memory grew by at most {max(self.growths) / 1e6:.1f} MB "
            f"beside them; p99 of others' steps {1e3 * np.median(self.beside_s):.1f} ms beside "
            f"them, {1e3 * np.median(self.without_s):.1f} ms without, ratio {self.ratio:.2f} "
            f"(the median of {len(self.beside_s)} pairs of phases); {2 * self.peers} sessions of "
            f"theirs went on with another client, damaged {len(self.damaged)}"
        )


def run(folder: Path, *, rounds: int, each: int, phase_s: float, is_short: bool) -> Found:
    """Makes `each` victims of each kind, `rounds` times.

    In each round others step for `phase_s`, first without the victims and then beside them. The
    short form has a server with a keepalive of a second, and only reports the ratio.
    """
    keepalive_ms = 2000 if is_short else transport.KEEPALIVE_MS + transport.PING_TIMEOUT_MS
    found = Found(keepalive_ms / 1e3 + 1, are_ratios_gated=not is_short)
    flags = ("--write-s-max", str(WRITE_S)) if is_short else ()
    command = [sys.executable, "-c", SHORT] if is_short else COMMAND
    with fleet_of(folder, 1, *flags, command=command) as fleet:
        asyncio.run(_run(fleet, found, rounds, each, phase_s))
    return found


async def _run(fleet: Fleet, found: Found, rounds: int, each: int, phase_s: float) -> None:
    serving = fleet.pods[0].serving
    async with Calls() as calls:
        talks = [Conversation(fleet, calls, f"other-{i}") for i in range(TALKS)]
        for talk in talks:
            await talk.open()
        others = Others(talks)
        await others.phase(phase_s)
        for turn in range(rounds):
            found.without_s.append(await others.phase(phase_s))
            before = _memory(serving)
            peers = await asyncio.gather(
                *(
                    victim_of(fleet, kind, f"{kind}-{turn}-{i}")
                    for i in range(each)
                    for kind in KINDS
                )
            )
            for peer in peers:
                peer.process.send_signal(KINDS[peer.kind])
            watching = asyncio.create_task(_watch(fleet, found, peers, before))
            while await asyncio.to_thread(serving.metric, "lstm_pending_steps"):  # no harm
                await pause(LOOK_S)
            found.beside_s.append(await others.phase(phase_s))
            await watching
            for peer in peers:
                if peer.kind != "dead":
                    peer.process.kill()
                await peer.process.wait()
                found.damaged += await damaged(fleet, calls, peer)
            found.peers += len(peers)
        for talk in talks:
            await talk.verify()
            add(found.violations, talk.violations)


class Others:
    """Sessions that step at a pace of their own, with and without victims beside them."""

    def __init__(self, talks: list[Conversation]) -> None:
        self._talks = talks
        self._rng = np.random.default_rng(0)

    async def phase(self, seconds: float) -> float:
        """Steps for `seconds`. Returns the p99 of the steps' times."""
        times_s: list[float] = []
        end_s = time.monotonic() + seconds
        await asyncio.gather(*(self._step(talk, end_s, times_s) for talk in self._talks))
        return percentile(times_s, 99)

    async def _step(self, talk: Conversation, end_s: float, times_s: list[float]) -> None:
        while (start_s := time.monotonic()) < end_s:
            await talk.step(self._rng)
            times_s.append(time.monotonic() - start_s)
            await pause(PACE_S)


async def _watch(fleet: Fleet, found: Found, peers: list[Peer], before: int) -> None:
    """Waits until the server has let go of all victims."""
    serving = fleet.pods[0].serving
    start_s = time.monotonic()
    held = {peer.port: peer for peer in peers}
    unanswered: set[int] = set()
    most = before
    while held:
        waited_s = time.monotonic() - start_s
        assert waited_s < NOTICE_S_MAX, held
        connections = _connections(int(serving.target.rpartition(":")[2]))
        for port, peer in list(held.items()):
            if port not in connections:
                del held[port]
                longest = found.noticed_s.get(peer.kind, 0.0)
                found.noticed_s[peer.kind] = max(longest, waited_s)
            elif peer.kind == "deaf" and connections[port]:
                unanswered.add(port)
        most = max(most, _memory(serving))
        await pause(LOOK_S)
    found.retransmitted += len(unanswered)
    found.growths.append(most - before)


def _connections(port: int) -> dict[int, bool]:
    """Peer's port -> whether the kernel retransmits, of the server's sockets."""
    tables = [Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    return {
        int(remote.rpartition(":")[2], 16): int(retransmits, 16) > 0
        for _, local, remote, _, _, _, retransmits, _, _, inode, *_ in rows
        if int(local.rpartition(":")[2], 16) == port and inode != "0"  # 0: without a process
    }


def _memory(serving: Serving) -> int:
    """The server's resident bytes. It does not scrape: others' steps would wait for that."""
    pages = Path(f"/proc/{serving.process.pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()
