"""Runs a server process for the length of a demo. It opens no session and sends no step."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lstmserve.client import LstmServeError

LSTMSERVE = Path(sys.executable).with_name("lstmserve")  # the command of this environment
LAST_LINES = 20
EXIT_S_MAX = 30.0


class ServerDied(Exception):
    """The server ended before the demo did; the message has its last log lines."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where a running server listens: `target` for a Client, `metrics_url` for Prometheus."""

    target: str
    metrics_url: str
    process_id: int


@contextmanager
def serve(models: Path) -> Iterator[Server]:
    """Runs `lstmserve serve` on free loopback ports.

    The server is ready on entry, and drained and gone on exit. Raises ServerDied if it died, also
    in place of a client's error inside the block.
    """
    command = [LSTMSERVE, "serve", "--models", models, "--log", "json"]
    ports = ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    lines: deque[str] = deque(maxlen=LAST_LINES)
    with subprocess.Popen([*command, *ports], stderr=subprocess.PIPE, text=True) as process:
        reader = threading.Thread(target=lines.extend, args=(process.stderr or (),))
        try:
            server = _wait_until_ready(process, lines)
            reader.start()  # a full pipe would stop the server
            yield server
        except (LstmServeError, ServerDied) as error:
            raise _explain(process, lines, error) from error
        finally:
            process.terminate()
            process.wait(EXIT_S_MAX)
            if reader.ident:
                reader.join()


def _wait_until_ready(process: subprocess.Popen[str], lines: deque[str]) -> Server:
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("event") == "ready":
            url = f"http://{event['metrics']}/metrics"
            return Server(event["listen"], url, process.pid)
    raise ServerDied("it never became ready")


def _explain(process: subprocess.Popen[str], lines: deque[str], error: Exception) -> Exception:
    """`error` itself if the server lives, else ServerDied with its last log lines."""
    try:
        code = process.wait(1.0)
    except subprocess.TimeoutExpired:
        return error
    words = "".join(lines) or "(it logged nothing)"
    return ServerDied(f"the server ended with exit code {code}; its last log lines:\n{words}")
