"""The client when things end: a killed, restarted or frozen server, cancellation, close."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from lstmserve import AsyncClient, Client
from lstmserve.client import (
    Cancelled,
    DeadlineExceeded,
    LstmServeError,
    Overloaded,
    Session,
    SessionExpired,
    SessionLost,
    StepManyFailed,
    Unavailable,
)
from serving import Serve, Serving

X = [1.0, 2.0, 3.0]
SHORT_S = 0.2


@contextmanager
def frozen(serving: Serving) -> Iterator[None]:
    """Stops the server in the middle of its work while the block runs."""
    os.kill(serving.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(serving.process.pid, signal.SIGCONT)


def ways_to_step(
    client: Client, session: Session, timeout_s: float | None = None
) -> list[Callable[[], object]]:
    """A step by each of the three ways."""
    return [
        lambda: session.step(X, timeout_s=timeout_s),
        lambda: list(session.stream([X], timeout_s=timeout_s)),
        lambda: client.step_many({session: X}, timeout_s=timeout_s),
    ]


def cause(error: LstmServeError) -> LstmServeError:
    """The error of the one session of a step_many."""
    return next(iter(error.errors.values())) if isinstance(error, StepManyFailed) else error


def test_a_killed_server_is_a_clear_error(serve: Serve) -> None:
    """Steps under way, and later ones, end as Unavailable, and no call hangs."""
    serving = serve()
    with Client(serving.target, retry_s_max=0) as client:
        session, other = client.session("tiny"), client.session("tiny")
        client.step_many({session: X})
        replies = session.stream([X, X, *[X] * 100])
        next(replies)
        serving.kill()
        with pytest.raises(Unavailable):
            list(replies)
        session = other
        for step in ways_to_step(client, session):
            with pytest.raises(LstmServeError) as failed:
                step()
            assert type(cause(failed.value)) is Unavailable
            assert failed.value.applied is None
            assert "\n" not in str(failed.value)


def test_a_restarted_server_says_that_it_forgot(serve: Serve) -> None:
    """The same client gets through again, and its old session is lost, not silently replaced."""
    serving = serve()
    with Client(serving.target, retry_s_max=0) as client:
        session = client.session("tiny")
        client.step_many({session: X})
        serving.kill()
        serve("--listen", serving.target)
        while not is_back(client):
            pass
        for step in ways_to_step(client, session):
            with pytest.raises(LstmServeError) as failed:
                step()
            assert type(cause(failed.value)) is SessionLost
            assert failed.value.applied is False
        with client.session("tiny") as fresh:
            assert client.step_many({fresh: X})[fresh].shape == (2,)


def is_back(client: Client) -> bool:
    """Whether a call gets through; gRPC waits about a second between its attempts."""
    try:
        return bool(client.models())
    except Unavailable:
        return False


def test_a_frozen_server_meets_the_deadline(serve: Serve) -> None:
    """Every way to step ends with DeadlineExceeded and an unknown outcome, and works again
    later."""
    serving = serve()
    with Client(serving.target, retry_s_max=0) as client:
        session = client.session("tiny")
        client.step_many({session: X})
        with frozen(serving):
            for step in ways_to_step(client, session, SHORT_S):
                with pytest.raises(LstmServeError) as failed:
                    step()
                assert type(cause(failed.value)) is DeadlineExceeded
                assert failed.value.applied is None
        assert client.step_many({session: X})[session].shape == (2,)
        assert session.step(X).shape == (2,)


async def test_a_frozen_server_meets_the_deadline_on_the_loop(serve: Serve) -> None:
    """On the event loop every way to step ends with DeadlineExceeded, and works again later."""
    serving = serve()
    async with AsyncClient(serving.target, retry_s_max=0) as client:
        session = await client.session("tiny")
        await client.step_many({session: X})
        with frozen(serving):
            with pytest.raises(DeadlineExceeded):
                await session.step(X, timeout_s=SHORT_S)
            with pytest.raises(DeadlineExceeded):
                await anext(session.stream([X], timeout_s=SHORT_S))
            with pytest.raises(StepManyFailed) as failed:
                await client.step_many({session: X}, timeout_s=SHORT_S)
            assert type(failed.value.errors[session]) is DeadlineExceeded


async def test_cancelling_a_step_is_heard_at_once(serve: Serve) -> None:
    """Cancelled tasks end at once in every way to step, while the server does nothing."""
    serving = serve()
    async with AsyncClient(serving.target, retry_s_max=0) as client:
        session = await client.session("tiny")
        await client.step_many({session: X})

        async def stream() -> None:
            await anext(session.stream([X]))

        with frozen(serving):
            ways = (session.step(X), stream(), client.step_many({session: X}))
            tasks = [asyncio.create_task(way) for way in ways]
            for _ in range(10):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert [task.cancelled() for task in tasks] == [True] * 3
        assert (await session.step(X)).shape == (2,)
        await session.close()


async def test_closing_the_client_ends_what_waits_on_the_loop(serve: Serve) -> None:
    """A call that waits when its client is closed gets the error Cancelled, and so do later
    calls."""
    serving = serve()
    client = AsyncClient(serving.target, retry_s_max=0)
    session = await client.session("tiny")
    await client.step_many({session: X})
    with frozen(serving):
        tasks = [
            asyncio.create_task(session.step(X)),
            asyncio.create_task(client.step_many({session: X})),
        ]
        for _ in range(10):
            await asyncio.sleep(0)
        await client.close()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(cause(end)) for end in ends] == [Cancelled] * 2
    for way in (session.step(X), anext(session.stream([X])), client.step_many({session: X})):
        with pytest.raises(Cancelled, match="closed"):
            await way


def test_closing_the_client_ends_what_waits(serve: Serve) -> None:
    """A call that waits when another thread closes the client gets the error Cancelled."""
    serving = serve()
    client = Client(serving.target, retry_s_max=0)
    session = client.session("tiny")
    client.step_many({session: X})
    ends: list[type] = []

    def work(step: Callable[[], object]) -> None:
        try:
            step()
        except LstmServeError as error:
            ends.append(type(cause(error)))

    with frozen(serving):
        threads = [
            threading.Thread(target=work, args=(way,)) for way in ways_to_step(client, session)
        ]
        for thread in threads:
            thread.start()
        client.close()
        for thread in threads:
            thread.join()
    assert ends == [Cancelled] * 3
    for step in ways_to_step(client, session):
        with pytest.raises(Cancelled, match="closed"):
            step()


def test_an_idle_session_expires(serve: Serve) -> None:
    """After its ttl a step fails with SessionExpired, and was not applied."""
    with Client(serve().target, retry_s_max=0) as client:
        session = client.session("tiny", ttl_s=0.05)
        while is_open(session):
            pass
        with pytest.raises(SessionExpired) as expired:
            session.step(X)
        assert expired.value.applied is False


def is_open(session: Session) -> bool:
    """Whether it has not expired; looking does not renew it."""
    try:
        return bool(session.info())
    except SessionExpired:
        return False


def test_a_full_server_says_when_to_come_again(serve: Serve) -> None:
    """One session too many is Overloaded with a delay, and closing one makes room."""
    serving = serve("--batch-sessions-max", "4", "--pool-bytes", "22000")
    with Client(serving.target, retry_s_max=0) as client:
        sessions = [client.session("tiny") for _ in range(serving.ready["sessions_max"]["tiny:1"])]
        with pytest.raises(Overloaded) as full:
            client.session("tiny")
        assert (full.value.reason, full.value.applied) == ("SESSION_LIMIT", False)
        assert full.value.retry_delay_s is not None
        sessions[0].close()
        assert client.session("tiny").step(X).shape == (2,)


def test_the_error_of_the_block_is_the_news(serve: Serve) -> None:
    """If the session cannot be closed because the server died, `with` raises the block's own
    error."""
    serving = serve()
    with Client(serving.target, retry_s_max=0) as client:
        with pytest.raises(ZeroDivisionError):
            fail_in_a_session(client, serving.kill)
        with pytest.raises(Unavailable):
            client.models()


def fail_in_a_session(client: Client, act: Callable[[], None]) -> None:
    """Raises an error inside the block, after act()."""
    with client.session("tiny"):
        act()
        raise ZeroDivisionError
