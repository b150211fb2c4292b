"""Serves named versions of the server, each from a checkout of its own, on the server's core.

A version is a folder, or a commit that is checked out beside this one for the run. The flag
`listener` turns gRPC's event_engine_listener on, `no-listener` turns it off, whatever the version
does; VARIABLE=VALUE sets a variable of its environment. This module must not know the load.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from bench.machine import LOAD_CPU, ROOT, SERVER_CPU
from serving import COMMAND, Serving
from storing import Valkey

# gRPC reads the list of experiments at its start; the last mention of one counts.
LISTENER = {"listener": "event_engine_listener", "no-listener": "-event_engine_listener"}
STORES = ("memory", "file", "valkey")


@dataclass(frozen=True, slots=True)
class Version:
    """A checkout of the server, and the variables it is started with."""

    name: str
    folder: Path
    variables: dict[str, str]

    @property
    def python_path(self) -> str:
        """PYTHONPATH of its packages."""
        return os.pathsep.join(str(self.folder / part) for part in ("service", "export"))


@contextmanager
def checked_out(text: str) -> Iterator[Version]:
    """NAME=CHECKOUT[,FLAG...] as a Version; the checkout of a commit is removed on exit."""
    name, is_named, rest = text.partition("=")
    place, *flags = rest.split(",")
    if not (name and is_named and place):
        raise click.BadParameter(f"{text!r} is not NAME=CHECKOUT[,FLAG...]")
    variables = dict(map(_variable, flags))
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


def _variable(flag: str) -> tuple[str, str]:
    variable, is_set, value = flag.partition("=")
    if is_set:
        return variable, value
    if flag not in LISTENER:
        raise click.BadParameter(f"{flag!r} is no flag of a version")
    return "GRPC_EXPERIMENTS", LISTENER[flag]


@contextmanager
def all_checked_out(texts: Sequence[str]) -> Iterator[list[Version]]:
    """The versions that a command line names, no name twice. SIGTERM ends the block like ^C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        versions = [stack.enter_context(checked_out(text)) for text in texts]
        if len({version.name for version in versions}) < len(versions):
            raise click.BadParameter("two versions have the same name")
        yield versions


@contextmanager
def serving_of(
    version: Version,
    models: Path,
    store: str = "memory",
    command: Sequence[str] = COMMAND,
) -> Iterator[Serving]:
    """That version's server on its core, with a new and empty store of that kind."""
    pinned = ["taskset", "--cpu-list", f"{SERVER_CPU},{LOAD_CPU}", *command]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        flags: tuple[str, ...] = ()
        if store == "file":
            flags = ("--store", f"file:{folder / 'store'}")
        elif store == "valkey":
            flags = ("--store", stack.enter_context(Valkey(folder)).url)
        arguments = ("--models", models, "--cpu", str(SERVER_CPU))
        serving = Serving(
            (*arguments, *flags), pinned, PYTHONPATH=version.python_path, **version.variables
        )
        stack.callback(serving.kill)
        yield serving
