"""One outcome per key: a key that the store fails takes no other session's step with it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from redis import Redis
from structlog.testing import capture_logs

from gated import Gate
from lstmserve.engine.persist import write_through
from lstmserve.engine.persist.write_behind import WriteBehind
from lstmserve.engine.scheduling.work import Outcome
from lstmserve.server.observe.measured_store import MeasuredStore
from lstmserve.server.observe.metrics import Metrics
from lstmserve.store import (
    LoadOutcome,
    Store,
    StoreTimeout,
    StoreUnavailable,
    Version,
    Write,
    WriteOutcome,
    Written,
    decode,
    version_of,
)
from lstmserve.store.file import FILE_NAME, FileStore
from lstmserve.store.record import VERSION_SLICE
from lstmserve.store.redis import RedisStore, redis_key
from lstmserve.v1 import lstm_pb2 as pb
from refusals import in_band
from storing import Valkey, content, write
from wire import Good, Stream, Wire, serving

OK = Written.OK
Patch = pytest.MonkeyPatch


class Spoiler(Protocol):
    """A real store of which a test can damage one record, and repair it."""

    store: Store

    def spoil(self, key: str) -> None:
        """Lets every later write to the key fail."""

    def mend(self, key: str) -> None:
        """Repairs the record."""


class SpoiledFile:
    """The file store; it damages the version in a row."""

    def __init__(self, folder: Path) -> None:
        self.store = FileStore(folder / "store", timeout_s=20)

    def _execute(self, text: str, *arguments: Any) -> None:
        database = self.store._database._database
        self.store._thread.submit(database.execute, text, arguments).result()

    def spoil(self, key: str) -> None:
        """Cuts the version short."""
        self._execute("UPDATE record SET version = x'00' WHERE key = ?", key)

    def mend(self, key: str) -> None:
        """Takes the version from the record again."""
        start, size = VERSION_SLICE.start + 1, VERSION_SLICE.stop - VERSION_SLICE.start
        text = "UPDATE record SET version = substr(content, ?, ?) WHERE key = ?"
        self._execute(text, start, size, key)


class SpoiledValkey:
    """Valkey; it puts another program's list under a key."""

    def __init__(self, server: Valkey) -> None:
        self.store = RedisStore(server.url, timeout_s=20)
        self._admin = Redis.from_url(server.url)
        self._kept: dict[str, bytes] = {}

    def spoil(self, key: str) -> None:
        """Puts a list in place of the record."""
        name = redis_key(key)
        content = self._admin.get(name)
        assert isinstance(content, bytes)
        self._kept[key] = content
        self._admin.delete(name)
        self._admin.lpush(name, "another program's")

    def mend(self, key: str) -> None:
        """Puts the record back."""
        self._admin.delete(redis_key(key))
        self._admin.set(redis_key(key), self._kept.pop(key), px=3_600_000)


@pytest.fixture(params=["file", "valkey"])
def spoiler(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spoiler]:
    """A store of each kind."""
    if request.param == "file":
        yield SpoiledFile(tmp_path)
        return
    with Valkey(tmp_path) as server:
        yield SpoiledValkey(server)


@contextlib.asynccontextmanager
async def served(folder: Path, store: Store, **settings: Any) -> AsyncIterator[tuple[Wire, Gate]]:
    """A server in this process on the store."""
    gate, models = Gate(store), folder / "models"
    models.mkdir(exist_ok=True)
    async with serving(models, store=gate, **settings) as wire:
        yield wire, gate
    await store.close()


async def step_all(stream: Stream, sessions: list[Good]) -> pb.StepManyResponse:
    """The next step of each session in one message, by its number. Returns the answer."""
    x = [value for session in sessions for value in session.rows().reshape(-1).tolist()]
    request = pb.StepManyRequest(
        session_ids=[session.id for session in sessions],
        incarnations=[session.session.incarnation for session in sessions],
        steps=[session.number() for session in sessions],
        x=x,
    )
    await stream.write(request.SerializeToString())
    return pb.StepManyResponse.FromString(await stream.read())


async def repeat(wire: Wire, session: Good) -> pb.StepResponse:
    """Repeats the session's last step, by its number."""
    reply = await wire.call(
        "Step",
        session_id=session.id,
        incarnation=session.session.incarnation,
        step=session.number(),
        x=session.xs[-1].reshape(-1).tolist(),
    )
    session.check(reply.y)
    return reply


async def test_a_bad_record_fails_one_session(tmp_path: Path, spoiler: Spoiler) -> None:
    """Of sessions that commit in one flush, the one with a damaged record is refused as not
    applied, the others are acknowledged, and after the repair its step counts once."""
    async with served(tmp_path, spoiler.store) as (wire, gate):
        sessions = [await wire.good() for _ in range(4)]
        bad, stream = sessions[1], wire.stream("StepMany")
        assert not (await step_all(stream, sessions)).errors
        spoiler.spoil(f"/{bad.id}")
        reply = await step_all(stream, sessions)
        assert len(gate.puts[-1]) == 4
        assert [each.index for each in reply.errors] == [1]
        assert in_band(reply.errors[0].status).reason == "STORE_UNAVAILABLE"
        for i, session in enumerate(sessions):
            if session is not bad:
                assert reply.steps[i] == 2
                session.check(reply.y[2 * i : 2 * i + 2])
                version = await gate.version(session.id)
                assert version is not None
                assert version.step == 2
        spoiler.mend(f"/{bad.id}")
        again = await repeat(wire, bad)
        assert (again.step, again.replayed, again.durable_step) == (2, False, 2)
        for session in sessions:
            await session.check_state()
        await stream.done_writing()


async def test_a_bad_record_holds_up_no_other_flush(tmp_path: Path, spoiler: Spoiler) -> None:
    """With write-behind the flush of a session with a damaged record takes nothing from the others,
    and after the repair the next flush stores it."""
    settings = {"store_mode": "behind", "behind_s_max": 3600}
    async with served(tmp_path, spoiler.store, **settings) as (wire, gate):
        sessions = [await wire.good() for _ in range(4)]
        bad, stream = sessions[1], wire.stream("StepMany")
        assert not (await step_all(stream, sessions)).errors
        spoiler.spoil(f"/{bad.id}")
        await wire.engine._stage.flush()
        assert len(gate.puts[-1]) == 4
        durable = {session: durable_step(wire, session) for session in sessions}
        assert durable == {session: int(session is not bad) for session in sessions}
        spoiler.mend(f"/{bad.id}")
        await wire.engine._stage.flush()
        assert durable_step(wire, bad) == 1
        for session in sessions:
            await session.check_state()
        await stream.done_writing()


async def test_a_session_that_is_held_up_holds_up_no_other(
    tmp_path: Path, spoiler: Spoiler
) -> None:
    """With write-behind a session with a damaged record is refused once it is as far ahead as it
    may be, the others that share its messages step on, and a drain releases them."""
    settings = {"store_mode": "behind", "behind_s_max": 3600, "behind_steps_max": 4}
    async with served(tmp_path, spoiler.store, **settings, drain_s_max=2) as (wire, gate):
        sessions = [await wire.good() for _ in range(4)]
        bad, stream = sessions[1], wire.stream("StepMany")
        spoiler.spoil(f"/{bad.id}")
        for number in range(1, 9):
            reply = await step_all(stream, sessions)
            reasons = {each.index: in_band(each.status).reason for each in reply.errors}
            assert reasons == ({} if number <= 4 else {1: "STORE_UNAVAILABLE"})
            assert [reply.steps[i] for i in (0, 2, 3)] == [number] * 3
            await wire.engine._stage.flush()
            assert [durable_step(wire, sessions[i]) for i in (0, 2, 3)] == [number] * 3
        stream.cancel()
        await wire.engine._stage.drain(0.3)
        found = [(await gate.behind.load([f"/{sessions[i].id}"]))[0] for i in (0, 2, 3)]
        assert [isinstance(each, bytes) and decode(each).released for each in found] == [True] * 3


def durable_step(wire: Wire, session: Good) -> int:
    """The step that the engine says is stored; the session is here."""
    row = wire.engine.table.find(f"/{session.id}")
    assert row is not None
    return wire.engine.durable_step(row)


def damage_pages(file: Path, mark: bytes) -> int:
    """Makes the overflow pages that hold the mark point to nowhere. Returns how many there were."""
    raw, count = bytearray(file.read_bytes()), 0
    for start in range(0, len(raw), 4096):
        if raw[start : start + 4] != bytes(4) and raw[start + 4 : start + 4096].find(mark) >= 0:
            raw[start : start + 4] = b"\x7f\xff\xff\xff"
            count += 1
    file.write_bytes(raw)
    return count


async def test_a_damaged_page_fails_one_key(tmp_path: Path) -> None:
    """On a damaged disk one record can be neither read nor written, and the others can be both."""
    store = FileStore(tmp_path)
    writes = [write(f"/{i}", None, (1, 1, i), size=20_000) for i in range(1, 5)]
    assert await store.put(writes) == [OK] * 4
    await store.close()
    assert damage_pages(tmp_path / FILE_NAME, bytes([2]) * 500) > 1
    store = FileStore(tmp_path)
    loaded = await store.load([each.key for each in writes])
    assert isinstance(loaded[1], StoreUnavailable)
    assert "malformed" in loaded[1].cause
    assert [loaded[i] for i in (0, 2, 3)] == [writes[i].content for i in (0, 2, 3)]
    steps = [write(f"/{i}", (1, 1, i), (1, 1, i + 10), size=20_000) for i in range(1, 5)]
    written = await store.put(steps)
    assert isinstance(written[1], StoreUnavailable)
    assert [written[i] for i in (0, 2, 3)] == [OK] * 3
    await store.close()
    store = FileStore(tmp_path)
    loaded = await store.load([each.key for each in steps])
    assert [loaded[i] for i in (0, 2, 3)] == [steps[i].content for i in (0, 2, 3)]
    await store.close()


class Cutter:
    """A way to a server that ends once, after that many bytes of an answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._links: list[asyncio.StreamWriter] = []
        self.left: int | None = None
        self.url = ""

    async def __aenter__(self) -> Cutter:
        self._server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for each in self._links:
            each.close()
        await self._server.wait_closed()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection("127.0.0.1", self._port)
        self._links += (writer, onward)
        asking = asyncio.ensure_future(self._copy(reader, onward, is_answer=False))
        await self._copy(there, writer, is_answer=True)
        await asking

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while raw := await reader.read(1 << 16):
                cut = self.left if is_answer else None
                writer.write(raw[:cut])
                await writer.drain()
                if cut is not None:
                    self.left = None
                    break
        writer.close()


@pytest.mark.parametrize("answers", range(3))
async def test_an_answer_that_ends_early_counts_as_far_as_it_came(
    tmp_path: Path, answers: int
) -> None:
    """Writes whose answer came are known, the others are unknown though they were written, and each
    unknown step counts once when it is repeated."""
    with Valkey(tmp_path) as server:
        async with Cutter(server.port) as cutter:
            store = RedisStore(cutter.url, timeout_s=20)
            writes = [write(f"x/{i}", None, (1, 1, 0)) for i in range(3)]
            assert await store.put([write("x/first", None, (1, 1, 0))]) == [OK]
            cutter.left = answers * len(b"$2\r\nOK\r\n")
            outcomes = await store.put(writes)
            assert outcomes[:answers] == [OK] * answers
            assert all(isinstance(each, StoreTimeout) for each in outcomes[answers:])
            assert await store.load([each.key for each in writes]) == [FIRST] * 3
            async with served(tmp_path, store) as (wire, _):
                sessions = [await wire.good() for _ in range(3)]
                stream = wire.stream("StepMany")
                cutter.left = answers * len(b"$2\r\nOK\r\n")
                reply = await step_all(stream, sessions)
                assert [each.index for each in reply.errors] == list(range(answers, 3))
                for error in reply.errors:
                    assert in_band(error.status).reason == "STORE_TIMEOUT"
                    again = await repeat(wire, sessions[error.index])
                    assert (again.step, again.replayed) == (1, True)
                for session in sessions:
                    await session.check_state()
                await stream.done_writing()


FIRST = content(Version(1, 1, 0))


class Dice(Gate):
    """The real file store, in which each key of each call may meet a fault at random.

    `unlucky` are the keys that met a fault since a test looked. `are_rolled` says whether there are
    faults. `violations` are what a test noted, so that its server ends in order before it fails.
    """

    def __init__(self, store: Store, seed: int) -> None:
        super().__init__(store)
        self._random = random.Random(seed)
        self.are_rolled = False
        self.unlucky: set[str] = set()
        self.violations: list[str] = []
        self.count: Counter[str] = Counter()

    def _roll(self, key: str, fates: Sequence[str]) -> str:
        if not self.are_rolled or self._random.random() < 0.8:
            return "served"
        fate = self._random.choice(fates)
        self.unlucky.add(key)
        self.count[fate] += 1
        return fate

    async def load(self, keys: Sequence[str]) -> list[LoadOutcome]:
        """Loads the records; some keys cannot be read."""
        found = await super().load(keys)
        unread = StoreUnavailable("not read", is_of_key=True)
        return [
            each if self._roll(key, ["unread"]) == "served" else unread
            for key, each in zip(keys, found, strict=True)
        ]

    async def put(self, writes: Sequence[Write]) -> list[WriteOutcome]:
        """Puts the writes; some are refused, find no room or have no answer."""
        fates = [
            self._roll(each.key, ["refused", "full", "lost before", "lost after"])
            for each in writes
        ]
        are_sent = [fate in ("served", "lost after") for fate in fates]
        sent = [each for each, is_sent in zip(writes, are_sent, strict=True) if is_sent]
        written = iter(await super().put(sent))
        outcomes: list[WriteOutcome] = []
        for fate, is_sent in zip(fates, are_sent, strict=True):
            outcome = next(written) if is_sent else Written.FULL
            if fate == "refused":
                outcome = StoreUnavailable("refused", is_of_key=True)
            elif fate.startswith("lost"):
                outcome = StoreTimeout("lost")
            outcomes.append(outcome)
        return outcomes

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Notes the first violation."""
        try:
            yield
        except AssertionError as error:
            self.violations.append(str(error))

    async def step(self, session: Good) -> int:
        """The step that the store has, apart from the faults."""
        (found,) = await self.behind.load([f"/{session.id}"])
        assert isinstance(found, bytes)
        return version_of(found).step


SESSIONS, ROUNDS = 12, 12
NOT_APPLIED = {"STORE_UNAVAILABLE", "STORE_FULL", "FENCED"}


@contextlib.asynccontextmanager
async def played(
    folder: Path, seed: int, **settings: Any
) -> AsyncIterator[tuple[Wire, Dice, list[Good], Stream]]:
    """A server with such a store, and new sessions of it."""
    dice = Dice(FileStore(folder / "store", timeout_s=20), seed)
    models = folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    async with serving(models, store=dice, **settings) as wire:
        sessions = [await wire.good() for _ in range(SESSIONS)]
        stream = wire.stream("StepMany")
        with dice.noting():
            yield wire, dice, sessions, stream
        stream.cancel()
    await dice.close()


async def play_through(folder: Path, seed: int) -> Dice:
    """Steps sessions together and repeats what was refused, and checks each by itself.

    What was acknowledged is stored, what was refused is not, and no other session notices.
    """
    async with played(folder, seed) as (_, dice, sessions, stream):
        for number in range(1, ROUNDS + 1):
            for session in sessions:
                session.rows()
            dice.are_rolled, waiting = True, sessions
            while waiting:
                dice.unlucky.clear()
                waiting = await ask_all(stream, dice, waiting, number)
            dice.are_rolled = False
        for session in sessions:
            await session.check_state()
            assert await dice.step(session) == ROUNDS
    return dice


async def ask_all(stream: Stream, dice: Dice, sessions: Sequence[Good], number: int) -> list[Good]:
    """Sends the last step of each, by its number. Returns the sessions that must repeat it."""
    request = pb.StepManyRequest(
        session_ids=[session.id for session in sessions],
        incarnations=[session.session.incarnation for session in sessions],
        steps=[number] * len(sessions),
        x=np.concatenate([session.xs[-1].reshape(-1) for session in sessions]),
    )
    before = [await dice.step(session) for session in sessions]
    await stream.write(request.SerializeToString())
    reply = pb.StepManyResponse.FromString(await stream.read())
    reasons = {each.index: in_band(each.status).reason for each in reply.errors}
    for i, session in enumerate(sessions):
        stored = await dice.step(session)
        if i not in reasons:
            session.check(reply.y[2 * i : 2 * i + 2])
            assert stored == number, "acknowledged and not stored"
            continue
        assert f"/{session.id}" in dice.unlucky, f"{reasons[i]} for the fault of another key"
        if reasons[i] in NOT_APPLIED:
            assert stored == before[i], f"{reasons[i]} and stored"
        else:
            assert reasons[i] == "STORE_TIMEOUT"
    return [sessions[i] for i in reasons]


async def play_behind(folder: Path, seed: int) -> Dice:
    """Steps sessions with write-behind, and checks each key after each flush.

    The steps of each key are durable, unless it met a fault. No step is reported as durable that
    the store lacks, and no session is lost by a fault.
    """
    settings = {"store_mode": "behind", "behind_s_max": 3600, "behind_steps_max": 1000}
    async with played(folder, seed, **settings) as (wire, dice, sessions, stream):
        for number in range(1, ROUNDS + 1):
            assert not (await step_all(stream, sessions)).errors
            before, dice.unlucky = dice.unlucky, set()  # the next flush looks up a lost answer
            dice.are_rolled = True
            await wire.engine._stage.flush()
            dice.are_rolled = False
            for session in sessions:
                durable = durable_step(wire, session)
                assert durable <= await dice.step(session), "called durable and not stored"
                if f"/{session.id}" not in dice.unlucky | before:
                    assert durable == number, "not stored for the fault of another key"
        for _ in range(2):
            await wire.engine._stage.flush()
        for session in sessions:
            assert durable_step(wire, session) == await dice.step(session) == ROUNDS
            await session.check_state()
    return dice


Play = Callable[[Path, int], Awaitable[Dice]]
SEEDS = range(6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("play", [play_through, play_behind])
async def test_each_key_has_its_own_luck(tmp_path: Path, play: Play, seed: int) -> None:
    """Whatever faults keys meet at random, each session gets its own key's outcome and no other."""
    print("seed", seed)
    dice = await play(tmp_path, seed)
    print(dict(dice.count))
    assert dice.violations == []
    assert {"refused", "full", "lost before", "lost after"} <= dice.count.keys()


def one_for_all(patch: Patch) -> None:
    """Lets one failing key of a flush count as a failure of all."""
    of = write_through._outcome
    put = write_through.WriteThrough._put

    async def whole(self: Any, batch: Any, columns: Any, rows: Any, writes: Any) -> None:
        await put(self, batch, columns, rows, writes)
        if batch.outcomes[columns].any():
            batch.outcomes[columns] = of(StoreUnavailable("away"))

    patch.setattr(write_through.WriteThrough, "_put", whole)


def unknown_taken_for_refused(patch: Patch) -> None:
    """Takes a lost answer for a refusal."""
    of = write_through._outcome

    def sure(written: WriteOutcome) -> Outcome:
        return Outcome.NOT_STORED if isinstance(written, StoreTimeout) else of(written)

    patch.setattr(write_through, "_outcome", sure)


def unknown_taken_for_stored(patch: Patch) -> None:
    """Takes a lost answer for a success."""
    of = write_through._outcome

    def hopeful(written: WriteOutcome) -> Outcome:
        return Outcome.APPLIED if isinstance(written, StoreTimeout) else of(written)

    patch.setattr(write_through, "_outcome", hopeful)


def neighbours_outcome(patch: Patch) -> None:
    """Takes the outcome of the next key for each key's, with write-behind."""
    note = WriteBehind._flush_rows

    async def turned(self: Any, model: Any, rows: Any, lives: Any) -> None:
        store = self._store

        class Turned:
            load = store.load

            async def put(self, writes: Any) -> Any:
                outcomes = await store.put(writes)
                return outcomes[1:] + outcomes[:1]

        self._store = Turned()
        try:
            await note(self, model, rows, lives)
        finally:
            self._store = store

    patch.setattr(WriteBehind, "_flush_rows", turned)


@pytest.mark.parametrize(
    ("bug", "play", "words"),
    [
        (one_for_all, play_through, "for the fault of another key|and stored"),
        (unknown_taken_for_refused, play_through, "and stored"),
        (unknown_taken_for_stored, play_through, "acknowledged and not stored"),
        (neighbours_outcome, play_behind, "durable and not stored|fault of another key"),
    ],
)
async def test_planted_bugs_are_caught(
    tmp_path: Path, monkeypatch: Patch, bug: Callable[[Patch], None], play: Play, words: str
) -> None:
    """Each of these bugs fails the play above, with an error of its own."""
    bug(monkeypatch)
    found: list[str] = []
    for seed in SEEDS:
        found += (await play(tmp_path / str(seed), seed)).violations
    assert any(re.search(words, each) for each in found), found


class Answering:
    """A store that answers what a test sets."""

    def __init__(self) -> None:
        self.outcomes: list[Any] = []

    async def load(self, keys: Sequence[str]) -> list[Any]:
        return self.outcomes

    async def put(self, writes: Sequence[Write]) -> list[Any]:
        return self.outcomes


AWAY, LOST = StoreUnavailable("away", cause="gone"), StoreTimeout("lost", cause="silent")
OF_KEY = StoreUnavailable("bad", cause="damaged", is_of_key=True)


@pytest.mark.parametrize(
    ("outcomes", "cause", "events", "reasons"),
    [
        ([OK, OK], "", [], {}),
        ([OK, Written.FENCED], "", [], {"FENCED": 1}),
        ([OK, AWAY, OF_KEY], "", ["store fails some keys"], {"STORE_UNAVAILABLE": 2}),
        ([OK, LOST], "", ["store fails some keys"], {"STORE_TIMEOUT": 1}),
        ([OF_KEY], "", ["store fails some keys"], {"STORE_UNAVAILABLE": 1}),
        ([OF_KEY, AWAY], "gone", ["store lost"], {"STORE_UNAVAILABLE": 2}),
        ([LOST, LOST], "silent", ["store lost"], {"STORE_TIMEOUT": 2}),
    ],
)
async def test_only_a_store_that_serves_no_key_is_away(
    outcomes: list[Any], cause: str, events: list[str], reasons: dict[str, int]
) -> None:
    """A call that fails some keys is no outage, and its keys are counted, and logged rarely."""
    metrics, store = Metrics(CollectorRegistry()), Answering()
    measured = MeasuredStore(store, metrics)  # type: ignore[arg-type]  # asked no more
    store.outcomes = outcomes
    with capture_logs() as lines:
        for _ in range(3):
            assert await measured.put([]) == outcomes
    assert measured.cause == cause
    assert [line["event"] for line in lines] == events
    counted = {reason: count for (_, reason), count in metrics.store_errors.items()}
    assert counted == {reason: 3 * count for reason, count in reasons.items()}
