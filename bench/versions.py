"""`python -m bench.versions NAME=CHECKOUT[,FLAG...] ...`: versions of the server, in turns.

Every version serves from its own checkout, on the same core, with the same model. Round after round
each gets the same load for the same time; a row gives the server's CPU time per step of each, the
medians, and the last version's answers per CPU second over the first's. The load is made by raw
connections and by the clients that people use, over memory, file and Valkey.

A version is a folder, or a commit that is checked out beside this one for the run. The flag
`listener` turns gRPC's event_engine_listener on, `no-listener` off, whatever the version does.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench import requests
from bench.clients import Messages, Tasks, Threads, Triton
from bench.http2 import Connection
from bench.load import Load, Sample
from bench.machine import LOAD_CPU, ROOT, SERVER_CPU, commit, description, pin_load
from bench.rounds import MODEL, Effort, Side, take_turns
from lstmserve.spec import Linear, ModelSpec
from modelmaking import make_model
from serving import COMMAND, Serving
from storing import Valkey

SPEC = ModelSpec(16, 128, head=(Linear(8),))
MANY = 256
STORES = ("memory", "file", "valkey")
INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Version:
    """A checkout of the server, and the variables it is started with."""

    name: str
    folder: Path
    variables: dict[str, str]


@dataclass(frozen=True, slots=True)
class Measure:
    """One load: how it is made for a server, and how many steps an answer holds."""

    name: str
    load: Callable[[Serving], Any]
    steps: int = 1
    stores: tuple[str, ...] = ("memory",)


def raw(method: str, count: int, *, streamed: bool) -> Callable[[Serving], Load]:
    """Connections of one session each, numbered steps, nothing else set."""

    def load(serving: Serving) -> Load:
        sessions = requests.open_sessions(serving.target, MODEL, count)
        return _load(
            serving,
            requests.PATH + method,
            [requests.steps(each, SPEC) for each in sessions],
            streamed=streamed,
        )

    return load


def many(serving: Serving) -> Load:
    """Two streams of StepMany, so that the server never waits for the load."""
    cohorts = [requests.open_sessions(serving.target, MODEL, MANY) for _ in range(2)]
    messages = [requests.blocks(each, SPEC) for each in cohorts]
    return _load(serving, requests.PATH + "StepMany", messages, streamed=True)


def predict(serving: Serving) -> Load:
    """64 ragged sequences a call."""
    lengths = np.random.default_rng(0).integers(1, 65, 64).tolist()
    messages = [requests.predictions(MODEL, SPEC, lengths)]
    return _load(serving, requests.PATH + "Predict", messages, streamed=False)


def infer(count: int) -> Callable[[Serving], Load]:
    """ModelInfer: a connection per sequence, as stock clients number nothing."""

    def load(serving: Serving) -> Load:
        messages = [requests.inferences(MODEL, SPEC, i + 1) for i in range(count)]
        return _load(serving, INFER, messages, streamed=False)

    return load


def _load(
    serving: Serving, path: str, messages: Sequence[Iterator[bytes]], *, streamed: bool
) -> Load:
    address = ("127.0.0.1", int(serving.target.rpartition(":")[2]))
    return Load([Connection(address, path, each, streamed=streamed) for each in messages])


def client(kind: Callable[..., Any], count: int, **options: Any) -> Callable[[Serving], Any]:
    """A load by one of the clients."""
    return lambda serving: kind(serving.target, MODEL, SPEC, count, **options)


MEASURES = (
    *(
        Measure(f"Step, raw, {n}", raw("Step", n, streamed=False), stores=STORES)
        for n in (1, 8, 32, 64)
    ),
    *(Measure(f"StepStream, raw, {n}", raw("StepStream", n, streamed=True)) for n in (8, 64)),
    Measure(f"StepMany, raw, {MANY}", many, MANY, stores=STORES),
    Measure("Predict, raw, 64 ragged", predict, 64),
    *(Measure(f"ModelInfer, raw, {n}", infer(n)) for n in (1, 8, 32)),
    Measure("Client.step, 1", client(Threads, 1)),
    Measure("AsyncClient.step, 1", client(Tasks, 1)),
    Measure("AsyncClient.step, 32", client(Tasks, 32), stores=STORES),
    Measure("AsyncClient.stream, 8", client(Tasks, 8, streamed=True)),
    Measure(f"Client.step_many, {MANY}", client(Messages, MANY)),
    Measure("tritonclient.infer, 8", client(Triton, 8, mode="unary")),
    Measure("tritonclient.infer, 32", client(Triton, 32, mode="unary")),
    Measure("tritonclient stream, 8", client(Triton, 8, mode="stream")),
)


@contextmanager
def checked_out(text: str) -> Iterator[Version]:
    """NAME=CHECKOUT[,FLAG...] as a Version; a commit's checkout is gone afterwards."""
    name, _, rest = text.partition("=")
    place, *flags = rest.split(",")
    variables = {}
    for flag in flags:
        if flag not in ("listener", "no-listener"):
            raise click.BadParameter(f"{flag!r} is no flag of a version")
        on = flag == "listener"
        # gRPC reads the list of experiments at its start, and the last word on one counts.
        variables["GRPC_EXPERIMENTS"] = f"{'' if on else '-'}event_engine_listener"
    if Path(place).is_dir():
        yield Version(name, Path(place).resolve(), variables)
        return
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(checkout), place], check=True)
        try:
            yield Version(name, checkout, variables)
        finally:
            subprocess.run([*git, "remove", "--force", str(checkout)], check=True)


@contextmanager
def serving_of(version: Version, models: Path, *flags: str) -> Iterator[Serving]:
    """That version's server on its core."""
    path = os.pathsep.join(str(version.folder / part) for part in ("service", "export"))
    command = ["taskset", "--cpu-list", f"{SERVER_CPU},{LOAD_CPU}", *COMMAND]
    arguments = ("--models", models, "--cpu", str(SERVER_CPU), *flags)
    serving = Serving(arguments, command, PYTHONPATH=path, **version.variables)
    try:
        yield serving
    finally:
        serving.kill()


def compared(
    versions: Sequence[Version], measure: Measure, store: str, effort: Effort
) -> dict[str, list[Sample]]:
    """The samples of each version, taken in turns; every server is new for each measure."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_model(folder / "models", SPEC, name=MODEL)
        sides = []
        for version in versions:
            own = folder / version.name
            own.mkdir()
            flags = {"memory": (), "file": ("--store", f"file:{own / 'store'}")}.get(store)
            if flags is None:
                flags = ("--store", stack.enter_context(Valkey(own)).url)
            serving = stack.enter_context(serving_of(version, folder / "models", *flags))
            sides.append(Side(version.name, serving.process.pid, measure.load(serving)))
        taken = take_turns(sides, effort)
    assert all(sample.answers for samples in taken.values() for sample in samples), "no answer"
    return taken


def line(
    title: str, versions: Sequence[Version], measure: Measure, taken: dict[str, list[Sample]]
) -> str:
    """Of the table."""
    us = {
        v.name: float(np.median([1e6 / s.per_cpu_s / measure.steps for s in taken[v.name]]))
        for v in versions
    }
    rates = [float(np.median([s.per_s for s in taken[v.name]])) for v in versions]
    first, last = versions[0].name, versions[-1].name
    pairs = zip(taken[last], taken[first], strict=True)
    ratios = [ours.per_cpu_s / theirs.per_cpu_s for ours, theirs in pairs]
    cells = [
        title,
        *(f"{value:.1f}" for value in us.values()),
        *(f"{rate * measure.steps:.0f}" for rate in rates),
        f"**{np.median(ratios):.2f}** ({min(ratios):.2f} - {max(ratios):.2f})",
    ]
    return f"| {' | '.join(cells)} |"


@click.command()
@click.argument("versions", nargs=-1, required=True)
@click.option("--only", default="", help="Measures whose name begins so.")
@click.option("--stores/--memory", default=True, help="Also over file and Valkey.")
@click.option("--rounds", default=7, show_default=True, help="Turns of each version.")
@click.option("--seconds", default=1.0, show_default=True, help="Of one turn.")
def main(versions: tuple[str, ...], only: str, stores: bool, rounds: int, seconds: float) -> None:
    """Prints a table in Markdown: CPU us a step, steps a second, last version / first."""
    pin_load()
    effort = Effort(rounds, seconds)
    with ExitStack() as stack:
        found = [stack.enter_context(checked_out(text)) for text in versions]
        names = [version.name for version in found]
        click.echo(f"{description()}; this checkout: {commit()}; {rounds} rounds of {seconds} s\n")
        heads = [*(f"{n}, us" for n in names), *(f"{n}, steps/s" for n in names)]
        click.echo(f"| load | {' | '.join(heads)} | {names[-1]} / {names[0]} per CPU second |")
        click.echo("|" + " --- |" * (2 + len(heads)))
        for measure in MEASURES:
            for store in measure.stores if stores else ("memory",):
                title = measure.name if store == "memory" else f"{measure.name}, {store}"
                if title.startswith(only):
                    taken = compared(found, measure, store, effort)
                    click.echo(line(title, found, measure, taken))


if __name__ == "__main__":
    main()
