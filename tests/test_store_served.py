"""Servers with a store: acknowledged steps survive a kill, sessions move, a stale owner is
harmless."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis

from lstmserve import Client
from lstmserve.engine.keys import session_key
from lstmserve.errors import LstmServeError
from lstmserve.store.redis import redis_key
from modelmaking import TINY, random_input
from serving import Serve, Serving
from storing import Valkey
from traffic import Oracle


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey of this test's own."""
    with Valkey(tmp_path) as server:
        yield server


@pytest.fixture
def oracle(models: Path) -> Oracle:
    """What whole sequences of tiny:1 give."""
    return Oracle(models / "tiny" / "1", TINY)


def x(length: int, seed: int) -> Any:
    """Rows for tiny:1."""
    return random_input(TINY, (length,), seed)


def step(serving: Serving, session_id: str, rows: Any) -> Any:
    """One step of a session that is resumed or opened. Returns its y."""
    with Client(serving.target) as client:
        session = client.session("tiny", id=session_id, if_exists="resume", keep=True)
        return session.step(rows)


@pytest.mark.parametrize("kind", ["file", "valkey"])
def test_a_killed_server_loses_no_acked_step(
    kind: str, serve: Serve, oracle: Oracle, valkey: Valkey, tmp_path: Path
) -> None:
    """After kill -9 between steps the next server goes on from the last acknowledged one, bit for
    bit."""
    url = valkey.url if kind == "valkey" else f"file:{tmp_path / 'sessions'}"
    outputs, inputs = [], [x(n + 1, n) for n in range(4)]
    for each in inputs:
        serving = serve("--store", url)
        outputs.append(step(serving, "a", each))
        loaded = serving.metric("lstm_sessions_opened_total", source="load")
        assert loaded == (len(outputs) > 1)
        serving.signal(signal.SIGKILL)
        serving.wait()
    assert np.array_equal(np.concatenate(outputs), oracle.run(np.concatenate(inputs))[0])


def test_sessions_move_between_servers(serve: Serve, oracle: Oracle, valkey: Valkey) -> None:
    """Steps sent to two servers in turn are one sequence, and a stale copy is never used."""
    servers = [serve("--store", valkey.url) for _ in range(2)]
    inputs = [x(2, n) for n in range(8)]
    with Client(servers[0].target) as one, Client(servers[1].target) as two:
        first = one.session("tiny", id="a", keep=True)
        sessions = [first, two.session("tiny", id="a", if_exists="resume", keep=True)]
        outputs = []
        for n, each in enumerate(inputs):
            outputs.append(_again(sessions[n % 2], each))
        state = np.stack([part.reshape(-1) for part in sessions[0].state()])
    y, hn, cn = oracle.run(np.concatenate(inputs))
    assert np.array_equal(np.concatenate(outputs), y)
    assert np.array_equal(state, np.stack([hn.reshape(-1), cn.reshape(-1)]))


def test_a_claim_that_the_store_forgot_is_not_made_again(
    serve: Serve, oracle: Oracle, valkey: Valkey
) -> None:
    """After a failover has lost an owner's claim and step, they do not pass for the next claim."""
    before, forgotten, after = (serve("--store", valkey.url) for _ in range(3))
    key, inputs = redis_key(session_key("", "a")), [x(1, n) for n in range(3)]
    outputs = [step(before, "a", inputs[0])]
    with Redis.from_url(valkey.url) as admin:
        replicated: Any = admin.get(key)
        step(forgotten, "a", x(1, 9))
        admin.set(key, replicated)
    outputs.append(step(after, "a", inputs[1]))
    outputs.append(step(forgotten, "a", inputs[2]))  # it has a step 2, too
    assert np.array_equal(np.concatenate(outputs), oracle.run(np.concatenate(inputs))[0])


def _again(session: Any, rows: Any) -> Any:
    """Repeats a step whose number the other client may have taken; then it was not applied."""
    for _ in range(3):
        try:
            return session.step(rows)
        except LstmServeError as error:
            if error.reason != "STEP_PAYLOAD_MISMATCH" or error.applied is not False:
                raise
    raise AssertionError("overtaken again and again")


def test_more_sessions_than_slots(serve: Serve, oracle: Oracle, tmp_path: Path) -> None:
    """With a store the pool is a cache: idle sessions move out and come back exact."""
    flags = ("--batch-sessions-max", "8", "--long-steps-max", "8", "--batch-cells-max", "64")
    serving = serve("--store", f"file:{tmp_path / 's'}", "--pool-bytes", str(100 * 80), *flags)
    fits = serving.ready["sessions_max"]["tiny:1"]
    count = 3 * fits
    with Client(serving.target) as client:
        sessions = [client.session("tiny", keep=True) for _ in range(count)]
        outputs = [
            [session.step(x(2, 10 * n + turn)) for n, session in enumerate(sessions)]
            for turn in range(3)
        ]
    for n in range(count):
        y, _, _ = oracle.run(np.concatenate([x(2, 10 * n + turn) for turn in range(3)]))
        assert np.array_equal(np.concatenate([each[n] for each in outputs]), y)
    opened = serving.metric("lstm_sessions_opened_total")
    closed = serving.metric("lstm_sessions_closed_total")
    assert serving.metric("lstm_sessions_closed_total", reason="evicted") >= 2 * fits
    assert serving.metric("lstm_sessions_opened_total", source="load") >= 2 * fits
    assert opened - closed == serving.metric("lstm_sessions") <= fits


def test_a_drain_writes_what_is_behind(serve: Serve, oracle: Oracle, tmp_path: Path) -> None:
    """With write-behind and an hour to flush, SIGTERM flushes, and the next server has every
    step."""
    url = f"file:{tmp_path / 's'}"
    inputs = [x(2, n) for n in range(6)]
    serving = serve("--store", url, "--store-mode", "behind", "--behind-s-max", "3600")
    with Client(serving.target) as client:
        session = client.session("tiny", id="a", keep=True)
        outputs = [session.step(each) for each in inputs[:-1]]
        assert session.info().durable_step == 0
        assert serving.metric("lstm_sessions", state="dirty") == 1
        assert serving.metric("lstm_durable_lag_seconds") > 0
    assert serving.stop() == 0
    outputs.append(step(serve("--store", url), "a", inputs[-1]))
    assert np.array_equal(np.concatenate(outputs), oracle.run(np.concatenate(inputs))[0])


def test_closing_takes_a_session_out_of_the_store(serve: Serve, valkey: Valkey) -> None:
    """A session that was closed at one server is not found at the other one."""
    one, two = serve("--store", valkey.url), serve("--store", valkey.url)
    with Client(one.target) as client, client.session("tiny", id="a") as session:
        session.step(x(1, 0))
    with Client(two.target) as client:
        with pytest.raises(LstmServeError) as absent:
            client.attach("a").step(x(1, 1))
        assert absent.value.reason in ("SESSION_NOT_FOUND", "SESSION_LOST")


def test_an_outage_fails_closed_and_heals(serve: Serve, oracle: Oracle, valkey: Valkey) -> None:
    """While the store is away no step is acknowledged, and later the session goes on exactly."""
    serving = serve("--store", valkey.url, "--store-timeout-s", "0.3")
    with Client(serving.target, timeout_s=5, retry_s_max=0) as client:
        session = client.session("tiny", id="a", keep=True)
        first = session.step(x(2, 0))
        valkey.signal(signal.SIGSTOP)
        for _ in range(3):
            with pytest.raises(LstmServeError) as refused:
                session.step(x(2, 1))
            assert refused.value.reason in ("STORE_TIMEOUT", "STORE_UNAVAILABLE")
        valkey.signal(signal.SIGCONT)
        applied = session.info().step
        assert serving.metric("lstm_store_errors_total") >= 3
    # An unnumbered step whose store reply was lost may have counted: the session shows it.
    assert 1 <= applied <= 4
    y, _, _ = oracle.run(np.concatenate([x(2, 0), *[x(2, 1)] * (applied - 1), x(2, 2)]))
    assert np.array_equal(first, y[:2])
    assert np.array_equal(step(serving, "a", x(2, 2)), y[-2:])
