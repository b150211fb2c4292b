"""One outcome per key: a key that the store fails takes no other session's step with it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from redis import Redis

from gated import Gate
from lstmserve.store import Store
from lstmserve.store.file import FileStore
from lstmserve.store.record import VERSION_SLICE
from lstmserve.store.redis import RedisStore, redis_key
from lstmserve.v1 import lstm_pb2 as pb
from refusals import in_band
from storing import Valkey
from wire import Good, Stream, Wire, serving


class Spoiler(Protocol):
    """A real store of which a test makes one record useless, and whole again."""

    store: Store

    def spoil(self, key: str) -> None:
        """From now on no write to the key can succeed."""

    def mend(self, key: str) -> None:
        """The record is as it was."""


class SpoiledFile:
    """The file store; the version in a row is damaged."""

    def __init__(self, folder: Path) -> None:
        self.store = FileStore(folder / "store", timeout_s=20)

    def _execute(self, text: str, *arguments: Any) -> None:
        database = self.store._database._database
        self.store._thread.submit(database.execute, text, arguments).result()

    def spoil(self, key: str) -> None:
        """Cuts the version."""
        self._execute("UPDATE record SET version = x'00' WHERE key = ?", key)

    def mend(self, key: str) -> None:
        """Takes the version from the record."""
        start, size = VERSION_SLICE.start + 1, VERSION_SLICE.stop - VERSION_SLICE.start
        text = "UPDATE record SET version = substr(content, ?, ?) WHERE key = ?"
        self._execute(text, start, size, key)


class SpoiledValkey:
    """Valkey; another program's list lies under a key."""

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
    """The next step of each in one message, by its number; what is said of them."""
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
    """The session's last step once more, by its number."""
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
    """Of sessions that commit in one flush, the one whose record is useless is refused as not
    applied, the others are acknowledged; mended, its step counts once."""
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
