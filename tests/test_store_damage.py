"""A damaged file store: whatever happened to the file, every call ends with the store's own
error."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from lstmserve.engine.errors import StoreFull, StoreTimeout, StoreUnavailable
from lstmserve.store import CorruptRecord, StoreRefused, Written, decode
from lstmserve.store.clock import read_clocks
from lstmserve.store.database import RecordDatabase
from storing import raised, write

SESSIONS = 40
TOLD = (StoreRefused, StoreFull, StoreTimeout, StoreUnavailable)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A store's file with some sessions."""
    path = tmp_path / "sessions.sqlite3"
    rows = open_rows(path)
    for n in range(SESSIONS):
        rows.put([write(f"/{n}", None, (1, 1, 0), size=100 if n % 2 else 3000)])
    rows.close()
    return path


def open_rows(path: Path) -> RecordDatabase:
    """The store on it."""
    return RecordDatabase(path, sync=False, bytes_max=None, read=read_clocks)


def flipped(content: bytes, dice: random.Random) -> bytes:
    """One bit flipped, near a record's start with its columns' types, or anywhere."""
    spoiled = bytearray(content)
    near = content.find(f"/{dice.randrange(SESSIONS)}".encode()) - dice.randrange(1, 16)
    place = dice.choice([max(0, near), dice.randrange(len(content))])
    spoiled[place] ^= 1 << dice.randrange(8)
    return bytes(spoiled)


def cut(content: bytes, dice: random.Random) -> bytes:
    """The file's beginning."""
    return content[: dice.randrange(1, len(content))]


def overwritten(content: bytes, dice: random.Random) -> bytes:
    """Some bytes replaced by another file's."""
    start, size = dice.randrange(len(content)), dice.choice([16, 256, 4096])
    return content[:start] + dice.randbytes(size) + content[start + size :]


@pytest.mark.parametrize("spoil", [flipped, cut, overwritten])
def test_damage_is_the_stores_own_error(
    file: Path, spoil: Callable[[bytes, random.Random], bytes]
) -> None:
    """The store refuses to open, or each call works or raises what the engine handles, and none
    hangs."""
    whole, dice, ends = file.read_bytes(), random.Random(20261126), Counter[str]()
    for _ in range(120):
        file.write_bytes(spoil(whole, dice))
        for left in file.parent.glob(f"{file.name}-*"):
            left.unlink()
        try:
            rows = open_rows(file)
        except StoreRefused:
            ends["refused"] += 1
            continue
        ends.update(_use(rows))
        rows.close()
    print(spoil.__name__, dict(ends))
    assert ends["corrupt"] or ends["refused"]
    assert ends["refused"] == 120 or ends["read"] > SESSIONS


def _use(rows: RecordDatabase) -> Counter[str]:
    ends = Counter[str]()
    for n in range(SESSIONS):
        try:
            (content,) = raised(rows.load([f"/{n}"]))
            if content is not None:
                decode(content)
            ends["read"] += 1
            raised(rows.put([write(f"/{n}", (1, 1, 0), (1, 1, 1), size=2000)])[0])
            raised(rows.put([write(f"/new-{n}", None, (1, 1, 0))])[0])  # this sweeps
        except CorruptRecord:
            ends["corrupt"] += 1
            assert content is not None
            with suppress(*TOLD):
                rows.quarantine(f"/{n}", content)
        except TOLD:
            ends["told"] += 1
    return ends


@pytest.mark.parametrize("value", ["text", 7, None, b"short", "\udcff"])
def test_a_column_of_another_type_is_damage(file: Path, value: object) -> None:
    """Content that is no record is put aside, a version that is none is an error each time, and an
    expiry that is none does not disturb a creation."""
    with closing(sqlite3.connect(file)) as database:
        database.executescript(
            "DROP TABLE record; CREATE TABLE record (key, version, expiry_ms,"
            " content, PRIMARY KEY (key))"
        )
        given = "CAST(x'ff41' AS TEXT)" if value == "\udcff" else "?"
        bound = () if value == "\udcff" else (value, value, value)
        database.execute(
            f"INSERT INTO record VALUES ('/a', {given}, 1e15, {given}), ('/b', x'', {given}, x'')",
            bound,
        )
        database.commit()
    rows = open_rows(file)
    (content,) = raised(rows.load(["/a"]))
    with pytest.raises(CorruptRecord):
        decode(content)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            raised(rows.put([write("/a", (1, 1, 0), (1, 1, 1))])[0])
    rows.quarantine("/a", content)
    assert rows.load(["/a"]) == [None]
    assert rows.put([write("/c", None, (1, 1, 0))])[0] == [Written.OK]
    rows.close()
