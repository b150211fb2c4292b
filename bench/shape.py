"""`python -m bench.shape NAME=CHECKOUT ...`: how much code a step enters, and how much there is.

bench.versions says how a version is named. Each version serves with a profile hook on all its
threads (bench/traced.py). A window holds one message and everything that it causes. A figure is the
median of the windows. A file, function or class counts if most windows entered it, so a timer that
fires now and then does not count. Only frames of the package count, not gRPC's or generated code.

- entries: into functions; a coroutine that goes on is entered again.
- across files: entries whose caller in the package is in another file.
- classes: those whose methods were entered, a part of the concepts that one must know.
- threads: those that entered the package.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from bench import requests
from bench.checkout import Version, all_checked_out, serving_of
from bench.http2 import Connection
from bench.machine import ROOT
from bench.measures import INFER, SPEC
from bench.rounds import MODEL
from bench.source import PROTOBUF, Source
from lstmserve import Client
from modelmaking import make_model
from serving import Serving

PACKAGE = Path("service", "lstmserve")
TRACED = [sys.executable, "-P", str(ROOT / "bench" / "traced.py")]
WARM_UP, WINDOWS = 20, 15

Step = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Walk:
    """A kind of message: the function that prepares it for a server, and the server's store."""

    name: str
    prepare: Callable[[Serving], Step]
    store: str = "memory"


def _connection(serving: Serving, path: str, messages: Iterator[bytes], *, streamed: bool) -> Step:
    """Prepares a message on a connection of its own. Calling it sends one and awaits the answer."""
    address = ("127.0.0.1", int(serving.target.rpartition(":")[2]))
    connection = Connection(address, path, messages, streamed=streamed, window=0)

    def step() -> None:
        connection.send()
        while not connection.receive():
            pass

    return step


def _native(method: str, serving: Serving) -> Step:
    (session,) = requests.open_sessions(serving.target, MODEL, 1)
    messages = requests.steps(session, SPEC)
    return _connection(serving, requests.PATH + method, messages, streamed=method == "StepStream")


def _many(serving: Serving) -> Step:
    sessions = requests.open_sessions(serving.target, MODEL, 64)
    messages = requests.blocks(sessions, SPEC)
    return _connection(serving, requests.PATH + "StepMany", messages, streamed=True)


def _infer(serving: Serving) -> Step:
    return _connection(serving, INFER, requests.inferences(MODEL, SPEC, 1), streamed=False)


def _client(serving: Serving) -> Step:
    session = Client(serving.target).session(MODEL)
    return partial(session.step, np.zeros(SPEC.input_size, np.float32))


STEP = partial(_native, "Step")
WALKS = (
    Walk("Step", STEP),
    Walk("Step by our Client", _client),
    Walk("StepStream, a message", partial(_native, "StepStream")),
    Walk("StepMany of 64", _many),
    Walk("ModelInfer, amid a sequence", _infer),
    Walk("Step, file store", STEP, "file"),
    Walk("Step, Valkey store", STEP, "valkey"),
    Walk("ModelInfer, file store", _infer, "file"),
)


@dataclass(frozen=True, slots=True)
class Entered:
    """What the windows of one walk entered."""

    files: set[str]
    functions: set[str]
    classes: set[str]
    entries: float
    across: float
    threads: float


class Tracer:
    """Opens windows on a server that bench/traced.py runs."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rw")
        self._folder = folder

    def window(self, step: Step) -> list[list[Any]]:
        """The entries that a step causes, in bench/traced.py's form, without generated code."""
        self._ask("start")
        step()
        entries = json.loads(self._ask("stop"))
        return [each for each in entries if not PROTOBUF.search(each[0])]

    def _ask(self, line: str) -> str:
        self._lines.write(line + "\n")
        self._lines.flush()
        answer = self._lines.readline()
        assert answer, "the server ended"
        return answer

    def close(self) -> None:
        """Ends the connection."""
        self._lines.close()
        self._socket.close()

    def walk(self, step: Step) -> Entered:
        """What a step enters, once the server has warmed up."""
        for _ in range(WARM_UP):
            step()
        windows = [self.window(step) for _ in range(WINDOWS)]
        assert all(windows), "a step that entered nothing"
        functions = _usual(windows, lambda each: f"{self._relative(each[0])}:{each[1]} {each[2]}")
        return Entered(
            files=_usual(windows, lambda each: self._relative(each[0])),
            functions=functions,
            classes={name for each in functions if (name := _class(each))},
            entries=median(sum(each[5] for each in window) for window in windows),
            across=median(
                sum(each[5] for each in window if each[3] not in (None, each[0]))
                for window in windows
            ),
            threads=median(len({each[4] for each in window}) for window in windows),
        )

    def _relative(self, file: str) -> str:
        return str(Path(file).relative_to(self._folder))


def _usual(windows: list[list[list[Any]]], what: Callable[[list[Any]], str]) -> set[str]:
    """What most windows have."""
    counts = Counter(name for window in windows for name in {what(each) for each in window})
    return {name for name, count in counts.items() if count > len(windows) / 2}


def _class(function: str) -> str | None:
    """FILE:CLASS of a method, by its qualified name."""
    file, _, name = function.partition(" ")
    owner = name.rpartition(".")[0].partition(".<locals>")[0]
    return f"{file.partition(':')[0]}:{owner}" if owner and owner[0] != "<" else None


@contextmanager
def tracing(version: Version, store: str) -> Iterator[tuple[Serving, Tracer]]:
    """Runs that version's server under the hook."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "models", SPEC, name=MODEL)
        path, package = folder / "socket", version.folder / PACKAGE
        command = [*TRACED, str(path), str(package), "serve"]
        with serving_of(version, folder / "models", store, command) as serving:
            tracer = Tracer(path, package)
            yield serving, tracer
            tracer.close()


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def source_table(versions: Sequence[Version]) -> str:
    """The table of what there is, with a column for each version."""
    sources = [Source.read(version.folder / PACKAGE) for version in versions]
    figures: dict[str, Callable[[Source], int]] = {
        "files": lambda source: len(source.trees),
        "statements": Source.statements,
        "lines": lambda source: source.lines,
        "import circles": lambda source: len(source.circles(with_types=False)),
        "import circles, types and functions too": lambda source: len(
            source.circles(with_types=True)
        ),
        "public class names defined more than once": lambda source: len(source.namesakes()),
    }
    rows = [[name, *map(figure, sources)] for name, figure in figures.items()]
    text = table(["service/lstmserve", *(version.name for version in versions)], rows)
    for version, source in zip(versions, sources, strict=True):
        text += f"\n{version.name}:\n"
        for circle in source.circles(with_types=True):
            text += f"- circle of {', '.join(circle)}\n"
        for name, paths in source.namesakes().items():
            text += f"- {name}: {', '.join(paths)}\n"
    return text


def walk_row(name: str, found: Sequence[Entered]) -> list[str]:
    """The row of what a step enters; each cell has all versions in order."""
    figures: list[Callable[[Entered], float]] = [
        lambda each: len(each.files),
        lambda each: len(each.functions),
        lambda each: len(each.classes),
        lambda each: each.entries,
        lambda each: each.across,
        lambda each: each.threads,
    ]
    return [name, *(" / ".join(f"{figure(each):g}" for each in found) for figure in figures)]


@click.command()
@click.argument("texts", nargs=-1, required=True, metavar="NAME=CHECKOUT...")
@click.option("--only", default="", help="Steps whose name begins so.")
@click.option("--names", is_flag=True, help="Also the files and functions that each step enters.")
def main(texts: tuple[str, ...], only: str, names: bool) -> None:
    """Prints two tables in Markdown: what there is, and what a step enters."""
    with all_checked_out(texts) as versions:
        click.echo(source_table(versions))
        rows, lists = [], []
        for walk in WALKS:
            if not walk.name.startswith(only):
                continue
            found = []
            for version in versions:
                with tracing(version, walk.store) as (serving, tracer):
                    found.append(tracer.walk(walk.prepare(serving)))
                title = f"{walk.name}, {version.name}: "
                lists += [title + " ".join(sorted(found[-1].files)), *sorted(found[-1].functions)]
            rows.append(walk_row(walk.name, found))
        order = " / ".join(version.name for version in versions)
        head = ["files", "functions", "classes", "entries", "across files", "threads"]
        click.echo(table([f"entered, {order}", *head], rows))
        if names:
            click.echo("\n".join(lists))


if __name__ == "__main__":
    main()
