"""Runs the long form of every proof, and writes the figures into docs/GUARANTEES.md.

`python -m soak [NAME ...] [--minutes M] [--write]`; `make soak` runs all and writes.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import click

import onnxfiles
from soak import (
    amnesia,
    cancels,
    clock,
    exactly_once,
    failover,
    failover_behind,
    fairness,
    flood,
    frozen,
    imported,
    kill9,
    memory,
    outage,
    overload,
    peers,
    rescale,
    rolling,
    stress,
)
from soak.crowd import Kind, Mode
from soak.imported_file import ImportedFile

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "GUARANTEES.md"
ROW = re.compile(r"^\| (?P<name>[a-z0-9-]+) \|.*\n", re.MULTILINE)
START = "|---|---|---|---|\n"
END = "<!-- end of the figures -->"
KILL_S, START_S = 2.0, 1.5
SESSIONS, CLIENTS = 24, 200
RESIDENT, TOGETHER = 10_000, 500
IMPORTED_S = 10.0  # a kill each ten seconds: all sessions step before and after it
FAILOVER_S = 10.0  # a failover each ten seconds
AWAY_S = 30.0, 10.0
PEER_S = 8.0
JUMP_S, CLOCKED = 5.0, 20
PHASE_S = 3.0  # many short pairs: a hiccup of the machine meets only one of them
RESCALE_S, MOVING = 15.0, 200
CANCELS = 150_000
# Bytes of a call. gRPC itself loses 60 to 110 of one that is cancelled before its handler has the
# message (grpc#43360; so does a server without a line of ours); a swallowed cancellation loses 440.
SLOPE_MAX = 150.0
COUNTED, COUNTING = 100_000, 256  # steps and sessions


class Found(Protocol):
    """What a proof returns."""

    def check(self) -> None:
        """Raises AssertionError if a gate is not met."""

    def figures(self) -> str:
        """The figures in one line, for people."""


def _kill9(mode: Mode, kind: Kind) -> Callable[[Path, float], Found]:
    def run(folder: Path, minutes: float) -> Found:
        kills = max(3, round(minutes * 60 / (KILL_S + START_S)))
        return kill9.run(folder, mode, kind, kills=kills, every_s=KILL_S, sessions=SESSIONS)

    return run


def _imported(folder: Path, minutes: float) -> Found:
    path = folder / "looped.onnx"
    path.write_bytes(onnxfiles.looped())
    return imported.run(
        folder,
        ImportedFile(path, onnxfiles.PAIRS),
        sessions=RESIDENT,
        size=TOGETHER,
        kills=max(3, round(minutes * 60 / IMPORTED_S)),
        every_s=KILL_S,
    )


def _rolling(mode: Mode) -> Callable[[Path, float], Found]:
    def run(folder: Path, minutes: float) -> Found:
        restarts = max(3, round(minutes * 60 / (rolling.QUIET_S + 2 * START_S)))
        return rolling.run(folder, mode, "library", clients=CLIENTS, restarts=restarts)

    return run


def _failover(
    run: Callable[..., Found],
) -> Callable[[Path, float], Found]:
    def run_for(folder: Path, minutes: float) -> Found:
        failovers = max(2, round(minutes * 60 / FAILOVER_S))
        return run(folder, failovers=failovers, every_s=FAILOVER_S / 2, sessions=SESSIONS)

    return run_for


def _memory(folder: Path, minutes: float) -> Found:
    return memory.run(folder, seconds=minutes * 60 / len(memory.FORMS))


def _rescale(folder: Path, minutes: float) -> Found:
    times = max(2, round(minutes * 60 / RESCALE_S))
    return rescale.run(folder, times=times, sessions=MOVING)


def _stress(folder: Path, minutes: float) -> Found:
    return stress.run(folder, scenarios=100, seconds=minutes * 60)


def _overload(folder: Path, minutes: float) -> Found:
    factors = (1, 2, 5, 10)
    seconds = minutes * 60 / (len(factors) + 1)
    return overload.run(folder, factors=factors, seconds=seconds, sessions=150)


def _fairness(folder: Path, minutes: float) -> Found:
    pairs = max(3, round(minutes * 60 / (2 * PHASE_S)))
    return fairness.run(folder, pairs=pairs, seconds=PHASE_S)


def _flood(folder: Path, minutes: float) -> Found:
    kinds = (*flood.GATED, *flood.OTHERS, *flood.CONNECTIONS)
    return flood.run(folder, seconds=minutes * 60 / (3 * len(kinds)), kinds=kinds)


def _clock(folder: Path, minutes: float) -> Found:
    jumps = max(2, round(minutes * 60 / (2 * JUMP_S)))
    return clock.run_both(folder, jumps=jumps, sessions=CLOCKED)


def _peers(folder: Path, minutes: float) -> Found:
    rounds = max(3, round(minutes * 60 / (PEER_S + 15)))  # each waits for the server to let go
    return peers.run(folder, rounds=rounds, each=2, phase_s=PEER_S / 2, is_short=False)


PROOFS: dict[str, Callable[[Path, float], Found]] = {
    "exactly-once": lambda folder, _: exactly_once.run(folder, steps=COUNTED, sessions=COUNTING),
    "kill9-through": _kill9("through", "bare"),
    "kill9-behind": _kill9("behind", "bare"),
    "kill9-library": _kill9("behind", "library"),
    "kill9-imported": _imported,
    "frozen-through": lambda folder, _: frozen.run(folder, "through", sessions=200),
    "frozen-behind": lambda folder, _: frozen.run(folder, "behind", sessions=200),
    "amnesia": lambda folder, _: amnesia.run(folder, sessions=1000),
    "rolling-through": _rolling("through"),
    "rolling-behind": _rolling("behind"),
    "store-failover": _failover(failover.run),
    "store-failover-behind": _failover(failover_behind.run),
    "store-outage": lambda folder, _: outage.run(folder, away_s=AWAY_S, sessions=SESSIONS),
    "rescale": _rescale,
    "stress": _stress,
    "overload": _overload,
    "fairness": _fairness,
    "memory": _memory,
    "cancels": lambda folder, _: cancels.run(folder, cancels=CANCELS, slope_max=SLOPE_MAX),
    "peers": _peers,
    "flood": _flood,
    "clock": _clock,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(PROOFS)))
@click.option("--minutes", default=5.0, show_default=True, help="How long each goes on.")
@click.option("--write", is_flag=True, help="Put the figures into docs/GUARANTEES.md.")
def main(names: tuple[str, ...], minutes: float, write: bool) -> None:
    """Runs the proofs by NAME, or all of them."""
    commit = _commit()  # read before the page is written to
    for name in names or PROOFS:
        with tempfile.TemporaryDirectory() as folder:
            found = PROOFS[name](Path(folder), minutes)
        print(f"{name}: {found.figures()}")
        found.check()
        if write:
            command = f"python -m soak {name} --minutes {minutes:g}"
            enter(name, f"| {name} | {found.figures()} | `{command}` | {commit} |\n")


def _commit() -> str:
    """The commit that is checked out, with a + if other files were changed, and today."""
    changes = _git("status", "--porcelain", "--", ".", f":!{PAGE.relative_to(ROOT)}")
    commit = _git("rev-parse", "--short", "HEAD") + ("+" if changes else "")
    return f"{commit}, {datetime.datetime.now(datetime.UTC).date()}"


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return found.stdout.strip()


def enter(name: str, row: str) -> None:
    """Writes a row of the page's table; it replaces the old row of that name."""
    text = PAGE.read_text()
    start, end = text.index(START) + len(START), text.index(END)
    rows = {match["name"]: match[0] for match in ROW.finditer(text, start)} | {name: row}
    table = "".join(rows[each] for each in PROOFS if each in rows)
    PAGE.write_text(text[:start] + table + text[end:])


if __name__ == "__main__":
    main()
