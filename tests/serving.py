"""Real server processes for tests: starts `lstmserve serve` on free ports, and ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-c", "from lstmserve.cli import main; main()", "serve"]
FREE_PORTS = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
WAIT_S_MAX = 60

Serve = Callable[..., "Serving"]


def environment(**variables: str) -> dict[str, str]:
    """This process' environment, with the checkout importable and no settings but those given."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LSTMSERVE_")}
    return {**kept, "PYTHONPATH": f"{ROOT / 'service'}{os.pathsep}{ROOT / 'export'}", **variables}


def run_serve(
    *arguments: str | Path, command: list[str] = COMMAND, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a server that is expected to end by itself."""
    return subprocess.run(
        [*command, *arguments],
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT_S_MAX,
        check=False,
    )


class Serving:
    """A server process that is ready, or waits for its store.

    `target` is for a gRPC channel; `log` grows.
    """

    def __init__(self, arguments: tuple[str | Path, ...], command: list[str], **variables: str):
        self.process = subprocess.Popen(
            [*command, *FREE_PORTS, *arguments],
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[dict[str, Any]] = []
        self.noise: list[str] = []
        self._lines = threading.Condition()  # notified of each line of the log
        self.ready = self._read_until_ready()
        self.target: str = self.ready["listen"]
        self.metrics_url = f"http://{self.ready['metrics']}"
        # A thread reads on, or a full pipe would stop the server.
        self._reader = threading.Thread(target=self._read_on, daemon=True)
        self._reader.start()

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an HTTP GET."""
        try:
            with urllib.request.urlopen(self.metrics_url + path, timeout=WAIT_S_MAX) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum over the samples of that name that have these labels; 0 without samples."""
        return self.metrics(name, **labels)[0]

    def metrics(self, *names: str, **labels: str) -> list[float]:
        """The sums of several names, in one scrape."""
        _, body = self.get("/metrics")
        sums = dict.fromkeys(names, 0.0)
        for family in text_string_to_metric_families(body):
            for sample in family.samples:
                if sample.name in sums and labels.items() <= sample.labels.items():
                    sums[sample.name] += sample.value
        return list(sums.values())

    def metrics_by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The sums over the samples that have these labels, by the value of another label."""
        _, body = self.get("/metrics")
        sums: dict[str, float] = defaultdict(float)
        for family in text_string_to_metric_families(body):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    sums[sample.labels[label]] += sample.value
        return {value: total for value, total in sums.items() if total}

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code, once the server has ended and its whole log has been read."""
        code = self.process.wait(timeout=WAIT_S_MAX)
        self._reader.join(timeout=WAIT_S_MAX)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def stop(self) -> int:
        """Sends SIGTERM, and returns the exit code."""
        self.signal()
        return self.wait()

    def kill(self) -> None:
        """Sends SIGKILL if the server still runs."""
        if self.process.returncode is None:
            self.process.kill()
            self.wait()

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log's lines of one event, which have been read so far."""
        return [line for line in self.log if line["event"] == event]

    def wait_for(self, event: str) -> list[dict[str, Any]]:
        """The log's lines of one event, once there is one: a reply may be ahead of its line."""
        with self._lines:
            self._lines.wait_for(lambda: self.events(event), WAIT_S_MAX)
        return self.events(event)

    def _read_until_ready(self) -> dict[str, Any]:
        while (line := self._read_line()) is not None:
            if line.get("event") in ("ready", "waiting for the store"):
                return line
        code = self.process.wait(timeout=WAIT_S_MAX)
        raise AssertionError(f"exit {code}, never ready: {self.log} {self.noise}")

    def _read_on(self) -> None:
        while self._read_line() is not None:
            pass

    def _read_line(self) -> dict[str, Any] | None:
        assert self.process.stderr is not None
        text = self.process.stderr.readline()
        if not text:
            return None
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            self.noise.append(text)
            return {}
        with self._lines:
            self.log.append(line)
            self._lines.notify_all()
        return self.log[-1]


@pytest.fixture
def serve(models: Path) -> Iterator[Serve]:
    """Starts servers on the tiny model with the flags of a test, and kills those that still run."""
    started: list[Serving] = []

    def start(
        *arguments: str | Path,
        models: Path = models,
        command: list[str] = COMMAND,
        **variables: str,
    ) -> Serving:
        started.append(Serving(("--models", models, *arguments), command, **variables))
        return started[-1]

    yield start
    for serving in started:
        serving.kill()


@pytest.fixture(scope="session")
def server(models: Path) -> Iterator[Serving]:
    """One server on the tiny model, shared by tests that leave it unchanged."""
    serving = Serving(("--models", models), COMMAND)
    yield serving
    assert serving.stop() == 0
