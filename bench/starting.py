"""Measure 9: from the command to Ready, and what an idle server weighs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.machine import rss_bytes
from bench.rounds import Effort, served
from bench.rows import Goal, Row
from lstmserve.spec import LstmSpec


def starting(spec: LstmSpec, name: str, effort: Effort) -> list[Row]:
    """Measures a server on one core."""
    seconds, megabytes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(effort.rounds + 1):
            start_s = time.perf_counter()
            with served(Path(folder), spec) as serving:
                seconds.append(time.perf_counter() - start_s)
                megabytes.append(rss_bytes(serving.process.pid) / 1e6)
    return [
        Row(9, f"start to Ready, {name}", seconds[1:], Goal(1.5, is_least=False), " s"),
        Row(
            9, f"resident memory when idle, {name}", megabytes[1:], Goal(150, is_least=False), " MB"
        ),
    ]
