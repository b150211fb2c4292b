"""Streams and clients that are left half-way: all their threads, tasks and calls end."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress

import numpy as np
import pytest

from lstmserve import AsyncClient, Client
from lstmserve.client import Cancelled
from serving import Serve
from zoo import Zoo

X = np.random.default_rng(6).standard_normal((12, 3)).astype(np.float32)
WAIT_S_MAX = 30
Replies = Generator[np.ndarray]


@pytest.fixture
def threads() -> Iterator[None]:
    """Asserts that every thread that the test started has ended."""
    before = set(threading.enumerate())
    yield
    gc.collect()
    started = [thread for thread in threading.enumerate() if thread not in before]
    end_s = time.monotonic() + WAIT_S_MAX
    for thread in started:
        thread.join(max(0.0, end_s - time.monotonic()))
    assert [thread.name for thread in started if thread.is_alive()] == []


def close(replies: Replies) -> None:
    """Closes the generator, as `contextlib.closing` does."""
    replies.close()


def drop(replies: Replies) -> None:
    """Drops the last reference to the generator."""
    del replies


def throw(replies: Replies) -> None:
    """Throws an exception into the generator."""
    with suppress(ZeroDivisionError):
        replies.throw(ZeroDivisionError)


def break_out(replies: Replies) -> None:
    """Leaves a loop over it by an exception of the caller's own."""
    with suppress(ZeroDivisionError, ValueError):
        for _ in replies:
            raise ZeroDivisionError


def in_a_cycle(replies: Replies) -> None:
    """Leaves it in a cycle that only the garbage collector frees."""
    cycle: list[object] = [replies]
    cycle.append(cycle)


def broken(length: int) -> Iterator[np.ndarray]:
    """Yields `length` rows, and then raises an exception."""
    yield from X[:length]
    raise ZeroDivisionError("the sensor broke")


LEAVE = [close, drop, throw, break_out, in_a_cycle]
SOURCES: dict[str, Callable[[int], Iterator[np.ndarray]]] = {
    "ends": lambda length: iter(X[:length]),
    "raises": broken,
    "has a bad row": lambda length: itertools.chain(X[:length], [np.ones(1)]),
    "goes on": lambda _: itertools.cycle(X),
}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("leave", LEAVE)
def test_a_stream_that_is_left_leaves_no_thread(
    zoo: Zoo, leave: Callable[[Replies], None], source: str
) -> None:
    """A stream that is left leaves no thread, whatever its source still has, for every window."""
    with Client(zoo.target) as client, client.session("tiny") as session:
        for window, length in itertools.product((1, 2, 32), (1, 2, 3, 4, 12)):
            replies = session.stream(SOURCES[source](length), window=window)
            next(replies)
            leave(replies)
            del replies
        assert session.step(X[0]).shape == (2,)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("source", SOURCES)
def test_a_stream_of_a_closed_client_leaves_no_thread(zoo: Zoo, source: str) -> None:
    """A stream of a client that was closed leaves no thread, whether the caller asks for
    further replies or not."""
    for window, is_asked in itertools.product((1, 2, 32), (True, False)):
        with Client(zoo.target) as client:
            session = client.session("tiny")
            replies = session.stream(SOURCES[source](12), window=window)
            next(replies)
            client.close()
            with suppress(Cancelled, ZeroDivisionError, ValueError):
                if is_asked:  # earlier replies are still given
                    list(replies)
        close_by_another(zoo, session.id)


def close_by_another(zoo: Zoo, session_id: str) -> None:
    """Ends a session whose client is closed."""
    with Client(zoo.target) as client:
        client.attach(session_id).close()


@pytest.mark.usefixtures("threads")
def test_a_client_that_is_never_closed_leaves_no_thread(zoo: Zoo) -> None:
    """A client that is dropped with an unfinished stream and an open StepMany leaves no thread."""
    for _ in range(10):
        client = Client(zoo.target)
        session, other = client.session("tiny"), client.session("tiny")
        client.step_many({session: X[0], other: X[0]})
        replies = session.stream(itertools.cycle(X), window=1)
        next(replies)
        ids = session.id, other.id
        del client, session, other, replies
        for each in ids:
            close_by_another(zoo, each)


@pytest.mark.usefixtures("threads")
def test_a_stream_ends_in_whatever_thread_lets_go_of_it(zoo: Zoo) -> None:
    """A stream ends when its own source's thread or its reader's thread drops it, without a
    deadlock."""
    with Client(zoo.target) as client, client.session("tiny") as session:
        held: list[Replies] = []

        def source() -> Iterator[np.ndarray]:
            yield X[0]
            yield X[1]
            left.wait(WAIT_S_MAX)
            held.clear()
            yield X[2]

        left = threading.Event()
        held.append(session.stream(source(), window=1))
        next(held[0])
        left.set()
        assert session.step(X[0]).shape == (2,)


def test_streams_that_are_left_give_their_calls_back(serve: Serve) -> None:
    """A hundred streams, one after the other, run on a connection with room for eight calls."""
    serving = serve("--streams-max", "8")
    with Client(serving.target) as client, client.session("tiny") as session:
        for i in range(100):
            replies = session.stream(itertools.cycle(X), window=1 + i % 3)
            next(replies)
            LEAVE[i % 4](replies)
            del replies
    assert serving.stop() == 0


async def test_a_client_that_is_never_closed_leaves_no_task(zoo: Zoo) -> None:
    """A client that is dropped on the event loop, with open streams, leaves no task."""
    left = [each for _ in range(10) for each in await leave_a_client(zoo)]
    gc.collect()
    await all_tasks_end()
    for each in left:
        close_by_another(zoo, each)


async def leave_a_client(zoo: Zoo) -> tuple[str, str]:
    """The ids of the sessions of a client that is dropped with two streams open."""
    client = AsyncClient(zoo.target)
    session, other = await client.session("tiny"), await client.session("tiny")
    await client.step_many({session: X[0], other: X[0]})
    replies = session.stream(itertools.cycle(X), window=1)
    await anext(replies)
    return session.id, other.id


async def all_tasks_end() -> None:
    """Waits until only the caller's task is left."""
    async with asyncio.timeout(WAIT_S_MAX):
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            gc.collect()  # what a task has let go of may be a cycle
            await asyncio.wait(tasks, timeout=0.1)


async def test_streams_that_are_left_give_their_calls_back_on_the_loop(serve: Serve) -> None:
    """Streams give back their calls after aclose, after a dropped generator and a cancelled
    task."""
    serving = serve("--streams-max", "8")
    async with AsyncClient(serving.target) as client, client.session("tiny") as session:
        for i in range(99):
            replies = session.stream(itertools.cycle(X), window=1 + i % 3)
            await anext(replies)
            if i % 3 == 0:
                await replies.aclose()
            elif i % 3 == 1:
                task = asyncio.ensure_future(anext(replies))
                task.cancel()
                await asyncio.wait([task])
            del replies
        gc.collect()
    await all_tasks_end()
    assert serving.stop() == 0
