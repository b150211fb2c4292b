"""The short form of killed and frozen servers; `make soak` runs the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxfiles
from soak import amnesia, frozen, imported, kill9
from soak.crowd import Kind, Mode
from soak.imported_file import ImportedFile


def a_file(folder: Path, name: str) -> ImportedFile:
    """A file of tests/onnxfiles.py that is not imported yet."""
    path = folder / f"{name}.onnx"
    path.write_bytes(getattr(onnxfiles, name)())
    return ImportedFile(path, onnxfiles.PAIRS)


@pytest.mark.parametrize(
    ("mode", "kind", "window"),
    [
        ("through", "bare", 0),
        ("behind", "bare", 0),
        ("behind", "library", 30),
    ],
)
def test_killed_servers_lose_no_acked_step(
    mode: Mode, kind: Kind, window: int, tmp_path: Path
) -> None:
    """After kill -9 of three servers with one store every acknowledged step counts once, with the
    oracle's bits, also where the states are the last rows of a window."""
    found = kill9.run(tmp_path, mode, kind, kills=3, every_s=1, sessions=8, window=window)
    print(found.figures())
    found.check()


def test_a_file_of_others_comes_back(tmp_path: Path) -> None:
    """An imported network, with an integer and a bool among its states, goes on from the store and
    from the client's log with the bits of plain onnxruntime."""
    file = a_file(tmp_path, "looped")
    found = kill9.run(tmp_path, "behind", "library", kills=2, every_s=1, sessions=8, file=file)
    print(found.figures())
    found.check()


@pytest.mark.parametrize("name", ["looped", "branched"])
def test_many_sessions_of_a_file_of_others(name: str, tmp_path: Path) -> None:
    """Messages of a hundred sessions lose nothing when servers are killed: every y and every state
    has the bits of plain onnxruntime on the file itself, also where it has no batch axis."""
    found = imported.run(
        tmp_path, a_file(tmp_path, name), sessions=400, size=100, kills=2, every_s=0.3
    )
    print(found.figures())
    found.check()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_ten_thousand_sessions_of_a_file_of_others(tmp_path: Path) -> None:
    """The same with all of them resident, in messages of five hundred."""
    found = imported.run(
        tmp_path, a_file(tmp_path, "looped"), sessions=10_000, size=500, kills=4, every_s=3
    )
    print(found.figures())
    found.check()


@pytest.mark.parametrize("mode", ["through", "behind"])
def test_a_stale_owner_is_harmless(mode: str, tmp_path: Path) -> None:
    """The writes of a frozen server that wakes up after its sessions moved are fenced."""
    found = frozen.run(tmp_path, mode, sessions=32)
    print(found.figures())
    found.check()


def test_a_crash_without_a_store_is_loud(tmp_path: Path) -> None:
    """After kill -9 with states in memory every step says SESSION_LOST, and no session starts at
    zeros."""
    found = amnesia.run(tmp_path, sessions=50)
    print(found.figures())
    found.check()
