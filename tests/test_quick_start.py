"""Does what README.md's quick start and the pages about Python say, command by command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from documentation import FENCE
from serving import COMMAND, ROOT, WAIT_S_MAX, Serve, Serving, environment

README = (ROOT / "README.md").read_text()
QUICK_START = README[README.index("## Quick start") : README.index("## The Python client")]
DEBUG = (ROOT / "docs" / "howto" / "debug-a-session.md").read_text()
FROM_FASTAPI = (ROOT / "docs" / "howto" / "from-fastapi.md").read_text()


class Shell:
    """A shell in `folder` whose `lstmserve` and `python` are this checkout's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = ""  # of the servers, one after the other
        programs = folder / "bin"
        programs.mkdir()
        code = COMMAND[2]
        for name, arguments in (("lstmserve", f"-c '{code}'"), ("python", "")):
            path = programs / name
            path.write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
            path.chmod(0o755)

    def run(self, block: str, *, code: int = 0) -> str:
        """What the block prints; it must end with that code."""
        variables = environment(LSTMSERVE_TARGET=self.target, XDG_STATE_HOME=str(self.folder))
        variables["PATH"] = f"{self.folder / 'bin'}:{variables['PATH']}"
        block = re.sub(r'Client\((?:"127\.0\.0\.1:50051")?\)', f'Client("{self.target}")', block)
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", block],
            cwd=self.folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=WAIT_S_MAX,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def python(self, block: str) -> str:
        """The same of a block of Python."""
        return self.run(f"python - <<'END'\n{block}END\n")


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of that language, in order."""
    return [block for found, block in FENCE.findall(text) if found == language]


@pytest.mark.timeout(300)
def test_the_quick_start(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block does what the text around it says, and so do the pages' blocks of Python."""
    monkeypatch.chdir(tmp_path)
    shell = Shell(tmp_path)
    save, export, first, steps, script, second, step, again = blocks(QUICK_START)

    def start(block: str) -> Serving:
        (line,) = [each for each in block.splitlines() if each.startswith("lstmserve serve")]
        address = ("--listen", shell.target) if shell.target else ()
        serving = serve(*line.split()[2:], *address, models=tmp_path / "models")
        shell.target = serving.target
        return serving

    shell.run(save)
    assert "computes  y = linear(lstm(x))" in shell.run(export)
    assert (tmp_path / "models" / "weather" / "1").is_dir()
    serving = start(first)
    ys = shell.run(steps).splitlines()
    assert len(ys) == len(set(ys)) == 2
    stepped, whole = re.findall(r"\[.*?\]", shell.run(script), re.DOTALL)
    assert stepped == whole
    for block in blocks(DEBUG, "python"):
        found = shell.python(block)
    assert all(float(each) < 1e-5 for each in re.findall(r"differs by (\S+)", found))
    shell.python(blocks(README, "python")[0])
    shell.python(blocks(FROM_FASTAPI, "python")[1])
    assert serving.stop() == 0

    serving = start(second)
    assert shell.run(step).splitlines() == ys[:1]
    serving.kill()
    start(second)
    y, *listed = shell.run(again).splitlines()
    assert y == ys[1]
    assert any(line.startswith("lga ") for line in listed)
    assert "SESSION_LOST" in shell.run(steps, code=1)
