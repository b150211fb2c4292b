"""Does what README.md's quick start and the pages about Python say, command by command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serving import ROOT, Serve, Serving
from shell import Shell, blocks

README = (ROOT / "README.md").read_text()
QUICK_START = README[README.index("## Quick start") : README.index("## The Python client")]
DEBUG = (ROOT / "docs" / "howto" / "debug-a-session.md").read_text()
FROM_FASTAPI = (ROOT / "docs" / "howto" / "from-fastapi.md").read_text()


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
    assert "states    lstm.h [1, 32], lstm.c [1, 32]" in shell.run(export)
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
