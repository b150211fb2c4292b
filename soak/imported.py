"""kill -9 of servers that share a store, under thousands of sessions of an imported ONNX file.

The sessions step by StepMany in groups of hundreds. Every y, and at the end every state, must have
the bits that plain onnxruntime gives for the file itself, one session after another, step by step.

`python -m soak.imported FILE --state IN:OUT` does it to a file of your own.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from soak.calls import Calls, Ledger
from soak.findings import Experience, Violations, add
from soak.fleet import Fleet, Pod, fleet_of
from soak.group import Group
from soak.imported_file import ImportedFile
from soak.timing import pause, percentile
from storing import Valkey

PODS = 2
STRAY = 0.01


@dataclass(kw_only=True)
class Found:
    """What one run found. `loads` and `differences` are of the servers that ran at the end."""

    sessions: int
    kills: int = 0
    opened_s: float = 0
    stepped_s: float = 0
    back_s: list[float] = field(default_factory=list)  # after a kill, until all had stepped again
    loads: float = 0
    servers_compared: int = 0  # servers that answered every call
    differences: dict[str, tuple[float, float]] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)  # attempts by gRPC code
    server_bytes: float = 0  # the most that a server had resident
    store_bytes: int = 0
    violations: Violations = field(default_factory=Violations)
    experience: Experience = field(default_factory=Experience)

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""
        self.violations.check()
        assert self.kills > 0
        assert self.experience.steps >= self.sessions * self.kills
        assert self.loads > 0, "the store never brought a session back"
        assert self.refusals["UNAVAILABLE"] > 0, "no client noticed"
        assert self.servers_compared > 0
        assert self.differences == {}

    def figures(self) -> str:
        """The figures in one line, for people."""
        found, seen = self.violations, self.experience
        return (
            f"{self.kills} kills, {seen.steps} acked steps of {self.sessions} sessions in "
            f"{self.stepped_s:.0f} s: lost {found.lost}, wrong {found.wrong + found.changed}, "
            f"doubled {found.doubled}; all sessions stepped again {percentile(self.back_s, 50)} s "
            f"after a kill (p50; longest {max(self.back_s):.2f} s), messages to a dead server "
            f"were answered after {percentile(seen.recoveries_s, 50)} s (p50; p99 "
            f"{percentile(seen.recoveries_s, 99)} s), {self.loads:.0f} loads; "
            f"attempts refused {dict(self.refusals)}; counters of {self.servers_compared} servers "
            f"differ {len(self.differences)}; opened in {self.opened_s:.0f} s; resident: a server "
            f"{self.server_bytes / 1e6:.0f} MB, Valkey {self.store_bytes / 1e6:.0f} MB"
        )


def run(
    folder: Path, file: ImportedFile, *, sessions: int, size: int, kills: int, every_s: float
) -> Found:
    """Kills a server every `every_s` and starts it again, while groups of `size` sessions step."""
    found = Found(sessions=sessions)
    with (
        Valkey(folder) as valkey,
        fleet_of(folder / "models", PODS, "--store", valkey.url, file=file) as fleet,
    ):
        asyncio.run(_run(fleet, file, found, size, kills, every_s))
        found.store_bytes = _resident_bytes(valkey.process.pid)
    return found


async def _run(
    fleet: Fleet, file: ImportedFile, found: Found, size: int, kills: int, every_s: float
) -> None:
    async with Calls() as calls:
        sizes = [min(size, found.sessions - at) for at in range(0, found.sessions, size)]
        groups = [Group(fleet, calls, file, f"g{i}", n, STRAY) for i, n in enumerate(sizes)]
        began_s = time.monotonic()
        await asyncio.gather(*(group.open() for group in groups))
        found.opened_s = time.monotonic() - began_s
        over = asyncio.Event()
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for group in groups:
                tasks.create_task(_converse(group, over))
            for pod in itertools.islice(itertools.cycle(fleet.pods), kills):
                await _until_all_step(groups)
                await pause(every_s)
                await _measure(fleet, found)
                found.back_s.append(await _kill(pod, groups))
                found.kills += 1
            await pause(every_s)
            over.set()
        found.stepped_s = time.monotonic() - began_s
        await _check(fleet, calls, groups, found)


async def _converse(group: Group, over: asyncio.Event) -> None:
    while not over.is_set():
        await group.step()


async def _kill(pod: Pod, groups: Sequence[Group]) -> float:
    """Kills the server and starts it again. Returns after how long all sessions had stepped."""
    await pod.end(signal.SIGKILL)
    killed_s = time.monotonic()
    starting = asyncio.create_task(pod.start())
    try:
        await _until_all_step(groups)
        return time.monotonic() - killed_s
    finally:
        await starting


async def _until_all_step(groups: Sequence[Group]) -> None:
    """Waits until every group has made a step that it began from now on."""
    wanted = [group.number + 2 for group in groups]
    while any(group.number < number for group, number in zip(groups, wanted, strict=True)):
        await pause(0.01)


async def _check(fleet: Fleet, calls: Calls, groups: Sequence[Group], found: Found) -> None:
    await _measure(fleet, found)
    found.refusals = calls.refusals.copy()
    for group in groups:
        await group.verify()
        add(found.violations, group.violations)
        add(found.experience, group.experience)
    found.loads = await asyncio.to_thread(fleet.metric, "lstm_sessions_opened_total", source="load")
    for pod in fleet.pods:
        ledger = calls.ledgers.get(pod.serving, Ledger())
        if not ledger.cut:
            found.servers_compared += 1
            different = await asyncio.to_thread(ledger.differences, pod.serving)
            found.differences |= {f"{pod.name} {name}": each for name, each in different.items()}


async def _measure(fleet: Fleet, found: Found) -> None:
    name = "process_resident_memory_bytes"
    for pod in fleet.pods:
        bytes_now = await asyncio.to_thread(pod.serving.metric, name)
        found.server_bytes = max(found.server_bytes, bytes_now)


def _resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(s.split()[1]) for s in status.splitlines() if s.startswith("VmRSS:")) * 1024


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--state", "pairs", multiple=True, required=True, metavar="IN:OUT")
@click.option("--flag", "flags", multiple=True, help="A further flag of the import.")
@click.option("--sessions", default=10_000, show_default=True)
@click.option("--size", default=500, show_default=True, help="Sessions of one message.")
@click.option("--kills", default=6, show_default=True)
@click.option("--every-s", default=5.0, show_default=True, help="Seconds between kills.")
def main(
    file: Path,
    pairs: tuple[str, ...],
    flags: tuple[str, ...],
    sessions: int,
    size: int,
    kills: int,
    every_s: float,
) -> None:
    """Runs the proof on FILE, which has one input and one output beside its states."""
    states = {before: after for before, _, after in (each.partition(":") for each in pairs)}
    with tempfile.TemporaryDirectory() as folder:
        imported = ImportedFile(file, states, flags)
        found = run(
            Path(folder), imported, sessions=sessions, size=size, kills=kills, every_s=every_s
        )
    print(found.figures())
    found.check()


if __name__ == "__main__":
    main()
