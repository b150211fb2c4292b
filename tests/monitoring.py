"""The Prometheus that tests run: Debian's, with the rules of deploy/ and a faster clock."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Self

import pytest

from serving import ROOT, WAIT_S_MAX

FOLDER = ROOT / "deploy/prometheus"
BINARIES = ROOT / ".venv/prometheus"
INTERVAL = "500ms"


def binary(*names: str) -> str:
    """The path of the first of these programs that exists; without one the test is skipped.

    In CI the test fails instead.
    """
    path = os.pathsep.join((str(BINARIES), os.environ["PATH"]))
    for name in names:
        if found := shutil.which(name, path=path):
            return found
    reason = f"no {names[0]} here: `sh tests/debian.sh` gets it where there is apt-get"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs promtool in deploy/prometheus."""
    return subprocess.run(
        [binary("promtool"), *arguments],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=WAIT_S_MAX,
        check=False,
    )


class Prometheus:
    """A server that scrapes `targets` with the rules of deploy/, and is ended by its pid."""

    def __init__(self, folder: Path, *targets: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        shutil.copytree(FOLDER / "rules", folder / "rules")
        for rules in (folder / "rules").iterdir():
            rules.write_text(re.sub(r"interval: \w+", f"interval: {INTERVAL}", rules.read_text()))
        (folder / "prometheus.yml").write_text(
            json.dumps(  # which is YAML too
                {
                    "global": {
                        "scrape_interval": INTERVAL,
                        "scrape_timeout": INTERVAL,
                        "evaluation_interval": INTERVAL,
                    },
                    "rule_files": ["rules/*.yml"],
                    "scrape_configs": [
                        {"job_name": "lstmserve", "static_configs": [{"targets": targets}]}
                    ],
                }
            )
        )
        self._process = subprocess.Popen(
            [
                binary("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr
        lines = []
        for line in self._process.stderr:
            lines.append(line)
            if "Server is ready to receive web requests" in line:
                return
        raise AssertionError("".join(lines))

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query."""
        return list(self.get("query", query=expression)["result"])

    def get(self, path: str, **parameters: str) -> Any:
        """The data of /api/v1/PATH."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=WAIT_S_MAX) as response:
            return json.load(response)["data"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
