"""What bench/shape.py counts: of source its text, of a run the functions that it enters."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bench.http2 import Connection, Failed
from bench.load import Load
from bench.source import Source
from bench.traced import Entries
from lstmserve.wire.v1 import lstm_pb2 as pb
from serving import Serving

FILES = {
    "__init__.py": '"""The package."""\n',
    "one.py": "import shape.two\nclass Rows:\n    '''Text.'''\n    x = 1\n",
    "two.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from shape.one import Rows\n"
        "class Columns: ...\nclass _Own: ...\n"
    ),
    "three.py": "import shape.four\n",
    "four.py": "try:\n    import shape.three\nexcept ImportError:\n    pass\n",
    "deep/__init__.py": "class Rows: ...\nclass _Own: ...\n",
    "made/__init__.py": '"""Owns nothing, generated from deep by a tool."""\n',
    "made/rows.py": "class Columns: ...\n",
    "one_pb2.py": "class Columns: ...\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with FILES."""
    folder = tmp_path / "shape"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_hand_written_source_is_counted(package: Path) -> None:
    """Files and statements do not include generated code or docstrings."""
    source = Source.read(package)
    hand_written = {name for name in FILES if not name.startswith("made") and "pb2" not in name}
    assert source.trees.keys() == hand_written
    assert source.statements() == 3 + 7 + 1 + 3 + 4
    assert source.lines == sum(FILES[name].count("\n") for name in hand_written)


def test_circles_and_namesakes_are_found(package: Path) -> None:
    """A circle by types counts only on request, and private and generated names never do."""
    source = Source.read(package)
    assert source.circles(with_types=False) == [["shape.four", "shape.three"]]
    circles = [["shape.four", "shape.three"], ["shape.one", "shape.two"]]
    assert source.circles(with_types=True) == circles
    assert source.namesakes() == {"Rows": ["deep/__init__.py", "one.py"]}


def loaded(file: Path, text: str) -> ModuleType:
    """A module of that text."""
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_entries_know_their_caller(tmp_path: Path) -> None:
    """Only functions of the folder count, each with the file of its nearest caller in it."""
    inner = loaded(tmp_path / "inner.py", "class Cell:\n    def leaf(self):\n        return 1\n")
    outer = loaded(
        tmp_path / "outer.py",
        "def walk(apply, leaf):\n    return [apply(leaf) for _ in range(3)]\n",
    )
    entries = Entries(str(tmp_path))
    entries.start()
    sys.setprofile(entries.profile)
    outer.walk(lambda leaf: leaf(), inner.Cell().leaf)  # the lambda is not in the folder
    sys.setprofile(None)
    outer.walk(lambda leaf: leaf(), inner.Cell().leaf)
    found = {name: (line, caller, count) for _, line, name, caller, _, count in entries.stop()}
    assert found == {
        "walk": (1, None, 1),
        "Cell.leaf": (2, str(tmp_path / "outer.py"), 3),
    }


def test_a_raw_load_fails_when_a_call_does(server: Serving) -> None:
    """A call that ends without its answer fails the load, and gives no figure."""
    host, _, port = server.target.rpartition(":")
    lost = itertools.repeat(pb.StepRequest(session_id="0" * 32).SerializeToString())
    path = "/lstmserve.v1.LstmService/Step"
    connection = Connection((host, int(port)), path, lost, streamed=False)
    load = Load([connection])
    with pytest.raises(Failed, match="ended without its answer"):
        load.drive(60)
    load.close()
