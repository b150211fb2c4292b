"""The systemd unit of deploy/: its settings, limits and syntax, without starting it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from lstmserve.cli.serve import serve
from lstmserve.config import Config
from monitoring import binary
from serving import ROOT

UNIT = ROOT / "deploy" / "systemd" / "lstmserve.service"
BETWEEN_S = 2  # what a server may take beyond its drain, as in docker-compose.yml
MB = 1_000_000


def values(name: str) -> list[str]:
    """What the unit sets that name to, line by line."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def test_every_setting_is_accepted() -> None:
    """The command line accepts the settings that the unit gives by the environment."""
    settings = dict(setting.split("=", 1) for setting in values("Environment"))
    flags = {f"--{name[10:].lower().replace('_', '-')}": value for name, value in settings.items()}
    context = serve.make_context("serve", [word for pair in flags.items() for word in pair])
    assert str(context.params["models"]) == settings["LSTMSERVE_MODELS"]
    assert context.params["store"] == settings["LSTMSERVE_STORE"]
    assert values("ExecStart") == ["/opt/lstmserve/bin/lstmserve serve"]


def test_the_stop_is_longer_than_the_drain() -> None:
    """systemd waits for a server that drains for as long as it may."""
    config = Config()
    (stop_s,) = map(float, values("TimeoutStopSec"))
    assert stop_s > config.drain_delay_s + config.drain_s_max + BETWEEN_S


def test_the_memory_is_that_of_the_formula() -> None:
    """The limit of memory is above pool + 300 MB + 6 x pending bytes, by less than a tenth."""
    config = Config()
    (limit,) = values("MemoryMax")
    allowed = int(limit.removesuffix("M")) << 20
    needed = config.pool_bytes + 300 * MB + 6 * config.pending_bytes_max
    assert needed <= allowed < 1.1 * needed


def test_the_store_is_where_the_unit_may_write() -> None:
    """The state folder is the one that systemd makes, and a wrong setting is not restarted."""
    (folder,) = values("StateDirectory")
    assert f"LSTMSERVE_STORE=file:/var/lib/{folder}/sessions" in values("Environment")
    assert values("ProtectSystem") == ["strict"]
    assert values("RestartPreventExitStatus") == ["2"]


def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    """`systemd-analyze verify` accepts the unit, of which only the program is another here."""
    program = binary("systemd-analyze")
    text = UNIT.read_text().replace("/opt/lstmserve/bin/lstmserve", "/bin/true")
    copy = tmp_path / UNIT.name

    def verified(content: str) -> subprocess.CompletedProcess[str]:
        copy.write_text(content)
        command = [program, "verify", "--man=no", copy]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = verified(text)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "LockPersonalty" in verified(text.replace("LockPersonality", "LockPersonalty")).stderr
