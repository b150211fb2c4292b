"""Takes turns: every side of a comparison, round after round, in one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load import Load, Sample
from bench.machine import LOAD_CPU, SERVER_CPU, cpu_s
from lstmserve.spec import LstmSpec
from modelmaking import make_model
from serving import COMMAND, Serving

WARM_UP_S = 0.5
MODEL = "m"


@dataclass(frozen=True, slots=True)
class Effort:
    """How long the benchmark takes."""

    rounds: int
    seconds: float  # of one side in one round


@dataclass(slots=True)
class Side:
    """One side of a comparison: its process, and the load that it gets in its turn."""

    name: str
    pid: int
    load: Load


def take_turns(sides: Sequence[Side], effort: Effort) -> dict[str, list[Sample]]:
    """The samples of each side; closes the loads. Every other round goes backwards."""
    for side in sides:
        side.load.drive(WARM_UP_S)
    samples: dict[str, list[Sample]] = {side.name: [] for side in sides}
    for number in range(effort.rounds):
        for side in sides[:: -1 if number % 2 else 1]:
            taken = side.load.measure(effort.seconds, lambda pid=side.pid: cpu_s(pid))
            samples[side.name].append(taken)
    for side in sides:
        side.load.close()
    return samples


def ratios(ours: Sequence[Sample], floor: Sequence[Sample]) -> list[float]:
    """Answers per CPU second, round by round."""
    return [a.per_cpu_s / b.per_cpu_s for a, b in zip(ours, floor, strict=True)]


def require_applied(serving: Serving) -> None:
    """Raises an error if steps failed, except for those that the end of a stream takes back."""
    failed, cut = (
        serving.metric("lstm_step_errors_total", **labels)
        for labels in ({}, {"reason": "CANCELLED"})
    )
    assert failed <= cut, f"{failed - cut:g} steps failed: the figures are not what they say"


@contextmanager
def served(
    folder: Path, spec: LstmSpec, *flags: str | Path, cpu: int = SERVER_CPU
) -> Iterator[Serving]:
    """Runs a server on its core with one model of random weights; every step must succeed."""
    if not (folder / MODEL).exists():
        make_model(folder, spec, name=MODEL)
    command = ["taskset", "--cpu-list", f"{SERVER_CPU},{LOAD_CPU}", *COMMAND]
    serving = Serving(("--models", folder, "--cpu", str(cpu), *flags), command)
    try:
        yield serving
        require_applied(serving)
    finally:
        serving.kill()
