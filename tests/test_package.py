"""The wheel, installed as a user installs it: a client alone, and a server without torch."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from serving import ROOT, Serving

pytestmark = pytest.mark.timeout(300)


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a command outside the checkout's import paths."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        command, env=kept, capture_output=True, text=True, check=check, timeout=280, cwd="/"
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel and no extra."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", folder)
    _install(folder / "bin", str(wheel))
    return folder / "bin"


def _install(bin_folder: Path, requirement: str) -> None:
    options = ["--quiet", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    run(bin_folder / "python", "-m", "pip", "install", *options, requirement)


def test_the_wheel_has_its_licence_and_says_what_it_is(wheel: Path) -> None:
    """The licence's text is the repository's; the metadata names it, and contains no made-up
    address."""
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        text = archive.read(f"{folder}/licenses/LICENSE")
        about = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
    assert text == (ROOT / "LICENSE").read_bytes()
    assert b"Apache License" in text[:200]
    assert about["License-Expression"] == "Apache-2.0"
    assert "Private :: Do Not Upload" in about.get_all("Classifier", [])
    assert about.get_all("Project-URL") is None


def test_the_base_install_is_a_client(base: Path, wheel: Path, models: Path) -> None:
    """It imports, and `serve`, `top` and `export` exit with 2 and name the extra that they need."""
    run(base / "python", "-c", "from lstmserve import AsyncClient, Client")
    refused = run(base / "lstmserve", "serve", "--models", models, check=False)
    assert refused.returncode == 2
    assert "pip install '.[cpu]' or pip install '.[gpu]'" in " ".join(refused.stderr.split())
    watched = run(base / "lstmserve", "top", check=False)
    assert watched.returncode == 2
    assert "'.[top]'" in watched.stderr
    exported = run(base / "lstmserve", "export", wheel, check=False)
    assert exported.returncode == 2
    assert "'.[export]'" in exported.stderr


def test_the_cpu_extra_serves_without_torch(
    base: Path, wheel: Path, models: Path, tmp_path: Path
) -> None:
    """`pip install lstmserve[cpu]` serves, answers a step from the shell, and installs no torch."""
    _install(base, f"{wheel}[cpu]")
    found = run(base / "python", "-c", "import torch", check=False)
    assert "No module named 'torch'" in found.stderr
    serving = Serving(("--models", models), [str(base / "lstmserve"), "serve"], PYTHONPATH="")
    try:
        stepped = subprocess.run(
            [base / "lstmserve", "step", "tiny", "--target", serving.target],
            input="1,2,3\n",
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert len(stepped.stdout.strip().split(",")) == 2
        shown = run(base / "lstmserve", "top", "--metrics", serving.ready["metrics"], "--once")
        assert "tiny:1" in shown.stdout
        assert serving.get("/")[1].startswith("<!doctype html>")
        written = run(base / "lstmserve", "proto", tmp_path)
        assert written.returncode == 0
        names = {path.name for path in tmp_path.rglob("*.proto")}
        assert names >= {"lstm.proto", "error_reason.proto", "inference.proto", "status.proto"}
        assert serving.stop() == 0
    finally:
        serving.kill()
