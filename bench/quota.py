"""Limits the CPU time of a process by a control group, of version 2 or 1. Needs root."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

PERIOD_US = 10_000  # short, so that a server is not away for long at a time

GROUPS = Path("/sys/fs/cgroup")


class NoQuota(RuntimeError):
    """This machine has no control group for CPU time that this process may write."""


@contextlib.contextmanager
def quota(pid: int, share: float) -> Iterator[None]:
    """Limits the process to that share of one core (cpu.max). Raises NoQuota."""
    name = f"lstmserve-bench-{pid}"
    us = round(share * PERIOD_US)
    if (GROUPS / "cpu").is_dir():
        folder = GROUPS / "cpu" / name
        settings = {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": str(us)}
    else:
        folder = GROUPS / name
        settings = {"cpu.max": f"{us} {PERIOD_US}"}
    try:
        folder.mkdir()
        for file, value in settings.items():
            (folder / file).write_text(value)
        (folder / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        raise NoQuota(str(error)) from error
    try:
        yield
    finally:
        (folder.parent / "cgroup.procs").write_text(str(pid))
        os.rmdir(folder)
