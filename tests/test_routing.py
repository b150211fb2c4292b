"""Envoy, with the committed configuration, in front of real servers that share a Valkey."""

from __future__ import annotations

import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from composing import compose
from lstmserve import Client
from lstmserve.client import LstmServeError
from routing import Envoy, envoy_of
from soak.fleet import Fleet, fleet_of
from soak.routed import Move, homes, is_asked, load_on, watched
from storing import Valkey

SERVERS, SESSIONS = 3, 36
DRAIN_DELAY_S = "2"  # Envoy asks once a second, and then believes NOT_SERVING


@contextmanager
def behind_envoy(folder: Path, *flags: str) -> Iterator[tuple[Fleet, Envoy]]:
    """Three servers, their store and Envoy; a server that is started again keeps its address."""
    with (
        Valkey(folder) as valkey,
        fleet_of(folder, SERVERS, "--store", valkey.url, *flags, stays=True) as fleet,
        envoy_of([pod.serving.target for pod in fleet.pods]) as envoy,
    ):
        yield fleet, envoy


def loads(fleet: Fleet) -> float:
    """How often a running server loaded a session from the store."""
    alive = [pod.serving for pod in fleet.pods if pod.serving.process.poll() is None]
    return sum(each.metric("lstm_sessions_opened_total", source="load") for each in alive)


def test_calls_go_where_their_session_is(tmp_path: Path) -> None:
    """Sessions are spread over the servers, stay there, and keep to their group, by any
    connection."""
    with behind_envoy(tmp_path) as (fleet, envoy):
        names = [f"g{i}:{j}" for i in range(20) for j in range(3)]
        x = np.ones(fleet.spec.input_size, np.float32)
        y: dict[str, list[bytes]] = {name: [] for name in names}
        for _ in range(3):
            with Client(envoy.target) as client:
                for name in names:
                    session = client.session("soak", id=name, if_exists="resume", keep=True)
                    y[name].append(session.step(x).tobytes())
        home = homes(fleet)
        assert home.keys() == set(names)
        assert len({home[f"g{i}:0"] for i in range(20)}) == SERVERS
        for name in names:
            assert home[name] == home[name.partition(":")[0] + ":0"]
        assert len(set(map(tuple, y.values()))) == 1
        assert loads(fleet) == 0


@pytest.mark.parametrize(("mode", "replay_steps_max"), [("through", 0), ("behind", 100_000)])
async def test_a_killed_server_moves_its_own_sessions_alone(
    mode: str, replay_steps_max: int, tmp_path: Path
) -> None:
    """After kill -9 under load the other sessions stay, no acknowledged step is lost, and the bits
    are right."""
    # In `behind` mode the client sends again what the dead server had not stored.
    with behind_envoy(tmp_path, "--store-mode", mode) as (fleet, envoy):
        async with (
            watched(fleet, envoy) as restless,
            load_on(fleet, envoy, sessions=SESSIONS, replay_steps_max=replay_steps_max) as load,
        ):
            await load.steps(3)
            before = homes(fleet)
            dead = fleet.pods[0]
            assert (await dead.end(signal.SIGKILL)) == -signal.SIGKILL
            await load.until(lambda: not is_asked(envoy, dead))
            await load.steps(3)
            after = homes(fleet)
        assert after.keys() == before.keys()
        assert Move(before, after, restless - {dead.name}).needless == 0
        moved = [name for name, home in before.items() if home == dead.name]
        assert moved
        assert all(after[name] != dead.name for name in moved)
        assert loads(fleet) >= len(moved)


async def test_a_rolling_restart_fails_no_call(tmp_path: Path) -> None:
    """SIGTERM of one server after another fails no call, even without repeats by the client."""
    with behind_envoy(tmp_path, "--drain-delay-s", DRAIN_DELAY_S) as (fleet, envoy):
        async with load_on(fleet, envoy, sessions=SESSIONS, retry_s_max=0) as load:
            for pod in fleet.pods:
                await load.steps(1)
                assert (await pod.end(signal.SIGTERM)) == 0
                await pod.start()
                await load.until(lambda pod=pod: is_asked(envoy, pod))
            await load.steps(3)
        assert set(homes(fleet).values()) == {pod.name for pod in fleet.pods}


def test_nobody_to_ask(tmp_path: Path) -> None:
    """If no server serves, calls are UNAVAILABLE, because Envoy asks none."""
    with (
        envoy_of(["127.0.0.1:9"]) as envoy,
        Client(envoy.target, retry_s_max=0) as client,
        pytest.raises(LstmServeError) as refused,
    ):
        client.models()
    assert refused.value.code.name == "UNAVAILABLE"
    assert "no healthy upstream" in str(refused.value)


def test_how_envoy_is_watched(tmp_path: Path) -> None:
    """The healthcheck of docker compose passes, and Prometheus reaches the metrics and nothing
    else."""
    with envoy_of(["127.0.0.1:9"]) as envoy:
        test = compose("scale")["services"]["envoy"]["healthcheck"]["test"]
        port = envoy.admin.rpartition(":")[2]
        command = [each.replace("9901", port) for each in test[1:]]
        subprocess.run(command, check=True, timeout=10)
        with urllib.request.urlopen(envoy.metrics_url, timeout=10) as reply:
            assert "envoy_cluster_membership_total" in reply.read().decode()
        with urllib.request.urlopen(envoy.metrics_url.replace("metrics", "ready")) as reply:
            assert reply.read() == b"LIVE\n"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(envoy.metrics_url.replace("metrics", "clusters"), timeout=10)
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(command, check=True, timeout=10, capture_output=True)
