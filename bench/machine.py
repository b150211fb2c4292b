"""What the benchmark asks of this machine: cores, what a process has used, a description."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
CPU_CLOCK = 2  # of a process, in nanoseconds: CPUCLOCK_SCHED of clock_getcpuclockid(3)
PACKAGES = ("grpcio", "onnxruntime", "numpy", "protobuf", "uvloop", "torch")
SERVER_CPU, LOAD_CPU = sorted(os.sched_getaffinity(0))[0], sorted(os.sched_getaffinity(0))[-1]


def pin_load() -> None:
    """Keeps this process, the load, on its own core."""
    os.sched_setaffinity(0, {LOAD_CPU})


def on_core(command: list[str], cpu: int = SERVER_CPU) -> list[str]:
    """The command, kept on a core, whichever core its parent is on."""
    return ["taskset", "--cpu-list", str(cpu), *command]


def cpu_s(pid: int) -> float:
    """CPU time so far of a process and its live children, all threads, user and system."""
    used_s = time.clock_gettime(~pid << 3 | CPU_CLOCK)
    for task in Path(f"/proc/{pid}/task").iterdir():
        used_s += sum(map(cpu_s, map(int, (task / "children").read_text().split())))
    return used_s


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def description() -> str:
    """The machine and the versions, in one line."""
    model = next(
        (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")),
        platform.machine(),
    )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    cores = os.cpu_count()
    return f"{model}, {cores} cores, Python {platform.python_version()}, {versions}"


def commit() -> str:
    """The commit that is checked out, with a + if files were changed."""
    changes = _git("status", "--porcelain", "--", ".", ":!bench/RESULTS.md", ":!bench/img")
    return _git("rev-parse", "--short", "HEAD") + ("+" if changes else "")


def _cpuinfo() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
