"""Runs an import in a process of its own, with limits on memory and time.

A file of others may end the process that reads it, or take all memory, or never end. The parent
reads no byte of it: it starts this module, gives it the request, and makes of whatever happens an
Exported or one line. The process is its own session, so that Ctrl-C and a limit end it whole.

Each line of the child's answer is a JSON object: {"stage": ...} for progress, and at the end
{"refused": ...}, {"memory": ...} or {"exported": ...}. The module imports no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import selectors
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from lstmserve.manifest import FILE_BYTES_MAX, MANIFEST, Manifest, tidy_up
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.refusal import LINE_LEN_MAX, Refused, described, one_line, printable
from lstmserve_export.target import Exported

COMMAND: Final = (sys.executable, "-P", "-m", "lstmserve_export.onnx_file.child")
# Threads beside the one that runs the graph only reserve memory, which counts.
ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
MEMORY_BASE: Final = 1 << 32  # of address space; python, onnx and onnxruntime take 0.2 GiB
MEMORY_FACTOR: Final = 32  # of the file's size: 400 MB of weights took 10.9 GiB, 100 MB 2.9 GiB
SECONDS: Final = 600.0
SECONDS_PER_BYTE: Final = 1 / (1 << 20)  # 400 MB took 100 s on a busy machine
FILE_BYTES: Final = max(FILE_BYTES_MAX.values())  # the most that the server reads of any file
ANSWER_BYTES_MAX: Final = 4 * FILE_BYTES_MAX[MANIFEST]
ERRORS_LEN: Final = 4096  # bytes at the end of what the child writes to stderr
PIPE_LEN: Final = 1 << 16
PDEATHSIG: Final = 1  # of prctl(2): the signal that a process gets when its parent ends
NO_MEMORY: Final = re.compile(
    "bad_alloc|bad allocation|failed to allocate|cannot allocate|can't allocate|unable to allocate"
    "|out of memory|not enough space|failed to map|MemoryError"
    # Python's words where a library of C fails and does not say why, as without memory.
    "|without exception set|without setting an exception",
    re.IGNORECASE,
)
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """`memory` in bytes of address space, `seconds` of time by the clock."""

    memory: int = MEMORY_BASE
    seconds: float = SECONDS

    @classmethod
    def of(cls, file: Path, memory: int | None = None, seconds: float | None = None) -> Limits:
        """What a file of that size may need, where nothing is given."""
        try:
            size = file.stat().st_size
        except OSError:  # the child says why
            size = 0
        return cls(
            memory or MEMORY_BASE + MEMORY_FACTOR * size,
            seconds or SECONDS + SECONDS_PER_BYTE * size,
        )


# The parent ---------------------------------------------------------------------------------------


def run_child(
    request: Request,
    limits: Limits | None = None,
    progress: Progress = lambda stage: None,
    command: Sequence[str] = COMMAND,
) -> Exported:
    """What import_onnx() returns. Raises Refused also where the child ends in any other way."""
    limits = limits or Limits.of(request.file)
    job = {"request": request.to_json(), "limits": asdict(limits), "parent": os.getpid()}
    process = subprocess.Popen(  # noqa: S603 -- this module itself
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | ENVIRONMENT,
        start_new_session=True,
    )
    answer = _Answer(progress)
    try:
        with process:
            try:
                is_late = not answer.read(
                    process, json.dumps(job), time.monotonic() + limits.seconds
                )
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    finally:
        with contextlib.suppress(OSError):  # what cannot be removed is no model
            tidy_up(request.models, request.name, process.pid)
    return answer.exported(request, limits, -signal.SIGXCPU if is_late else process.returncode)


@dataclass(slots=True)
class _Answer:
    """What the child has written. `last` is its last line, `errors` the end of its stderr."""

    progress: Progress
    stage: str = ""
    last: dict[str, Any] = field(default_factory=dict)
    errors: bytes = b""
    is_garbage: bool = False
    _rest: bytes = b""
    _size: int = 0

    def read(self, process: subprocess.Popen[bytes], job: str, deadline: float) -> bool:
        """Gives the job and reads to the end. False: the deadline passed first."""
        assert process.stdin
        assert process.stdout
        assert process.stderr
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(job.encode())
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ, self._take_lines)
            selector.register(process.stderr, selectors.EVENT_READ, self._take_errors)
            while selector.get_map() and not self.is_garbage:
                ready = selector.select(max(deadline - time.monotonic(), 0))
                if not ready:
                    return False
                for key, _ in ready:
                    if data := os.read(key.fd, PIPE_LEN):
                        key.data(data)
                    else:
                        selector.unregister(key.fileobj)
        if self.is_garbage:
            return True
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            return False
        return True

    def _take_errors(self, data: bytes) -> None:
        self.errors = (self.errors + data)[-ERRORS_LEN:]

    def _take_lines(self, data: bytes) -> None:
        self._size += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            for line in lines:
                self._take_line(json.loads(line))
        except (ValueError, TypeError, RecursionError):
            self.is_garbage = True
        self.is_garbage |= self._size > ANSWER_BYTES_MAX

    def _take_line(self, said: Any) -> None:
        """Raises ValueError and TypeError."""
        if not isinstance(said, dict):
            raise TypeError("no object")
        if "stage" in said:
            self.stage = printable(str(said["stage"]))[:LINE_LEN_MAX]
            self.progress(self.stage)
        else:
            self.last = said

    def exported(self, request: Request, limits: Limits, code: int) -> Exported:
        """What the child's end means, by its answer and its exit status `code`. Raises Refused."""
        text = self.errors.decode(errors="replace").strip()
        if self.is_garbage:
            raise _garbage(request, "no JSON")
        if "refused" in self.last:
            raise Refused(str(self.last["refused"]))
        if "exported" in self.last:
            return self._read_exported(request)
        at = f" at the stage {self.stage!r}" if self.stage else ""
        if "memory" in self.last or NO_MEMORY.search(text):
            said = (
                f"the import needs more than {limits.memory / (1 << 30):.3g} GiB of memory{at}: if "
                "you trust the file, allow more with --memory-limit"
            )
        elif code == -signal.SIGXCPU:
            said = (
                f"the import did not end within {limits.seconds:g} s{at}: if you trust the file, "
                "allow more with --time-limit"
            )
        elif code == -signal.SIGKILL:
            said = (
                f"the import was killed{at}, perhaps by a system that has no memory left: free "
                "memory, or import on another machine"
            )
        else:
            how = f"with status {code}" if code >= 0 else f"by {_signal_name(-code)}"
            last = text.rpartition("\n")[2][:LINE_LEN_MAX]
            said = (
                f"onnx or onnxruntime ended the process of the import {how}{at}, as it would end "
                f"a server: do not serve this file{f' ({last})' if last else ''}"
            )
        raise Refused(f"{request.file.name}: {said}")

    def _read_exported(self, request: Request) -> Exported:
        """Raises Refused for what import_onnx() cannot have answered."""
        try:
            values = self.last["exported"]
            manifest = Manifest.from_json(values["manifest"])
            folder = request.models / request.name / str(manifest.version)
            if manifest.name != request.name or type(values["bytes"]) is not int:
                raise ValueError("another model")
        except (ValueError, TypeError, LookupError) as error:
            raise _garbage(request, described(error)) from error
        return Exported(folder, manifest, values["bytes"])


def _garbage(request: Request, why: str) -> Refused:
    return Refused(
        f"{request.file.name}: the process of the import gave an answer that no import gives "
        f"({why}): do not serve this file"
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# The child ----------------------------------------------------------------------------------------


def main() -> None:
    """Reads the job from stdin, and answers on what is stdout now: from here on the libraries'
    stdout is stderr."""
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        job = json.loads(sys.stdin.buffer.read())
        _limit(Limits(**job["limits"]), job["parent"])
        said = _import(job["request"], answer)
        answer.write(json.dumps(said) + "\n")
    os._exit(0)  # no library's own end, which may crash, comes after the answer


def _import(request: str, answer: IO[str]) -> dict[str, Any]:
    """The last line of the answer."""

    def progress(stage: str) -> None:
        answer.write(json.dumps({"stage": stage}) + "\n")
        answer.flush()

    try:
        from lstmserve_export.onnx_file.importer import import_onnx

        exported = import_onnx(Request.from_json(request), progress)
    except Exception as error:
        if NO_MEMORY.search(f"{error!r} {error.__cause__!r}"):
            return {"memory": True}
        if isinstance(error, Refused):
            return {"refused": str(error)}
        if type(error).__module__.startswith(("onnxruntime", "onnx.")):
            return {"refused": f"onnxruntime does not run the file: {one_line(error)}"}
        traceback.print_exc()
        return {
            "refused": f"the import failed with {described(error)}: this is a fault of "
            "lstmserve, please report it with the file"
        }
    return {"exported": {"bytes": exported.bytes, "manifest": exported.manifest.to_json()}}


def _limit(limits: Limits, parent: int) -> None:
    """Limits this process, and ends it with its parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended already
            os.kill(os.getpid(), signal.SIGKILL)
    cpu = int(limits.seconds * (os.cpu_count() or 1)) + 1  # if the parent's own clock stands
    for kind, most, last in (
        (resource.RLIMIT_AS, limits.memory, limits.memory),
        (resource.RLIMIT_CPU, cpu, cpu + 1),  # SIGXCPU at the first, SIGKILL at the second
        (resource.RLIMIT_FSIZE, FILE_BYTES, FILE_BYTES),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        _, hard = resource.getrlimit(kind)
        last = last if hard == resource.RLIM_INFINITY else min(last, hard)
        resource.setrlimit(kind, (min(most, last), last))


if __name__ == "__main__":
    main()
