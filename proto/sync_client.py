"""Generates client/_sync from client/_async: the same code without async and await."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from unasync import Rule, unasync_files

ROOT = Path(__file__).resolve().parent.parent
SYNC = ROOT / "service/lstmserve/client/_sync"
NAMES = {
    "AsyncClient": "Client",
    "AsyncSession": "Session",
    "AsyncConnection": "Connection",
    "AsyncGroupStreams": "GroupStreams",
    "AsyncReconnectingStream": "ReconnectingStream",
    "AsyncSendOnce": "SendOnce",
    "AsyncStepDelivery": "StepDelivery",
    "aio": "threads",
    "_async": "_sync",
    "aclosing": "closing",
}
BANNER = '"""The client for threads, generated from _async by `make proto`: edit that."""\n'


def generate(out: Path) -> None:
    """Writes the modules into `out`, formatted by the project's ruff."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch, "_async"), Path(scratch, "_sync")
        source.mkdir()
        for module in SYNC.with_name("_async").glob("*.py"):
            (source / module.name).write_text(module.read_text())
        files = [str(path) for path in source.iterdir()]
        unasync_files(files, [Rule("/_async/", "/_sync/", additional_replacements=NAMES)])
        out.mkdir(exist_ok=True)
        for module in target.iterdir():
            (out / module.name).write_text(module.read_text())
    (out / "__init__.py").write_text(BANNER)
    ruff = [str(Path(sys.executable).with_name("ruff")), "--config", str(ROOT / "pyproject.toml")]
    subprocess.run([ruff[0], "check", "--quiet", "--select=I", "--fix", *ruff[1:], out], check=True)
    subprocess.run([ruff[0], "format", "--quiet", *ruff[1:], out], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SYNC, help="where the modules go")
    generate(parser.parse_args().out)
