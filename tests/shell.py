"""A shell in a folder, as a reader of the documentation has it, and the blocks to type into it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from documentation import FENCE
from serving import COMMAND, WAIT_S_MAX, environment


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
            timeout=2 * WAIT_S_MAX,
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
