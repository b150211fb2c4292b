"""Beside the goals: compares this folder's load generator with h2load, if that is installed.

h2load has one body for all its requests and cannot number steps; both can drive the echo.
"""

from __future__ import annotations

import itertools
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

from bench import echo
from bench.floors import floor
from bench.http2 import Connection
from bench.load import Load
from bench.machine import LOAD_CPU, cpu_s, on_core
from bench.rounds import Effort
from bench.rows import Row

CONNECTIONS, REPLY_BYTES, MESSAGE = 8, 56, bytes(130)
REQUESTS_PER_S = 4000  # about; it sets how long a round of h2load lasts


def h2load(effort: Effort) -> list[Row]:
    """The echo's CPU time per answer, driven by h2load / by ours."""
    if shutil.which("h2load") is None:
        return []
    with floor("bench.echo", str(REPLY_BYTES)) as served, tempfile.TemporaryDirectory() as folder:
        address, path = ("127.0.0.1", int(served.line)), f"/{echo.SERVICE}/{echo.UNARY}"
        body = Path(folder) / "body"
        body.write_bytes(struct.pack(">BI", 0, len(MESSAGE)) + MESSAGE)
        messages = itertools.repeat(MESSAGE)
        ours = Load(
            [Connection(address, path, messages, streamed=False) for _ in range(CONNECTIONS)]
        )
        ours.drive(0.5)
        values = []
        for _ in range(effort.rounds):
            sample = ours.measure(effort.seconds, lambda: cpu_s(served.pid))
            theirs = _h2load_us(served.pid, address, path, body, effort.seconds)
            values.append(theirs * sample.per_cpu_s / 1e6)
        ours.close()
    name = "the echo's CPU time per answer, under h2load / under the load of this folder"
    return [Row(0, name, values, None, "", f"unary, {CONNECTIONS} connections")]


def _h2load_us(pid: int, address: tuple[str, int], path: str, body: Path, seconds: float) -> float:
    count = round(REQUESTS_PER_S * seconds)
    command = ["h2load", "-n", str(count), "-c", str(CONNECTIONS), "-m", "1", "-d", str(body)]
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    url = f"http://{address[0]}:{address[1]}{path}"
    before_s = cpu_s(pid)
    done = subprocess.run(
        on_core([*command, *headers, url], LOAD_CPU), capture_output=True, text=True, check=True
    )
    assert f"{count} succeeded, 0 failed, 0 errored" in done.stdout, done.stdout
    return 1e6 * (cpu_s(pid) - before_s) / count
