"""`python -m bench.beside_triton TRITON NAME=CHECKOUT[,FLAG...] ...`: a real Triton beside ours.

TRITON is a virtual environment that has the server from NVIDIA's wheel:

    python3 -m venv TRITON && TRITON/bin/pip install nvidia-pytriton==0.7.0 onnxruntime==1.31.1

Triton runs the same network behind its sequence batcher (bench/triton_model). Its tree of processes
and each version of ours run on the same core, one after the other, and get the same ModelInfer
bodies from the same raw load; ours also get Steps. All must give the same y before anything is
measured.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click
import grpc
import numpy as np

from bench import requests
from bench.checkout import Version, all_checked_out, serving_of
from bench.clients import Place
from bench.load import Load, Sample
from bench.machine import ROOT, commit, description, on_core, pin_load
from bench.measures import INFER, SPEC, infer, raw
from bench.rounds import MODEL, Effort, Side, require_applied, take_turns
from bench.versions import beside, cost, rate
from lstmserve.kserve.v2 import inference_pb2 as kserve
from lstmserve.manifest import MODEL as MODEL_FILE
from modelmaking import make_model

COUNTS = (1, 8, 32)
HEADS = (
    "connections",
    "server",
    "answers/s",
    "CPU us an answer",
    "answers/s / Triton's",
    "per CPU second / Triton's",
)
SERVICE = INFER.removesuffix("ModelInfer")
WAIT_S_MAX = 60
CHECKED, CHECKED_STEPS, TOLERANCE = 1_000_000, 5, 1e-5  # a sequence, and how its y may differ
# What Triton needs of a wheel's environment, a path a line.
PLACES = (
    "import sys, sysconfig; print(sysconfig.get_path('platlib'),"
    " sysconfig.get_config_var('LIBDIR'), '%d.%d' % sys.version_info[:2], sep='\\n')"
)


@dataclass(frozen=True, slots=True)
class Installed:
    """A Triton in a virtual environment."""

    folder: Path
    packages: Path
    libraries: Path  # of its Python
    python: str  # 3.11

    @classmethod
    def find(cls, folder: Path) -> Installed:
        """The Triton in the folder. Raises BadParameter if there is none."""
        python = folder / "bin" / "python"
        if not python.exists():
            raise click.BadParameter(f"{folder} is no virtual environment")
        found = subprocess.run([python, "-c", PLACES], capture_output=True, text=True, check=True)
        packages, libraries, version = found.stdout.split("\n")[:3]
        installed = cls(folder, Path(packages), Path(libraries), version)
        if not installed.server.exists():
            raise click.BadParameter(f"{folder} has no nvidia-pytriton: see bench/RESULTS.md")
        return installed

    @property
    def root(self) -> Path:
        """The wheel's folder with Triton's files."""
        return self.packages / "pytriton" / "tritonserver"

    @property
    def server(self) -> Path:
        """The binary."""
        return self.root / "bin" / "tritonserver"

    def environment(self) -> dict[str, str]:
        """The variables for its libraries, and for its packages in the Python backend."""
        libraries = [self.packages / "nvidia_pytriton.libs", self.libraries]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "PYTHONPATH": str(self.packages),
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        }

    def lay_out(self, models: Path, folder: Path) -> list[str]:
        """Makes a model repository and a folder of backends in `folder`. Returns their flags."""
        model = folder / "models" / MODEL
        (model / "1").mkdir(parents=True)
        own = ROOT / "bench" / "triton_model"
        shutil.copy(own / "config.pbtxt", model)
        shutil.copy(own / "model.py", model / "1")
        shutil.copy(models / MODEL / "1" / MODEL_FILE, model / "1" / "model.onnx")
        backends = folder / "backends"
        shutil.copytree(self.root / "backends", backends)
        stub = self.root / "python_backend_stubs" / self.python / "triton_python_backend_stub"
        shutil.copy(stub, backends / "python")
        return ["--model-repository", str(model.parent), "--backend-directory", str(backends)]


@dataclass(frozen=True, slots=True)
class Served:
    """What a load needs of a server, ours or Triton's."""

    target: str
    pid: int


@contextmanager
def triton_of(installed: Installed, models: Path) -> Iterator[Served]:
    """Runs Triton on the server's core, ready on entry; its processes are gone on exit."""
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as free:
        folder, port = Path(name), str(free.getsockname()[1])
        free.close()
        flags = ["--grpc-address", "127.0.0.1", "--grpc-port", port]
        memory = f"lstmserve-bench-{port}-"
        flags += ["--backend-config", f"python,shm-region-prefix-name={memory}"]
        flags += ["--allow-http", "false", "--allow-metrics", "false", "--exit-timeout-secs", "1"]
        command = [str(installed.server), *installed.lay_out(models, folder), *flags]
        with (folder / "log").open("w+") as log:
            process = subprocess.Popen(
                on_core(command),
                env=installed.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                target = f"127.0.0.1:{port}"
                _await(target, process, folder / "log")
                yield Served(target, process.pid)
            finally:
                _end(process)
                for region in Path("/dev/shm").glob(f"{memory}*"):
                    region.unlink()  # its backend leaves the region behind


def _await(target: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until it is ready. It listens once its models are loaded, and ends if they fail."""
    with grpc.insecure_channel(target) as channel:
        ready = grpc.channel_ready_future(channel)
        for _ in range(WAIT_S_MAX):
            with suppress(grpc.FutureTimeoutError):
                return ready.result(timeout=1)
            if process.poll() is not None:
                break
        ready.cancel()
    raise RuntimeError(f"Triton did not start:\n{log.read_text()[-4000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the process group that it leads."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(WAIT_S_MAX)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def version_of(target: str) -> str:
    """The version that the server reports."""
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(
            SERVICE + "ServerMetadata",
            kserve.ServerMetadataRequest.SerializeToString,
            kserve.ServerMetadataResponse.FromString,
        )
        metadata = call(kserve.ServerMetadataRequest())
    return f"{metadata.name} {metadata.version}"


def outputs(target: str) -> np.ndarray:
    """y of the first steps of a sequence, [steps, output_size]."""
    with grpc.insecure_channel(target) as channel:
        read = kserve.ModelInferResponse.FromString
        call = channel.unary_unary(INFER, response_deserializer=read)
        bodies = requests.inferences(MODEL, SPEC, CHECKED)
        answers = [call(next(bodies)) for _ in range(CHECKED_STEPS)]
    return np.array([np.frombuffer(each.raw_output_contents[0], "<f4") for each in answers])


def compared(
    installed: Installed, versions: Sequence[Version], count: int, effort: Effort
) -> dict[str, list[Sample]]:
    """The samples of Triton, first, and of ours by both dialects, taken in turns."""
    with ExitStack() as stack:
        models = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_model(models, SPEC, name=MODEL)
        triton = stack.enter_context(triton_of(installed, models))
        expected = outputs(triton.target)
        sides = [
            Side(version_of(triton.target), triton.pid, infer(count)(Place(triton.target, "")))
        ]
        servers = []
        for version in versions:
            serving = stack.enter_context(serving_of(version, models))
            np.testing.assert_allclose(outputs(serving.target), expected, atol=TOLERANCE)
            loads: dict[str, Callable[..., Load]] = {
                "ModelInfer": infer(count),
                "Step": raw("Step", count, streamed=False),
            }
            place = Place(serving.target, version.python_path)
            sides += [
                Side(f"{version.name}, {method}", serving.process.pid, load(place))
                for method, load in loads.items()
            ]
            servers.append(serving)
        taken = take_turns(sides, effort)
        for serving in servers:
            require_applied(serving)
        return taken


def lines(count: int, taken: dict[str, list[Sample]]) -> Iterator[str]:
    """The lines of the table, one for each side."""
    (_, theirs), *_ = taken.items()
    for side, samples in taken.items():
        found = [str(count), side, rate(samples), cost(samples)]
        if samples is not theirs:
            found += [beside(samples, theirs, "per_s"), beside(samples, theirs, "per_cpu_s")]
        yield f"| {' | '.join(found + [''] * (len(HEADS) - len(found)))} |"


@click.command()
@click.argument("triton", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, required=True, metavar="NAME=CHECKOUT[,FLAG...]...")
@click.option("--rounds", default=7, show_default=True, help="Turns of each side.")
@click.option("--seconds", default=1.0, show_default=True, help="Of one turn.")
def main(triton: Path, texts: tuple[str, ...], rounds: int, seconds: float) -> None:
    """Prints a table in Markdown: each side's rate and cost, and ours relative to Triton's."""
    pin_load()
    installed = Installed.find(triton.absolute())
    with all_checked_out(texts) as versions:
        click.echo(f"`{' '.join(['python -m bench.beside_triton', *sys.argv[1:]])}`, {commit()}.")
        click.echo(f"{description()}.\n")
        click.echo(f"| {' | '.join(HEADS)} |\n|{' --- |' * len(HEADS)}")
        for count in COUNTS:
            for line in lines(count, compared(installed, versions, count, Effort(rounds, seconds))):
                click.echo(line)


if __name__ == "__main__":
    main()
