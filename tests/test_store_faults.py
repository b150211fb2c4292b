"""Records that must not be served: damage, other weights, versions that are gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from lstmserve import Client
from lstmserve.errors import LstmServeError
from modelmaking import TINY, make_model, random_input
from serving import Serve, Serving
from storing import Valkey, later

KEY = "s::" + b"a".hex()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey of this test's own."""
    with Valkey(tmp_path) as server:
        yield server


@pytest.fixture
def raw(valkey: Valkey) -> Iterator[Any]:
    """A plain connection to it."""
    with redis.Redis.from_url(valkey.url) as connection:
        yield connection


def leave_a_session(serving: Serving) -> Any:
    """Leaves session "a" of tiny after three steps, and ends its server. Returns the last y."""
    with Client(serving.target) as client:
        session = client.session("tiny", id="a", keep=True)
        y = session.step(random_input(TINY, (3,), 1))
    assert serving.stop() == 0
    return y


def reason(serving: Serving) -> str:
    """Why a step of session "a" is refused."""
    with Client(serving.target) as client, pytest.raises(LstmServeError) as refused:
        client.attach("a").step(random_input(TINY, (1,), 2))
    return refused.value.reason


def test_a_damaged_record_is_put_aside(serve: Serve, valkey: Valkey, raw: Any) -> None:
    """One flipped bit gives DATA_LOSS once, keeps the record for the operator, and frees the id."""
    leave_a_session(serve("--store", valkey.url))
    content = bytearray(raw.get(KEY))
    content[-3] ^= 0x10
    raw.set(KEY, bytes(content), px=60_000)
    serving = serve("--store", valkey.url)
    assert reason(serving) == "STATE_CORRUPT"
    assert serving.wait_for("damaged record put aside")
    (aside,) = raw.keys(KEY + ":corrupt:*")
    assert raw.get(aside) == bytes(content)
    assert raw.ttl(aside) == -1
    assert reason(serving) in ("SESSION_NOT_FOUND", "SESSION_LOST")
    with Client(serving.target) as client:
        assert client.session("tiny", id="a").step_count == 0


@pytest.mark.parametrize("number", [3, 999])
def test_a_later_release_s_record_is_left(
    number: int, serve: Serve, valkey: Valkey, raw: Any
) -> None:
    """A record of an unknown format is UNAVAILABLE with advice, stays unchanged under its key, and
    the release that wrote it goes on with it."""
    leave_a_session(serve("--store", valkey.url))
    content = raw.get(KEY)
    newer = later(content, number)
    raw.set(KEY, newer, px=600_000)
    serving = serve("--store", valkey.url)
    with Client(serving.target, retry_s_max=0) as client:
        for call in (
            lambda: client.attach("a"),
            lambda: client.session("tiny", id="a"),
            lambda: client.session("tiny", id="a", if_exists="restart"),
        ):
            with pytest.raises(LstmServeError) as refused:
                call()
            assert refused.value.reason == "STORE_UNAVAILABLE"
            assert "a later release stored this session" in str(refused.value)
            assert "go on at a server of that release" in str(refused.value)
    assert serving.stop() == 0
    assert not serving.events("damaged record put aside")
    assert raw.keys("*") == [KEY.encode()]
    assert raw.get(KEY) == newer
    raw.set(KEY, content, px=600_000)
    with Client(serve("--store", valkey.url).target) as client:
        assert client.attach("a").step_count == 1


def test_other_weights_are_not_given_an_old_state(
    serve: Serve, valkey: Valkey, raw: Any, tmp_path: Path
) -> None:
    """The same name and version with other weights is MODEL_MISMATCH, and the record stays."""
    folder = tmp_path / "other"
    make_model(folder, TINY, seed=99)
    leave_a_session(serve("--store", valkey.url))
    before = raw.get(KEY)
    assert reason(serve("--store", valkey.url, models=folder)) == "MODEL_MISMATCH"
    assert raw.get(KEY) == before


def test_a_version_that_is_not_served_any_more(
    serve: Serve, valkey: Valkey, raw: Any, tmp_path: Path
) -> None:
    """A missing version is MODEL_RETIRED, never replaced by another one's weights, and goes on when
    it is served again."""
    newer, both = tmp_path / "newer", tmp_path / "both"
    make_model(newer, TINY, seed=5, version=2)
    for version, seed in ((1, 0), (2, 5)):
        make_model(both, TINY, seed=seed, version=version)
    leave_a_session(serve("--store", valkey.url))
    assert reason(serve("--store", valkey.url, models=newer)) == "MODEL_RETIRED"
    with Client(serve("--store", valkey.url, models=both).target) as client:
        session = client.attach("a")
        assert (session.version, session.step_count) == (1, 1)
        assert np.isfinite(session.step(random_input(TINY, (1,), 2))).all()


def test_a_full_store_refuses_and_harms_nothing(serve: Serve, valkey: Valkey, raw: Any) -> None:
    """At maxmemory opening and stepping are STORE_FULL, and stored records stay whole."""
    serving = serve("--store", valkey.url)
    with Client(serving.target) as client:
        kept = client.session("tiny", keep=True)
        kept.step(random_input(TINY, (1,), 0))
        raw.config_set("maxmemory", 1)
        with pytest.raises(LstmServeError) as refused:
            client.session("tiny")
        assert refused.value.reason == "STORE_FULL"
        with pytest.raises(LstmServeError) as refused:
            kept.step(random_input(TINY, (1,), 1))
        assert refused.value.reason == "STORE_FULL"
        raw.config_set("maxmemory", 0)
        kept.step(random_input(TINY, (1,), 1))
        assert kept.info().step == 2
