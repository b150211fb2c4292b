"""The client for threads equals what the generator makes of the asyncio client."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SYNC = ROOT / "service/lstmserve/client/_sync"


def test_sync_client_is_generated(tmp_path: Path) -> None:
    """proto/sync_client.py writes exactly the committed modules."""
    out = tmp_path / "_sync"
    script = ROOT / "proto/sync_client.py"
    subprocess.run([sys.executable, script, "--out", out], check=True)
    written = {path.name: path.read_text() for path in out.glob("*.py")}
    assert written == {path.name: path.read_text() for path in SYNC.glob("*.py")}
    assert "session.py" in written


def test_importing_the_client_costs_no_server() -> None:
    """lstmserve.Client brings in no onnxruntime, click or structlog."""
    code = (
        "import sys; from lstmserve import AsyncClient, Client; "
        "bad = {'onnxruntime', 'onnx', 'click', 'structlog', 'torch'} & set(sys.modules); "
        "assert not bad, bad"
    )
    environment = {"PYTHONPATH": str(ROOT / "service")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
