"""What every store promises, on the real file store and a real Valkey."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lstmserve.store import Store, StoreRefused, Version, Written, decode, open_store, version_of
from store_writer import KEYS
from storing import Valkey, acknowledged, content, write

OK, CONFLICT, FENCED = Written.OK, Written.CONFLICT, Written.FENCED


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """One server for the module; the tests take keys of their own."""
    with Valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(params=["file", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store of each kind."""
    if request.param == "file":
        return f"file:{tmp_path}"
    server: Valkey = request.getfixturevalue("valkey")
    return server.url


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """An open store."""
    store = open_store(url, timeout_s=20)
    assert store
    yield store
    await store.close()


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A key that no other test has."""
    return f"acme/{request.node.name}"


async def test_create_step_delete(store: Store, key: str) -> None:
    """A session's life: created, stepped, taken over, deleted, and gone."""
    assert await store.load([key]) == [None]
    assert await store.put([write(key, None, (1, 1, 0))]) == [OK]
    assert await store.put([write(key, (1, 1, 0), (1, 1, 1))]) == [OK]
    assert await store.load([key, f"{key}-other"]) == [content(Version(1, 1, 1)), None]
    assert await store.put([write(key, (1, 1, 1), (1, 2, 1))]) == [OK]
    assert await store.put([write(key, (1, 2, 1), None)]) == [OK]
    assert await store.load([key]) == [None]


async def test_refusals_change_nothing(store: Store, key: str) -> None:
    """A write that expects another version gets the reason, and leaves the record unchanged."""
    assert await store.put([write(key, (5, 3, 7), (5, 3, 8))]) == [CONFLICT]  # there is no record
    assert await store.put([write(key, None, (5, 3, 7))]) == [OK]
    refused = {
        None: CONFLICT,  # a record exists
        (5, 3, 6): CONFLICT,
        (5, 3, 8): CONFLICT,
        (5, 4, 7): CONFLICT,  # a later epoch
        (5, 2, 7): FENCED,
        (5, 2, 9): FENCED,
        (5, 0, 7): FENCED,
        (4, 2, 7): CONFLICT,  # another life, whose epochs do not count
        (6, 9, 7): CONFLICT,
    }
    for expected, outcome in refused.items():
        assert await store.put([write(key, expected, (9, 9, 9))]) == [outcome], expected
        if expected:
            assert await store.put([write(key, expected, None)]) == [outcome], expected
    assert await store.load([key]) == [content(Version(5, 3, 7))]


@pytest.mark.parametrize("higher", [1, 255, 256, 2**31, 2**32 + 1, 2**53 - 1])
async def test_epochs_compare_as_numbers(store: Store, key: str, higher: int) -> None:
    """Epochs are ordered as numbers, whatever bytes they consist of."""
    assert await store.put([write(key, None, (1, higher, 0))]) == [OK]
    assert await store.put([write(key, (1, higher - 1, 0), (1, 1, 1))]) == [FENCED]
    if higher < 2**53 - 1:
        assert await store.put([write(key, (1, higher + 1, 0), (1, 1, 1))]) == [CONFLICT]


async def test_items_stand_alone(store: Store, key: str) -> None:
    """A refused write in a put does not touch its neighbours, and one key's writes go in order."""
    outcomes = await store.put(
        [
            write(f"{key}-a", None, (1, 1, 0)),
            write(f"{key}-b", (1, 1, 4), (1, 1, 5)),
            write(f"{key}-a", (1, 1, 0), (1, 1, 1)),
            write(f"{key}-a", None, (2, 1, 0)),
            write(f"{key}-c", None, (3, 1, 0)),
        ]
    )
    assert outcomes == [OK, CONFLICT, OK, CONFLICT, OK]
    found = await store.load([f"{key}-{name}" for name in "abc"])
    assert [raw and version_of(raw) for raw in found] == [(1, 1, 1), None, (3, 1, 0)]


async def test_nothing_to_do(store: Store) -> None:
    """An empty put and an empty load are answered."""
    assert await store.put([]) == []
    assert await store.load([]) == []


async def test_tenants_do_not_meet(store: Store, key: str) -> None:
    """The same id of two tenants, or of none, is two sessions."""
    ids = [f"a/{key[5:]}", f"b/{key[5:]}", f"/{key[5:]}"]
    assert await store.put([write(k, None, (i, 1, 0)) for i, k in enumerate(ids, 1)]) == [OK] * 3
    found = await store.load(ids)
    assert [raw and version_of(raw).incarnation for raw in found] == [1, 2, 3]


async def test_expired_is_gone(store: Store, key: str) -> None:
    """A record is gone after its ttl, which a write renews, and then the key can be created
    again."""
    short_s, long_s = 0.001, 60.0
    writes = [
        write(f"{key}-{name}", None, (1, 1, 0), ttl_s=ttl_s)
        for name, ttl_s in [("dead", short_s), ("renewed", long_s), ("cut", long_s)]
    ]
    assert await store.put(writes) == [OK] * 3
    writes = [
        write(f"{key}-{name}", (1, 1, 0), (1, 1, 1), ttl_s=ttl_s)
        for name, ttl_s in [("renewed", long_s), ("cut", short_s)]
    ]
    assert await store.put(writes) == [OK] * 2
    while any(await store.load([f"{key}-dead", f"{key}-cut"])):
        pass
    assert await store.put([write(f"{key}-dead", (1, 1, 1), (1, 1, 2))]) == [CONFLICT]
    assert await store.put([write(f"{key}-dead", (1, 1, 1), None)]) == [CONFLICT]
    assert await store.put([write(f"{key}-dead", None, (2, 1, 0))]) == [OK]
    assert await store.load([f"{key}-renewed"]) == [content(Version(1, 1, 1))]


async def test_quarantine_moves_only_what_is_corrupt(store: Store, key: str) -> None:
    """A corrupt record is moved away from its key, unless another one is there by now."""
    assert await store.put([write(key, None, (1, 1, 0))]) == [OK]
    await store.quarantine(key, b"what was there before")
    assert await store.load([key]) == [content(Version(1, 1, 0))]
    await store.quarantine(key, content(Version(1, 1, 0)))
    await store.quarantine(key, content(Version(1, 1, 0)))
    assert await store.load([key]) == [None]
    assert await store.put([write(key, None, (2, 1, 0))]) == [OK]


async def test_one_of_two_racing_puts_wins(store: Store, key: str) -> None:
    """Of many owners that expect the same version at once, exactly one writes."""
    expected = None
    for step in range(20):
        rivals = [write(key, expected, (1, epoch, step)) for epoch in range(1, 9)]
        outcomes = await asyncio.gather(*(store.put([rival]) for rival in rivals))
        assert sum(outcome == [OK] for outcome in outcomes) == 1
        (raw,) = await store.load([key])
        assert raw == rivals[outcomes.index([OK])].content
        expected = version_of(raw)


async def test_no_step_is_lost_or_doubled(store: Store, key: str) -> None:
    """Owners that load, step and put at random count together as many steps as got OK."""
    assert await store.put([write(key, None, (1, 1, 0))]) == [OK]

    async def owner(epoch: int) -> int:
        won = 0
        for _ in range(25):
            (raw,) = await store.load([key])
            assert raw
            old = decode(raw).version
            new = (1, max(old.epoch, epoch), old.step + 1)
            won += await store.put([write(key, old, new)]) == [OK]
        return won

    won = await asyncio.gather(*map(owner, range(1, 7)))
    (raw,) = await store.load([key])
    assert raw
    assert version_of(raw).step == sum(won) > 0


async def test_random_traffic_is_as_a_dict(store: Store, key: str) -> None:
    """Batches of random writes and loads by several owners end like the same calls on a dict."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    model: dict[str, Version] = {}
    seen = dict.fromkeys((OK, CONFLICT, FENCED), 0)
    for _ in range(150):
        writes, due = [], []
        for _ in range(rng.randrange(1, 12)):
            name = f"{key}-{rng.randrange(6)}"
            old = model.get(name)
            expected = _guess(rng, old)
            new = _guess(rng, expected) if expected and rng.random() < 0.2 else _next(rng, expected)
            if expected is None and new is None:
                continue
            writes.append(write(name, expected, new))
            due.append(_expect(old, expected))
            if due[-1] is OK and new:
                model[name] = new
            elif due[-1] is OK:
                del model[name]
            seen[due[-1]] += 1
        assert await store.put(writes) == due
        names = [f"{key}-{i}" for i in rng.sample(range(6), 4)]
        stored = [content(model[name]) if name in model else None for name in names]
        assert await store.load(names) == stored
    assert min(seen.values()) > 20, seen


def _guess(rng: random.Random, version: Version | None) -> Version | None:
    """Mostly that version, else one that differs in one number, else none."""
    kind = rng.random()
    if version is None or kind < 0.05:
        return None if kind < 0.9 else Version(1, 1, 1)
    if kind < 0.6:
        return version
    changed = list(version)
    changed[rng.randrange(3)] += rng.choice((-1, 1))
    return Version(*(max(0, number) for number in changed))


def _next(rng: random.Random, version: Version | None) -> Version:
    if version is None:
        return Version(rng.randrange(1, 4), rng.randrange(3), 0)
    return Version(version.incarnation, version.epoch + rng.randrange(2), version.step + 1)


def _expect(found: Version | None, expected: Version | None) -> Written:
    """The contract in three lines, independent of the product's code."""
    if found == expected:
        return OK
    same_life = found and expected and found[0] == expected[0]
    return FENCED if same_life and found and expected and found[1] > expected[1] else CONFLICT


async def test_cancelled_call_disturbs_nobody(store: Store, key: str) -> None:
    """Calls that are cancelled at any point leave no reply that another call could take for its
    own."""
    assert await store.put([write(key, None, (1, 1, 0))]) == [OK]
    for passes in range(30):
        doomed = asyncio.ensure_future(store.put([write(f"{key}-{passes}", None, (2, 1, 0))]))
        for _ in range(passes):
            await asyncio.sleep(0)
        doomed.cancel()
        assert await store.load([key]) == [content(Version(1, 1, 0))]
        await asyncio.gather(doomed, return_exceptions=True)


async def test_killed_writer_loses_nothing_acknowledged(url: str) -> None:
    """After several kill -9 in mid-stream every acknowledged put is there, whole."""
    steps = [0]
    for puts in (1, 5, 30):
        last = acknowledged(url, puts)
        assert min(last) >= max(steps) + puts
        store = open_store(url)
        assert store
        found = [raw and decode(raw) for raw in await store.load(KEYS)]
        await store.close()
        steps = [record.step if record else -1 for record in found]
        assert all(a <= b <= a + 1 for a, b in zip(last, steps, strict=True)), (last, steps)


@pytest.mark.parametrize(
    "url", ["", "file:", "redis", "memory:", "disk:/tmp", "http://localhost", "redis-sentinel://h"]
)
def test_unknown_stores_are_refused(url: str) -> None:
    """A URL of no store is refused, and the error shows valid forms."""
    with pytest.raises(StoreRefused, match=r"memory, file:DIR, redis://HOST"):
        open_store(url)


def test_memory_is_no_store() -> None:
    """--store memory opens no store."""
    assert open_store("memory") is None
