"""Runs a headless Chromium for tests, over a pipe (DevTools protocol), and ends it by its pid."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Self

from monitoring import binary
from serving import WAIT_S_MAX

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
)
POLL_S = 0.1


class Chromium:
    """One page. `problems` are the complaints of its console, its policy and its scripts.

    `requests` are the addresses of everything that it asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        # The browser reads descriptor 3 and writes descriptor 4: a shell puts our pipes there.
        command = [binary("chromium-headless-shell", "chromium", "google-chrome"), *FLAGS]
        command += [f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null', "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._out, self._in = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._buffer = b""
        self._count = 0
        self._session: dict[str, str] = {}
        (target,) = [
            each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page"
        ]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a command; it notes the events that come before."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": parameters, **self._session}
        os.write(self._out, json.dumps(command).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == self._count:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def open(
        self, url: str, *, width: int = 1280, height: int = 900, is_dark: bool = False
    ) -> None:
        """Opens the URL, in a window of that size."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=url)
        self.until(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str) -> Any:
        """The value of an expression once it is true; the page has WAIT_S_MAX for that."""
        end_s = time.monotonic() + WAIT_S_MAX
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end_s, f"never: {expression}; {self.problems}"
            threading.Event().wait(POLL_S)
        return value

    def screenshot(self, path: Path) -> None:
        """Writes the whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], WAIT_S_MAX)
            part = os.read(self._in, 1 << 16) if ready else b""
            assert part, f"Chromium is gone or silent: exit code {self._process.poll()}"
            self._buffer += part
        content, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(content)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(parameters["exceptionDetails"]["exception"]["description"])
        elif method == "Log.entryAdded":
            self.problems.append(parameters["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.problems.append(str(parameters["args"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
