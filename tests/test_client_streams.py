"""Session.stream, on threads and on the event loop: order, sources, errors, ends."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from lstmserve import AsyncClient, Client
from lstmserve.client import InvalidInput, SessionClosed, SessionReplaced
from zoo import Zoo

X = np.random.default_rng(5).standard_normal((200, 3)).astype(np.float32)


@pytest.fixture
def client(zoo: Zoo) -> Iterator[Client]:
    """A client of the zoo's server; asserts that it leaves no thread behind."""
    with Client(zoo.target) as client:
        yield client
    assert own_threads() == []


@pytest.fixture
async def aio_client(zoo: Zoo) -> AsyncIterator[AsyncClient]:
    """An AsyncClient of the zoo's server; asserts that it leaves no task behind."""
    async with AsyncClient(zoo.target) as client:
        yield client
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1


def own_threads() -> list[str]:
    """The names of the client library's live threads."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("lstmserve")]


@pytest.mark.parametrize("window", [1, 3, 32])
def test_stream_is_step_by_step(client: Client, window: int) -> None:
    """Replies come in order, each shaped by its own x, with the bits of single steps."""
    chunks = [X[0], X[1:2], X[2:7], *X[7:]]
    with client.session("tiny") as alone, client.session("tiny") as session:
        ys = list(session.stream(chunks, window=window))
        for chunk, y in zip(chunks, ys, strict=True):
            np.testing.assert_array_equal(y, alone.step(chunk), strict=True)
        assert session.step_count <= len(chunks)  # steps that are ready together become one
        assert window > 1 or session.step_count == len(chunks)
        for ours, theirs in zip(session.state(), alone.state(), strict=True):
            assert ours.tobytes() == theirs.tobytes()
        assert list(session.stream([])) == []


async def test_stream_is_step_by_step_on_the_loop(aio_client: AsyncClient) -> None:
    """Plain and asynchronous sources give the bits of single steps."""

    async def source() -> AsyncIterator[np.ndarray]:
        for row in X[100:]:
            yield row

    async with aio_client.session("tiny") as alone, aio_client.session("tiny") as session:
        ys = [y async for y in session.stream(X[:100])]
        ys += [y async for y in session.stream(source(), window=1)]
        np.testing.assert_array_equal(np.stack(ys), await alone.step(X))


def test_a_reply_does_not_wait_for_the_next_item(client: Client) -> None:
    """A source that yields its next row only after the last reply is served."""
    was_read = threading.Semaphore()

    def source() -> Iterator[np.ndarray]:
        for row in X[:20]:
            assert was_read.acquire(timeout=60)
            yield row

    with client.session("tiny") as session:
        for _ in session.stream(source()):
            was_read.release()
        assert session.step_count == 20


async def test_a_reply_does_not_wait_for_the_next_item_on_the_loop(
    aio_client: AsyncClient,
) -> None:
    """An asynchronous source that yields its next row only after the last reply is served."""
    was_read = asyncio.Semaphore()

    async def source() -> AsyncIterator[np.ndarray]:
        for row in X[:20]:
            await was_read.acquire()
            yield row

    async with aio_client.session("tiny") as session:
        async for _ in session.stream(source()):
            was_read.release()
        assert session.step_count == 20


@pytest.mark.parametrize("bad", [[1.0], [np.nan, 0, 0]])
def test_a_stream_ends_before_a_bad_item(client: Client, bad: list[float]) -> None:
    """The replies before a bad item come first, and no later item is sent."""
    with client.session("tiny") as session:
        got = []
        with pytest.raises(ValueError, match=r"not \[1\]|NaN") as refusal:
            got.extend(session.stream([*X[:5], bad, *X[5:20]]))
        assert isinstance(refusal.value, InvalidInput) == (len(bad) == 3)
        assert len(got) == 5
        assert session.info().step == session.step_count <= 5


def test_what_the_source_raises_is_raised(client: Client) -> None:
    """The source's own exception is raised unchanged, after the replies before it."""

    def source() -> Iterator[np.ndarray]:
        yield from X[:3]
        raise ZeroDivisionError("the sensor broke")

    with client.session("tiny") as session:
        replies = session.stream(source())
        assert len(list(itertools.islice(replies, 3))) == 3
        with pytest.raises(ZeroDivisionError, match="the sensor broke"):
            next(replies)


async def test_what_the_source_raises_is_raised_on_the_loop(aio_client: AsyncClient) -> None:
    """An asynchronous source's own exception is raised unchanged, after the replies before it."""

    async def source() -> AsyncIterator[np.ndarray]:
        yield X[0]
        raise ZeroDivisionError("the sensor broke")

    async with aio_client.session("tiny") as session:
        replies = session.stream(source())
        assert (await anext(replies)).shape == (2,)
        with pytest.raises(ZeroDivisionError, match="the sensor broke"):
            await anext(replies)


def test_an_error_in_band_ends_the_iteration(client: Client) -> None:
    """A session that is closed or replaced under a stream ends it with that error."""
    with client.session("tiny", id="under") as session:
        replies = session.stream(itertools.repeat(X[0]), window=1)
        next(replies)
        other = client.session("tiny", id="under", if_exists="restart")
        with pytest.raises(SessionReplaced) as replaced:
            list(replies)
        assert replaced.value.applied is False
        other.close()
        session._keep = True
    with pytest.raises(SessionClosed):
        list(other.stream([X[0]]))


def test_an_abandoned_stream_ends(client: Client) -> None:
    """Leaving the loop early stops the source, frees the threads and leaves the session usable."""
    taken = []

    def source() -> Iterator[np.ndarray]:
        for row in X:
            taken.append(row)
            yield row

    with client.session("tiny") as session:
        replies = session.stream(source(), window=2)
        next(replies)
        replies.close()
        assert len(taken) < 10
        assert session.step(X[0]).shape == (2,)


async def test_an_abandoned_stream_ends_on_the_loop(aio_client: AsyncClient) -> None:
    """Cancelling a task in the middle stops the source and leaves the session usable."""
    started = asyncio.Event()

    async def endless() -> None:
        async for _ in session.stream(itertools.repeat(X[0])):
            started.set()

    async with aio_client.session("tiny") as session:
        task = asyncio.create_task(endless())
        await started.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert (await session.step(X[0])).shape == (2,)


def test_a_source_that_never_goes_on_holds_nobody_up(client: Client) -> None:
    """Closing a stream does not wait for a source that is blocked."""
    is_over = threading.Event()

    def source() -> Iterator[np.ndarray]:
        yield X[0]
        is_over.wait(60)

    with client.session("tiny") as session:
        replies = session.stream(source())
        next(replies)
        replies.close()
        assert session.step(X[0]).shape == (2,)
    assert own_threads() == ["lstmserve-feed"]
    is_over.set()
    for thread in threading.enumerate():
        if thread.name == "lstmserve-feed":
            thread.join()


def test_what_a_stream_has_read_ahead_is_its_own(client: Client) -> None:
    """A step between two replies of a stream is a new step, even with the same x."""
    x = np.ones(3, np.float32)
    with client.session("tiny") as session, client.session("tiny") as plain:
        stream = session.stream([x] * 8)
        ys = [next(stream), session.step(x), session.step(x), *stream, session.step(x)]
        count = session.step_count
        expected = [plain.step(x) for _ in range(11)]
    assert len(ys) == 11
    assert sorted(y.tobytes() for y in ys) == sorted(y.tobytes() for y in expected)
    assert count == session.step_count


def test_what_a_closed_stream_had_read_ahead_is_repeatable(client: Client) -> None:
    """The same xs again are the same steps, also after another stream that ended half-way."""
    xs = list(np.eye(3, dtype=np.float32)) * 2
    with client.session("tiny") as session, client.session("tiny") as plain:
        first = session.stream(xs)
        ys = [next(first)]
        first.close()
        ys += session.stream(xs[1:])
        expected = [plain.step(x) for x in xs]
    np.testing.assert_array_equal(ys, expected)
