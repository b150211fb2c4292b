"""Nothing is reported to anyone: onnxruntime's telemetry is off wherever we load it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving import Serve, environment


def test_a_server_writes_no_telemetry(serve: Serve, tmp_path: Path) -> None:
    """It writes no device id, no events and nothing else below ~/.cache."""
    serving = serve(HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert serving.stop() == 0
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    "module",
    ["lstmserve.engine", "lstmserve_export.lstm.parity", "lstmserve_export.taps"],
)
def test_whoever_loads_onnxruntime_turns_it_off(module: str, tmp_path: Path) -> None:
    """Server and exporter load onnxruntime through lstmserve.runtime."""
    subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; assert 'onnxruntime' in sys.modules"],
        env=environment(HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache")),
        check=True,
    )
    assert list(tmp_path.rglob("*")) == []
