"""An import in a process of its own: bombs, crashes, limits and nonsense end in one line each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pytest

import hostile_onnx
from hostile_onnx import BOMBS, STATE, stream
from lstmserve.manifest import NEW, OLD, read_model
from lstmserve_export.onnx_file import child
from lstmserve_export.onnx_file.child import (
    ANSWER_BYTES_MAX,
    MEMORY_BASE,
    MEMORY_FACTOR,
    SECONDS,
    Limits,
    run_child,
)
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.refusal import Refused

LIMITS = Limits(memory=1 << 29, seconds=60)
ENDS_BY = {
    "a constant of 4 TB": r"needs more than 0.5 GiB of memory at the stage .*: .* --memory-limit",
    "an Expand to 4 TB": "needs more than 0.5 GiB of memory at the stage",
    "a Tile to 4 TB in a run": "Tile output tensor would require more than",
    "a Range of 8 TB": "needs more than 0.5 GiB of memory at the stage",
    "a Loop without end": r"did not end within 60 s at the stage .* --time-limit",
    "a Loop that keeps all": "memory|did not end|ended the process of the import",
    "a division that ends the process": "ended the process of the import by SIGFPE at the stage",
    "an LSTM with a batch of 0": "ended the process of the import by SIGABRT at the stage",
    "an LSTM with wrong weights": r"Input W must have shape \{1,12,4\}",
    "a constant that claims 40 GB": "has constants of 40,000,000,000 bytes",
    "a constant that claims 4 MB": "'big': cannot reshape",
    "If in If": "nests graphs in each other too deeply",
    "functions that double": "has 1,099,511,627,778 nodes, at most 100,000 are served",
    "a function that calls itself": "a function F that calls itself",
}
# A program that answers in place of the import, once it has read its job.
ANSWERS = """
import json, os, signal, subprocess, sys
sys.stdin.read()
def say(**said):
    print(json.dumps(said), flush=True)
"""


@pytest.fixture
def job(tmp_path: Path) -> Request:
    """Of a stream that is well."""
    file = tmp_path / "theirs.onnx"
    file.write_bytes(stream().SerializeToString())
    return Request(file, "theirs", states=(STATE,), models=tmp_path / "models", version=7)


def command(code: str) -> tuple[str, ...]:
    """A child that runs this code."""
    return sys.executable, "-c", ANSWERS + code


def refusal(job: Request, limits: Limits = LIMITS, **arguments: Any) -> str:
    """The one line, after which the models folder has nothing."""
    with pytest.raises(Refused) as refused:
        run_child(job, limits, **arguments)
    assert "\n" not in str(refused.value)
    assert not job.models.exists() or not list(job.models.glob("*/*"))
    return str(refused.value)


# The import itself --------------------------------------------------------------------------------


def test_a_good_file_is_imported(job: Request, capfd: pytest.CaptureFixture[str]) -> None:
    """The parent has what the child wrote, and hears of each stage; a dry run writes nothing."""
    stages: list[str] = []
    dry = run_child(replace(job, dry_run=True), progress=stages.append)
    assert not job.models.exists()
    assert stages[0] == "read theirs.onnx"
    exported = run_child(job)
    assert exported.folder == dry.folder == job.models / "theirs" / "7"
    assert exported.manifest == read_model(job.models, "theirs", 7).manifest
    assert sum(each.stat().st_size for each in exported.folder.iterdir()) > exported.bytes
    assert exported.bytes > 1000
    assert capfd.readouterr() == ("", "")


@dataclass
class Clock:
    """Of the parent: once the file has been read, the last second begins."""

    ahead: float = 0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def hear(self, stage: str) -> None:
        if not stage.startswith("read"):
            self.ahead = LIMITS.seconds - 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The parent's clock."""
    clock = Clock()
    monkeypatch.setattr(child, "time", clock)
    return clock


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_in_one_line(
    job: Request, capfd: pytest.CaptureFixture[str], clock: Clock, name: str
) -> None:
    """Whatever it does to the child, the parent goes on, and the terminal has no other line."""
    job.file.write_bytes(hostile_onnx.content(BOMBS[name]()))
    progress = clock.hear if name == "a Loop without end" else len
    assert re.search(ENDS_BY[name], refusal(job, progress=progress))
    assert capfd.readouterr() == ("", "")


def test_what_libraries_print_is_no_answer(job: Request, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither the parent nor the terminal gets it."""
    code = """
import os
from lstmserve_export.onnx_file import child, importer
run = importer.import_onnx
def noisy(*arguments):
    os.write(1, b"loaded\\n")
    return run(*arguments)
importer.import_onnx = noisy
child.main()
"""
    exported = run_child(job, LIMITS, command=(sys.executable, "-c", code))
    assert exported.folder.is_dir()
    assert capfd.readouterr() == ("", "")


def test_too_little_memory_is_said(job: Request) -> None:
    """Also where not even the libraries have room."""
    for memory in (120 << 20, 160 << 20):
        limits = replace(LIMITS, memory=memory)
        assert f"needs more than {memory / 2**30:.3g} GiB of memory" in refusal(job, limits)


def test_the_parent_does_not_open_the_file(job: Request) -> None:
    """It would wait for this one for ever."""
    job.file.unlink()
    os.mkfifo(job.file)
    assert "is not a file" in refusal(job)
    assert "cannot be read: No such file" in refusal(replace(job, file=job.file.with_name("none")))


def test_no_torch_is_imported() -> None:
    """An import needs lstmserve[cpu] alone."""
    code = (
        "import sys; from lstmserve_export.onnx_file import child, importer; "
        "print([each for each in ('torch', 'onnxscript') if each in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_a_large_file_may_take_more(job: Request) -> None:
    """What is given goes first."""
    size = job.file.stat().st_size
    assert Limits.of(job.file).memory == MEMORY_BASE + MEMORY_FACTOR * size
    assert Limits.of(job.file).seconds > SECONDS
    assert Limits.of(job.file.with_name("none")) == Limits(MEMORY_BASE, SECONDS)
    assert Limits.of(job.file, 1 << 30, 5) == Limits(1 << 30, 5)


# How a child may end ------------------------------------------------------------------------------

KILL = "os.kill(os.getpid(), signal.{})"
ENDS: dict[str, tuple[str, str]] = {
    "a crash": (
        "say(stage='read'); print('first', file=sys.stderr); print('corrupted', file=sys.stderr)\n"
        + KILL.format("SIGSEGV"),
        r"by SIGSEGV at the stage 'read', as it would end a server: .* \(corrupted\)$",
    ),
    "an unknown signal": ("os.kill(os.getpid(), 40)", "by signal 40, as"),
    "a killer": (KILL.format("SIGKILL"), "the import was killed, perhaps by a system that has no"),
    "too much time of processors": (KILL.format("SIGXCPU"), "did not end within 60 s: if you"),
    "no memory in C++": (
        "print('terminate called: std::bad_alloc', file=sys.stderr); os.abort()",
        "needs more than 0.5 GiB of memory",
    ),
    "no memory in Python": ("raise MemoryError", "needs more than 0.5 GiB of memory"),
    "no answer": ("sys.exit(3)", "with status 3, as"),
    "an end without an answer": ("say(stage='prove')", "with status 0 at the stage 'prove'"),
    "a refusal": ("say(refused='no\\nstate')", r"^no\\nstate$"),
    "text": ("print('Hello'); signal.pause()", r"an answer that no import gives \(no JSON\)"),
    "no object": ("print('[1, 2]'); signal.pause()", "an answer that no import gives"),
    "deep nests": ("print('[' * 100000); signal.pause()", "an answer that no import gives"),
    "an endless line": (
        f"print('1' * {ANSWER_BYTES_MAX}); signal.pause()",
        "an answer that no import gives",
    ),
    "no model": ("say(exported=1)", "an answer that no import gives"),
    "no manifest": (
        "say(exported={'bytes': 1, 'manifest': '{}'})",
        "an answer that no import gives",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_each_end_has_its_line(job: Request, name: str) -> None:
    """A crash, a limit and nonsense are told apart."""
    code, says = ENDS[name]
    assert re.search(says, refusal(job, command=command(code)))


def test_another_model_is_no_answer(job: Request) -> None:
    """The answer must be of the model that was asked for."""
    manifest = run_child(replace(job, name="other", dry_run=True)).manifest.to_json()
    code = f"say(exported=dict(bytes=1, manifest={manifest!r}))"
    assert "(ValueError: another model)" in refusal(job, command=command(code))


def test_stages_are_fit_for_a_terminal(job: Request) -> None:
    """Names from the file may be in them."""
    stages: list[str] = []
    code = r"say(stage='\x1b[2J\n'); say(stage='x' * 9999); say(stage=[1]); say(refused='no')"
    refusal(job, command=command(code), progress=stages.append)
    assert (stages[0], len(stages[1]), stages[2]) == (r"\x1b[2J\n", 300, "[1]")


def test_what_a_killed_child_was_writing_is_removed(job: Request) -> None:
    """A version that it had moved away comes back; what others write stays."""
    folder = job.models / "theirs"
    code = f"""
os.makedirs(f"{folder}/{NEW}{{os.getpid()}}-abc")
os.rename("{folder}/7", f"{folder}/{OLD}{{os.getpid()}}-7")
os.rename("{folder}/8", f"{folder}/{OLD}{{os.getpid()}}-8")
os.makedirs("{folder}/8")
{KILL.format("SIGKILL")}
"""
    for name in ("7", "8", f"{NEW}1-abc"):
        (folder / name).mkdir(parents=True)
        (folder / name / "old").touch()
    with pytest.raises(Refused):
        run_child(job, LIMITS, command=command(code))
    assert sorted(each.name for each in folder.iterdir()) == [f"{NEW}1-abc", "7", "8"]
    assert (folder / "7" / "old").exists()
    assert not (folder / "8" / "old").exists()


# What ends with it --------------------------------------------------------------------------------


@pytest.fixture
def lifeline(tmp_path: Path) -> Iterator[IO[bytes]]:
    """Of a pipe "alive": reading it ends when every process that has opened it is gone."""
    os.mkfifo(tmp_path / "alive")
    reader = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    with os.fdopen(reader, "rb") as file:
        yield file


WAITS = "alive = open({!r}, 'w'); alive.write('.'); alive.flush(); {}; signal.pause()"


@pytest.mark.parametrize("way", ["a limit", "Ctrl-C"])
def test_all_processes_of_the_child_end(
    job: Request, tmp_path: Path, lifeline: IO[bytes], clock: Clock, way: str
) -> None:
    """Those that it has started, too: they are in its session, and not in ours."""
    says = "print(json.dumps({'stage': 'waiting'}), flush=True)"
    inner = "import json, signal; " + WAITS.format(str(tmp_path / "alive"), says)
    code = f"subprocess.Popen([sys.executable, '-c', {inner!r}])\n"
    code += "assert os.getsid(0) == os.getpid()\nsignal.pause()"

    def hear(stage: str) -> None:
        clock.hear(stage)
        if way == "Ctrl-C":
            raise KeyboardInterrupt

    with pytest.raises(Refused if way == "a limit" else KeyboardInterrupt):
        run_child(job, LIMITS, hear, command(code))
    assert lifeline.read() == b"."


def test_the_child_ends_with_its_parent(tmp_path: Path, lifeline: IO[bytes]) -> None:
    """A parent that is killed cannot end it."""
    begins = "import os, signal\nfrom lstmserve_export.onnx_file.child import Limits, _limit\n"
    begins += "_limit(Limits(), os.getppid())\n"
    code = begins + WAITS.format(str(tmp_path / "alive"), "print('{}', flush=True)")
    parent = f"""
import subprocess, sys
process = subprocess.Popen([sys.executable, "-c", {code!r}], start_new_session=True)
process.wait()
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"{}\n"
        process.kill()
    assert lifeline.read() == b"."


def test_the_child_limits_itself(tmp_path: Path) -> None:
    """Its memory, its files, its time, and no core; never above what the system allows."""
    code = """
import os, resource as r
from lstmserve_export.onnx_file.child import Limits, _limit
r.setrlimit(r.RLIMIT_FSIZE, (5000, 6000))
_limit(Limits(memory=1 << 30, seconds=10), os.getppid())
for kind in (r.RLIMIT_AS, r.RLIMIT_CORE, r.RLIMIT_FSIZE, r.RLIMIT_CPU):
    print(r.getrlimit(kind))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    cpu = 10 * (os.cpu_count() or 1) + 1
    expected = [(1 << 30, 1 << 30), (0, 0), (6000, 6000), (cpu, cpu + 1)]
    assert found.stdout.splitlines() == [*map(str, expected)]
