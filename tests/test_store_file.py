"""The file store: one owner, full disks, hanging disks, old records and foreign files."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lstmserve.engine.errors import StoreTimeout, StoreUnavailable
from lstmserve.store import StoreRefused, Version, Write, Written, open_store
from lstmserve.store.clock import Reading
from lstmserve.store.database import RecordDatabase
from lstmserve.store.file import FILE_NAME, FileStore
from storing import content, raised, write

OK, FULL = Written.OK, Written.FULL
FULL_BYTES = 256 << 10
YEAR_S = 365 * 86_400.0


class Clock:
    """The machine's clocks as the test sets them; holding them holds the store's thread.

    `now_s` is the time that passed; `moved_s` is by how much the wall clock was set besides.
    """

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0
        self.moved_s = 0.0
        self.boot_id = "boot"
        self.going = threading.Event()
        self.going.set()

    def __call__(self) -> Reading:
        """The time, once the clock is not held."""
        self.going.wait()
        wall_ms = round(1000 * (self.now_s + self.moved_s))
        return Reading(wall_ms, round(1000 * self.now_s) - 1_600_000_000_000, self.boot_id)


@pytest.fixture
def clock() -> Clock:
    """A clock for the store."""
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[FileStore]:
    """A small file store with a clock of its own."""
    store = FileStore(tmp_path, bytes_max=FULL_BYTES, timeout_s=20, read=clock)
    yield store
    await store.close()


async def fill(store: FileStore) -> list[Write]:
    """Creates sessions until there is no room. Returns the writes that fitted."""
    stored: list[Write] = []
    while True:
        new = write(f"/{len(stored)}", None, (1, 1, 0), size=4096)
        if await store.put([new]) == [FULL]:
            return stored
        stored.append(new)


async def test_one_owner_at_a_time(tmp_path: Path) -> None:
    """A second store on the same folder is refused in one line, until the first one is closed."""
    first = FileStore(tmp_path)
    assert await first.put([write("/a", None, (1, 1, 0))]) == [OK]
    with pytest.raises(StoreRefused, match=r"^another process has .* open: stop it"):
        open_store(f"file:{tmp_path}")
    assert await first.put([write("/a", (1, 1, 0), (1, 1, 1))]) == [OK]
    await first.close()
    second = FileStore(tmp_path)
    assert await second.load(["/a"]) == [content(Version(1, 1, 1))]
    await second.close()


async def test_full_keeps_what_is_there(store: FileStore) -> None:
    """Without room a write is FULL and the old record intact, and a delete makes room again."""
    stored = await fill(store)
    assert len(stored) > 10
    grown = write("/0", (1, 1, 0), (1, 1, 1), size=64 << 10)
    assert await store.put([grown]) == [FULL]
    assert await store.load([w.key for w in stored]) == [w.content for w in stored]
    assert await store.put([write("/0", (1, 1, 0), (1, 1, 1), size=4096)]) == [OK]
    assert await store.put([write(f"/{i}", (1, 1, 0), None) for i in range(1, 9)]) == [OK] * 8
    assert await store.put([write("/new", None, (1, 1, 0), size=4096)]) == [OK]


async def test_full_is_of_one_write(store: FileStore) -> None:
    """If a put does not fit as a whole, the writes that fit alone are written."""
    await fill(store)
    outcomes = await store.put(
        [
            write("/0", (1, 1, 0), (1, 1, 1), size=4096),
            write("/huge", None, (1, 1, 0), size=FULL_BYTES),
            write("/1", (1, 1, 9), (1, 1, 10), size=4096),
            write("/2", (1, 1, 0), None),
        ]
    )
    assert outcomes == [OK, FULL, Written.CONFLICT, OK]
    assert await store.load(["/0", "/huge", "/2"]) == [
        content(Version(1, 1, 1), size=4096),
        None,
        None,
    ]


@contextmanager
def no_file_grows(beyond: int) -> Iterator[None]:
    """Lets the kernel fail every write of this process beyond that size of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (beyond, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_failing_disk_fails_closed_and_heals(tmp_path: Path, clock: Clock) -> None:
    """Writes that the kernel refuses are errors and change nothing, and later ones succeed."""
    store = FileStore(tmp_path, read=clock)
    assert await store.put([write("/a", None, (1, 1, 0))]) == [OK]
    log_size = (tmp_path / f"{FILE_NAME}-wal").stat().st_size
    with no_file_grows(log_size + 100):
        for _ in range(3):
            with pytest.raises((StoreUnavailable, StoreTimeout)):
                raised(await store.put([write("/a", (1, 1, 0), (1, 1, 1), size=4096)]))
        assert await store.load(["/a"]) == [content(Version(1, 1, 0))]
    assert await store.put([write("/a", (1, 1, 0), (1, 1, 1), size=4096)]) == [OK]
    await store.close()


async def test_hanging_disk_holds_nobody(tmp_path: Path, clock: Clock) -> None:
    """While the store's thread hangs, calls end in time with what is known, and the loop runs."""
    store = FileStore(tmp_path, timeout_s=0.05, read=clock)
    clock.going.clear()
    with pytest.raises(StoreTimeout, match="did not answer"):
        raised(await store.put([write("/a", None, (1, 1, 0))]))
    with pytest.raises(StoreUnavailable, match="did not answer"):
        raised(await store.load(["/a"]))
    with pytest.raises(StoreTimeout):
        raised(await store.put([write("/late", None, (1, 1, 0))]))
    with pytest.raises(StoreTimeout):
        await store.quarantine("/a", b"")
    clock.going.set()
    found = [content(Version(1, 1, 0)), None]  # /a had begun; /late had not, and was dropped
    assert await answer(store, ["/a", "/late"]) == found
    await store.close()


async def answer(store: FileStore, keys: list[str]) -> list[bytes | None]:
    """What the store answers, as soon as it does."""
    while True:
        with contextlib.suppress(StoreUnavailable):
            return raised(await store.load(keys))


async def test_closing_does_not_wait_for_a_hanging_disk(tmp_path: Path, clock: Clock) -> None:
    """Close returns in time whatever the store's thread does."""
    store = FileStore(tmp_path, timeout_s=0.05, read=clock)
    clock.going.clear()
    with pytest.raises(StoreTimeout):
        raised(await store.put([write("/a", None, (1, 1, 0))]))
    await store.close()
    clock.going.set()


async def test_expiry_is_by_the_clock(store: FileStore, clock: Clock) -> None:
    """A record is there until just before its ttl has passed, and gone after it, by the wall
    clock."""
    assert await store.put([write("/a", None, (1, 1, 0), ttl_s=60)]) == [OK]
    clock.now_s += 59.999
    assert await store.load(["/a"]) == [content(Version(1, 1, 0))]
    assert await store.put([write("/a", (1, 1, 0), (1, 1, 1), ttl_s=60)]) == [OK]
    clock.now_s += 59.999
    assert await store.load(["/a"]) == [content(Version(1, 1, 1))]
    clock.now_s += 0.001
    assert await store.load(["/a"]) == [None]
    assert await store.put([write("/a", (1, 1, 0), (1, 1, 2))]) == [Written.CONFLICT]
    assert await store.put([write("/a", (1, 1, 1), (1, 1, 2))]) == [OK]  # its owner knows better
    assert await store.load(["/a"]) == [content(Version(1, 1, 2))]


async def test_old_records_are_swept(tmp_path: Path, clock: Clock) -> None:
    """Creations sweep expired records, so that those stay a minority, and sweep no other record."""
    store = FileStore(tmp_path, read=clock)
    living = [f"/old-{i}" for i in range(60)]
    assert await store.put([write(key, None, (1, 1, 0)) for key in living]) == [OK] * 60
    for generation in range(12):
        young = [f"/{generation}-{i}" for i in range(100)]
        for first in range(0, 100, 10):
            born = [write(key, None, (1, 1, 0), ttl_s=60) for key in young[first : first + 10]]
            assert await store.put(born) == [OK] * 10
        assert None not in await store.load(living)
        clock.now_s += 31
        step = [write(key, (1, 1, generation), (1, 1, generation + 1)) for key in living[:60]]
        assert await store.put(step) == [OK] * 60
        living = [*living[:60], *young]
    await store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        ((rows,),) = database.execute("SELECT count(*) FROM record")
    print(rows, "rows of 1260 written, 160 of them alive")
    assert 160 <= rows <= 460


async def test_quarantine_is_for_the_operator(tmp_path: Path, clock: Clock) -> None:
    """A corrupt record lies in the table `quarantine`, with its key and the time."""
    store = FileStore(tmp_path, read=clock)
    assert await store.put([write("/a", None, (1, 1, 0)), write("/b", None, (1, 1, 0))]) == [OK] * 2
    await store.quarantine("/a", content(Version(1, 1, 0)))
    await store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        rows = database.execute("SELECT key, moved_ms, content FROM quarantine").fetchall()
        assert database.execute("SELECT key FROM record").fetchall() == [("/b",)]
    assert rows == [("/a", 1_700_000_000_000, content(Version(1, 1, 0)))]


def foreign(folder: Path) -> None:
    """Puts a file there that is not a database."""
    (folder / FILE_NAME).write_bytes(b"not a database" * 1000)


def later(folder: Path) -> None:
    """Puts a later release's file there."""
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as database:
        database.execute("PRAGMA user_version = 2")


def folder_as_file(folder: Path) -> None:
    """Puts a folder there, in place of the file."""
    (folder / FILE_NAME).mkdir()


def anothers(folder: Path) -> None:
    """Puts another program's database there."""
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as database:
        database.execute("CREATE TABLE account (name)")


def namesake(folder: Path) -> None:
    """Puts another program's database there, with a format of the same number."""
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as database:
        database.executescript("CREATE TABLE record (name); PRAGMA user_version = 1")


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (foreign, "not a database"),
        (later, r"format 2, .*: start the release that wrote it, or name another folder"),
        (folder_as_file, "is a folder: move it away"),
        (anothers, "another program's database: name another folder"),
        (namesake, "cannot be opened: no such column: key"),
    ],
)
def test_foreign_files_are_refused(
    tmp_path: Path, spoil: Callable[[Path], None], what: str
) -> None:
    """What another program or release left there is refused in one line and not touched."""
    spoil(tmp_path)
    before = _bytes(tmp_path / FILE_NAME)
    for _ in range(2):  # refused for the same reason again: it stayed unlocked
        with pytest.raises(StoreRefused, match=what) as refused:
            FileStore(tmp_path)
        assert str(tmp_path) in str(refused.value)
        assert "\n" not in str(refused.value)
    assert _bytes(tmp_path / FILE_NAME) == before


def _bytes(path: Path) -> bytes | None:
    return None if path.is_dir() else path.read_bytes()


@pytest.mark.parametrize(("sync", "level"), [(False, 1), (True, 2)])
def test_sync_is_sqlites_full(tmp_path: Path, sync: bool, level: int) -> None:
    """With sync every commit is flushed to the disk, and without it only a log that is written
    back."""
    rows = RecordDatabase(tmp_path / FILE_NAME, sync=sync, bytes_max=None, read=Clock())
    assert rows._database.execute("PRAGMA synchronous").fetchone() == (level,)
    assert rows._database.execute("PRAGMA journal_mode").fetchone() == (b"wal",)
    rows.close()


async def test_the_folder_is_private(tmp_path: Path) -> None:
    """The folder is made for its owner alone, because states are private."""
    store = FileStore(tmp_path / "new" / "store")
    assert (tmp_path / "new" / "store").stat().st_mode & 0o077 == 0
    await store.close()


async def test_a_moved_clock_expires_nothing(tmp_path: Path, clock: Clock) -> None:
    """If the wall clock is set years ahead, and back, every record is still there, also after a
    restart."""
    store = FileStore(tmp_path, read=clock)
    assert await store.put([write("/a", None, (1, 1, 0), ttl_s=60)]) == [OK]
    for years in (30, -30, 5):
        clock.moved_s = years * YEAR_S
        assert await store.load(["/a"]) == [content(Version(1, 1, 0))]
        assert await store.put([write(f"/{years}", None, (1, 1, 0), ttl_s=60)]) == [OK]
        await store.check()
        for boot_id in ("boot", f"boot after {years}"):
            await store.close()
            clock.boot_id = boot_id
            store = FileStore(tmp_path, read=clock)
            assert None not in await store.load(["/a", f"/{years}"])
    clock.now_s += 61
    assert await store.load(["/a", "/30", "/-30", "/5"]) == [None] * 4
    await store.close()


async def test_time_passes_while_the_store_is_closed(tmp_path: Path, clock: Clock) -> None:
    """A minute between two processes or two boots is a minute, and the time never goes back."""
    for boot_id, moved_s, is_there in (
        ("boot", YEAR_S, False),
        ("another", 0.0, False),
        ("third", -YEAR_S, True),
    ):
        store = FileStore(tmp_path, read=clock)
        key = f"/{boot_id}"
        assert await store.put([write(key, None, (1, 1, 0), ttl_s=60)]) == [OK]
        await store.close()
        clock.now_s += 61
        clock.moved_s += moved_s
        clock.boot_id = boot_id
        store = FileStore(tmp_path, read=clock)
        assert (await store.load([key]) != [None]) is is_there
        await store.close()


async def test_a_damaged_mark_is_no_time(tmp_path: Path, clock: Clock) -> None:
    """Bytes that are not a valid mark are ignored, and the wall clock sets the store's time."""
    for spoiled in (b"", b"\xff" * 64, None, "text"):
        store = FileStore(tmp_path, read=clock)
        assert await store.put([write(f"/{spoiled!r}", None, (1, 1, 0), ttl_s=60)]) == [OK]
        await store.close()
        with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
            database.execute("UPDATE clock SET mark = coalesce(?, 7)", [spoiled])
            database.commit()
        store = FileStore(tmp_path, read=clock)
        assert None not in await store.load([f"/{spoiled!r}"])
        await store.close()


async def test_what_is_held_does_not_expire(tmp_path: Path, clock: Clock) -> None:
    """A session that lives here longer than its record is loaded and stepped, and not swept."""
    store = FileStore(tmp_path, read=clock)
    store.spare(lambda key: key == "/held")
    assert await store.put([write(key, None, (1, 1, 0)) for key in ("/held", "/free")]) == [OK] * 2
    clock.now_s += 61
    for number in range(8):  # a sweep finds it, and the next put would drop it
        assert await store.put([write(f"/{number}", None, (1, 1, 0))]) == [OK]
    assert await store.load(["/held", "/free"]) == [content(Version(1, 1, 0)), None]
    assert await store.put([write("/held", (1, 1, 0), (1, 1, 1))]) == [OK]
    assert await store.put([write("/free", (1, 1, 0), (1, 1, 1))]) == [Written.CONFLICT]
    await store.close()


def removed(file: Path) -> None:
    """Removes the files."""
    for each in file.parent.iterdir():
        each.unlink()


def log_removed(file: Path) -> None:
    """Removes the log only."""
    Path(f"{file}-wal").unlink()


def moved(file: Path) -> None:
    """Renames the whole folder."""
    file.parent.rename(file.parent.with_name("elsewhere"))


def replaced(file: Path) -> None:
    """Replaces the file by a copy."""
    shutil.copy(file, file.with_name("copy"))
    file.with_name("copy").rename(file)


def cut(file: Path) -> None:
    """Truncates the file to a part."""
    os.truncate(file, 4096)


def log_cut(file: Path) -> None:
    """Empties the log."""
    os.truncate(f"{file}-wal", 0)


def restored(file: Path) -> None:
    """Overwrites the file in place with another one that is not shorter."""
    file.write_bytes(bytes(file.stat().st_size))


LOSSES = {
    removed: "was removed or moved away",
    log_removed: "-wal was removed or moved away",
    moved: "was removed or moved away",
    replaced: "was replaced by another file",
    cut: "was truncated",
    log_cut: "-wal was truncated",
    restored: "was written by another program",
}


@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
async def test_a_lost_file_is_noticed(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    """No call reports a step as stored from then on, until another process opens the file."""
    folder = tmp_path / "store"
    store = FileStore(folder)
    big = [write(f"/{n}", None, (1, 1, 0), size=100_000) for n in range(50)]
    assert await store.put(big) == [OK] * 50  # some of it is in the file, some in the log
    await store.check()
    lose(folder / FILE_NAME)
    for call in (
        store.put([write("/a", None, (1, 1, 0))]),
        store.load(["/1"]),
        store.quarantine("/1", b""),
        store.check(),
    ):
        with pytest.raises(StoreUnavailable) as lost:
            raised(await call or [])
        assert lost.value.is_final
        assert LOSSES[lose] in lost.value.cause
    await store.close()


@pytest.mark.parametrize("lose", [removed, moved, replaced], ids=lambda lose: lose.__name__)
async def test_a_file_that_goes_in_a_flush_is_noticed(
    tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    """A transaction that was committed to a lost file is not reported as stored."""
    folder = tmp_path / "store"
    store = FileStore(folder)
    assert await store.put([write("/a", None, (1, 1, 0))]) == [OK]
    store._thread.submit(
        store._database._database.set_trace_callback,
        lambda text: lose(folder / FILE_NAME) if text == "COMMIT" else None,
    ).result()
    with pytest.raises(StoreTimeout) as lost:
        raised(await store.put([write("/a", (1, 1, 0), (1, 1, 1))]))
    assert lost.value.is_final
    await store.close()


@pytest.mark.parametrize("commits", [1, 2])
async def test_a_file_that_goes_between_two_writes_is_noticed(tmp_path: Path, commits: int) -> None:
    """If the file is lost while a put writes one by one, nothing counts as stored, and what was not
    tried is surely not written."""
    folder = tmp_path / "store"
    store = FileStore(folder, bytes_max=FULL_BYTES)
    stored = await fill(store)
    left = [commits]

    def trace(text: str) -> None:
        left[0] -= text == "COMMIT"
        if text == "COMMIT" and not left[0]:
            removed(folder / FILE_NAME)

    store._thread.submit(store._database._database.set_trace_callback, trace).result()
    outcomes = await store.put(
        [
            write(stored[0].key, (1, 1, 0), None),
            write("/huge", None, (1, 1, 0), size=FULL_BYTES),
            write(stored[1].key, (1, 1, 0), None),
        ]
    )
    for each, kind in zip(outcomes, LOST_BETWEEN[commits], strict=True):
        assert each is kind or (isinstance(kind, type) and isinstance(each, kind))
        assert each is FULL or (isinstance(each, StoreUnavailable | StoreTimeout) and each.is_final)
    await store.close()


LOST_BETWEEN = {
    1: [StoreTimeout, StoreUnavailable, StoreUnavailable],
    2: [StoreTimeout, FULL, StoreTimeout],
}


async def test_closing_harms_no_successor(tmp_path: Path) -> None:
    """A store that lost its file does not remove the log of the store that is there now."""
    lost = FileStore(tmp_path)
    assert await lost.put([write("/a", None, (1, 1, 0))]) == [OK]
    removed(tmp_path / FILE_NAME)
    successor = FileStore(tmp_path)
    assert await successor.put([write("/b", None, (1, 1, 0))]) == [OK]
    await lost.close()
    assert f"{FILE_NAME}-wal" in os.listdir(tmp_path)
    await successor.check()
    assert await successor.load(["/b"]) == [content(Version(1, 1, 0))]
    await successor.close()


async def test_a_place_that_cannot_be_seen_may_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the folder cannot be looked into nothing is stored, and later the store goes on."""
    store = FileStore(tmp_path)
    assert await store.put([write("/a", None, (1, 1, 0))]) == [OK]

    def denied(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("lstmserve.store.identity.os.stat", denied)
        with pytest.raises(StoreUnavailable, match="cannot be reached") as unseen:
            raised(await store.put([write("/a", (1, 1, 0), (1, 1, 1))]))
        assert not unseen.value.is_final
        assert "Permission denied" in unseen.value.cause
    assert await store.put([write("/a", (1, 1, 0), (1, 1, 1))]) == [OK]
    await store.close()
