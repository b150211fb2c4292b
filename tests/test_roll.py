"""deploy/roll.sh with a stand-in for the docker command; docs/OPERATIONS.md has a real run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import dockerlike
from composing import compose
from serving import ROOT

SCRIPT = ROOT / "deploy" / "roll.sh"


@dataclass(frozen=True)
class Rolled:
    """What a run of the script left and printed."""

    code: int
    out: str
    error: str
    state: dockerlike.State

    def stopped(self) -> list[str]:
        """The ids of the servers that were stopped, in order."""
        return [key for kind, key, _ in self.state["events"] if kind == "stop"]

    def images(self) -> list[str]:
        """The images of the servers that exist now."""
        return [server["image"] for server in self.state["servers"].values()]


def roll(folder: Path, state: dockerlike.State, **variables: str) -> Rolled:
    """Runs the script to its end on those servers."""
    for name, text in {
        "docker": f'exec "{sys.executable}" -IS "{dockerlike.__file__}" "$@"',
        "sleep": "exit 0",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    path = folder / "state.json"
    path.write_text(json.dumps(state))
    environment = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "DOCKERLIKE": str(path),
        "LSTMSERVE_IMAGE": "new",
        "ROLL_WAIT_S": "5",
        **variables,
    }
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, cwd=folder)
    return Rolled(done.returncode, done.stdout, done.stderr, json.loads(path.read_text()))


def test_a_server_leaves_only_when_all_others_are_called(tmp_path: Path) -> None:
    """Three servers become three of the new image, and at least two are called at any time."""
    rolled = roll(tmp_path, dockerlike.new_state(3))
    assert (rolled.code, rolled.error) == (0, "")
    assert rolled.images() == ["new"] * 3
    kinds = [kind for kind, _, _ in rolled.state["events"]]
    assert kinds == ["stop", "up"] * 3
    assert [len(called) for _, _, called in rolled.state["events"]] == [3, 2] * 3
    assert rolled.stopped() == ["id-1", "id-2", "id-3"]
    assert "done: 3 servers of new" in rolled.out


@pytest.mark.parametrize("health", ["unhealthy", "restarting"])
def test_it_stops_at_a_new_server_that_is_not_healthy(tmp_path: Path, health: str) -> None:
    """The other servers stay unchanged, and the last line says how to go back."""
    rolled = roll(tmp_path, dockerlike.new_state(3, becomes={"new": health}))
    assert rolled.code == 1
    assert rolled.images() == ["old", "old", "new"]
    assert re.search(rf"name-id-4 \(new\) is {health} after 5 s", rolled.error)
    assert "Back: LSTMSERVE_IMAGE=old deploy/roll.sh" in rolled.error


def test_the_way_back_replaces_the_broken_one_first(tmp_path: Path) -> None:
    """While one of three is broken, no healthy one is stopped."""
    state = dockerlike.new_state(3)
    state["servers"]["id-3"] |= {"image": "new", "health": "restarting"}
    rolled = roll(tmp_path, state, LSTMSERVE_IMAGE="old")
    assert rolled.code == 0
    assert rolled.stopped() == ["id-3", "id-1", "id-2"]
    assert [len(called) for _, _, called in rolled.state["events"]] == [2, 2, 3, 2, 3, 2]


def test_it_stops_when_envoy_does_not_call_the_new_server(tmp_path: Path) -> None:
    """A healthy server is not enough: without Envoy's calls to it the next one must not leave."""
    rolled = roll(tmp_path, dockerlike.new_state(3, envoy_looks=100))
    assert rolled.code == 1
    assert rolled.stopped() == ["id-1"]
    assert "Envoy does not call all healthy servers" in rolled.error


def test_it_stops_after_a_server_that_could_not_store_its_sessions(tmp_path: Path) -> None:
    """A new server takes its place, the end of its log is shown, and the others are not stopped."""
    state = dockerlike.new_state(3)
    state["servers"]["id-1"]["exit"] = 1
    rolled = roll(tmp_path, state)
    assert rolled.code == 1
    assert rolled.images() == ["old", "old", "new"]
    assert "the end of id-1" in rolled.out
    assert "name-id-1 ended with 1, not 0" in rolled.error


@pytest.mark.parametrize(
    ("count", "changes", "reason"),
    [
        (3, {"images": ["old"]}, "there is no image new; nothing was changed"),
        (1, {}, "needs two servers of docker-compose.scale.yml or more, found 1"),
        (0, {}, "needs two servers of docker-compose.scale.yml or more, found 0"),
    ],
)
def test_it_changes_nothing_when_it_cannot_begin(
    tmp_path: Path, count: int, changes: dict[str, Any], reason: str
) -> None:
    """Without the image, or without a second server, it prints one line and touches no server."""
    rolled = roll(tmp_path, dockerlike.new_state(count, **changes))
    assert rolled.code == 1
    assert rolled.state["events"] == []
    assert rolled.error.splitlines()[-1].startswith(f"roll: {reason}")


def test_it_waits_for_servers_that_still_start(tmp_path: Path) -> None:
    """Right after `up` it takes no starting server for a broken one."""
    state = dockerlike.new_state(2)
    for server in state["servers"].values():
        server |= {"health": "starting", "looks": 2, "unseen": 2}
    rolled = roll(tmp_path, state)
    assert rolled.code == 0
    assert [len(called) for _, _, called in rolled.state["events"]] == [2, 1] * 2


def test_what_the_script_names_exists() -> None:
    """Services, Envoy's admin port, its cluster's name and the image's variable are those of
    compose."""
    text = SCRIPT.read_text()
    services = compose("scale")["services"]
    assert {"lstmserve", "envoy"} <= services.keys()
    envoy = (ROOT / "deploy" / "envoy" / "envoy.yaml").read_text()
    (port,) = re.findall(r"/dev/tcp/127\.0\.0\.1/(\d+)", text)
    assert f"address: 127.0.0.1, port_value: {port}" in envoy
    (cluster,) = re.findall(r"cluster\\\.(\w+)\\\.membership_healthy", text)
    assert f"cluster_name: {cluster}\n" in envoy
    raw = (ROOT / "docker-compose.yml").read_text()
    assert "image: ${LSTMSERVE_IMAGE:-lstmserve:" in raw
