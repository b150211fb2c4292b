"""`lstmserve serve` before Ready: flags, environment, refusals and their exit codes."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner

from lstmserve.cli.serve import serve as serve_command
from lstmserve.config import GROUPS, Config, settings
from lstmserve.server import machine
from modelmaking import make_model
from serving import COMMAND, FREE_PORTS, ROOT, WAIT_S_MAX, Serve, Serving, environment, run_serve


def refused(text: str, code: int, *arguments: str | Path, **variables: str) -> None:
    """Runs a server that must end with this exit code and this text in its last line."""
    ended = run_serve(*arguments, **variables)
    last = ended.stderr.splitlines()[-1]
    assert ended.returncode == code, ended.stderr
    assert last.startswith("Error: ")
    assert text in last
    assert "Traceback" not in ended.stderr


def test_help_names_every_setting() -> None:
    """--help shows every setting's flag, variable and default."""
    text = CliRunner().invoke(serve_command, ["--help"], terminal_width=200).output
    words = " ".join(text.split())
    for name, field in settings().items():
        assert f"--{name.replace('_', '-')} " in words
        assert f"LSTMSERVE_{name.upper()}" in words
        if field.default not in (None, False):
            assert f"default: {field.default}" in words, name


def test_every_setting_is_in_one_group() -> None:
    """--help shows each setting once, under its group, and at the end what is not a setting."""
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(settings())
    text = CliRunner().invoke(serve_command, ["--help"]).output
    titles = re.findall(r"^(\w.*):$", text, re.MULTILINE)
    assert titles == [*GROUPS, "Other"]
    shown = re.findall(r"^  --([a-z-]+)", text, re.MULTILINE)
    assert [name.replace("-", "_") for name in shown] == [*grouped, "help"]


def test_every_setting_is_read_somewhere() -> None:
    """No flag does nothing: every setting is read outside config.py."""
    files = (ROOT / "service" / "lstmserve").rglob("*.py")
    text = "\n".join(path.read_text() for path in files if path.name != "config.py")
    unread = [name for name in settings() if not re.search(rf"config\.{name}\b", text)]
    assert unread == []


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("--threads", "0", "1<=x<=256"),
        ("--threads", "one", "integer"),
        ("--pool-bytes", "4095", "4096<=x<=1099511627776"),
        ("--session-ttl-s", "2592001", "1<=x<=2592000"),
        ("--drain-s-max", "nan", "[0, 3600]"),
        ("--device", "gpu", "'cpu', 'cuda', 'auto'"),
        ("--log", "xml", "'json', 'text'"),
        ("--listen", "50051", "HOST:PORT"),
        ("--metrics", "127.0.0.1:65536", "[0, 65535]"),
        ("--batch-cells-max", "8", "slice_rows_max, which is 32"),
        ("--cpu", "4095", "must be one of"),
        ("--store", "mongodb://", "must be memory, file:DIR"),
        ("--tls-cert", "cert.pem", "tls_key is missing"),
        ("--tls-key", "key.pem", "tls_cert is missing"),
        ("--tls-client-ca", "ca.pem", "tls_cert is missing"),
        ("--admin", "0.0.0.0:1", "must be a loopback address"),
        ("--tenant-rows-per-s", "0", "1<=x<="),
    ],
)
def test_bad_value_exits_2(flag: str, value: str, allowed: str) -> None:
    """A bad value exits 2 with its name, the value and what is allowed, as flag or variable."""
    variable = "LSTMSERVE_" + flag[2:].replace("-", "_").upper()
    name = f"({flag[2:]}|{flag[2:].replace('-', '_')})"
    for ended in (run_serve(flag, value), run_serve(**{variable: value})):
        assert ended.returncode == 2
        last = ended.stderr.splitlines()[-1]
        assert re.search(name, last)
        assert value in last
        assert allowed in last


def test_plain_text_stays_on_loopback() -> None:
    """An address that others can reach is refused, and the error names the ways out."""
    refused("--insecure", 2, "--listen", "0.0.0.0:0")
    refused("--tls-cert", 2, "--listen", "[::]:0")


def test_insecure_opens_it(serve: Serve) -> None:
    """With --insecure the same address is served."""
    serving = serve("--listen", "0.0.0.0:0", "--insecure")
    assert serving.target.startswith("0.0.0.0:")
    assert serving.stop() == 0


@pytest.mark.parametrize("module", ["onnxruntime", "structlog"])
def test_missing_extra_exits_2(module: str) -> None:
    """Without the server's extras it exits with 2 and names both."""
    code = f"import sys; sys.modules['{module}'] = None; from lstmserve.cli.serve import serve"
    ended = run_serve(command=[sys.executable, "-c", f"{code}; serve()"])
    assert ended.returncode == 2
    assert module in ended.stderr
    assert "pip install '.[cpu]' or pip install '.[gpu]'" in " ".join(ended.stderr.split())


def test_models_folder_must_hold_models(tmp_path: Path) -> None:
    """A missing folder, an empty one and a changed file exit with 1 and one line that says what to
    do."""
    missing = tmp_path / "nowhere"
    refused("no such folder", 1, "--models", missing, *FREE_PORTS)
    refused("lstmserve export", 1, "--models", tmp_path, *FREE_PORTS)


WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *COMMAND]


@pytest.mark.parametrize("place", ["tiny", "tiny/1", "tiny/1/model.onnx", ".store"])
def test_what_may_not_be_read_is_told(models: Path, tmp_path: Path, place: str) -> None:
    """A folder or file without permission is refused by its name, and no model is silently
    missing."""
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    make_model(tmp_path, name="other")
    (tmp_path / ".store").mkdir()
    store = f"file:{tmp_path / '.store'}"
    command = WITHOUT_RIGHTS if os.geteuid() == 0 else COMMAND
    locked = tmp_path / place
    locked.chmod(0)
    try:
        flags = ("--models", tmp_path, "--store", store, "--strict-models", *FREE_PORTS)
        ended = run_serve(*flags, command=command)
    finally:
        locked.chmod(0o755)
    last = ended.stderr.splitlines()[-1]
    assert ended.returncode == 1
    assert last.startswith("Error: ")
    assert ("chown it to" if place == ".store" else f"{locked}") in last
    assert "Traceback" not in ended.stderr


def test_a_pipe_is_no_model(models: Path, tmp_path: Path) -> None:
    """A pipe is refused, and the start does not wait for it."""
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    manifest = tmp_path / "tiny" / "1" / "manifest.json"
    manifest.unlink()
    os.mkfifo(manifest)
    refused("manifest.json is not a file", 1, "--models", tmp_path, *FREE_PORTS)


def test_more_memory_than_there_is_exits_1(models: Path) -> None:
    """The error is one line that names the flag."""
    refused("--pool-bytes: ", 1, "--models", models, *FREE_PORTS, "--pool-bytes", str(1 << 40))


def test_changed_weights_are_refused(models: Path, tmp_path: Path) -> None:
    """One flipped bit in model.onnx exits 1, naming the file."""
    version = tmp_path / "tiny" / "1"
    version.mkdir(parents=True)
    for path in (models / "tiny" / "1").iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= path.name == "model.onnx"
        (version / path.name).write_bytes(content)
    refused("model.onnx", 1, "--models", tmp_path, *FREE_PORTS)


def test_a_device_that_is_not_there_exits_1(models: Path) -> None:
    """--device cuda with the CPU's onnxruntime is refused with what to install, never ignored."""
    refused("pip install '.[gpu]'", 1, "--models", models, *FREE_PORTS, "--device", "cuda")


def test_auto_says_which_device_it_took(serve: Serve) -> None:
    """--device auto takes an available device, and the Ready line names it."""
    serving = serve("--device", "auto")
    assert serving.ready["device"] == "cpu"
    assert serving.stop() == 0


def test_taken_ports_exit_1(server: Serving, models: Path) -> None:
    """A second server on either port is refused with one line, and the first one keeps serving."""
    metrics = server.metrics_url.removeprefix("http://")
    refused(server.target, 1, "--models", models, *FREE_PORTS, "--listen", server.target)
    refused(metrics, 1, "--models", models, *FREE_PORTS, "--metrics", metrics)
    assert server.get("/readyz")[0] == 200


TAKEN = "another process listens on port PORT: end it, or take another port"
STRANGE = "192.0.2.1 is not an address of this machine"
UNKNOWN = "no address is known for the host no-such-host.invalid: "


@pytest.mark.parametrize(
    ("flag", "address", "why"),
    [
        ("--listen", "127.0.0.1:PORT", TAKEN),
        ("--metrics", "127.0.0.1:PORT", TAKEN),
        ("--admin", "127.0.0.1:PORT", TAKEN),
        ("--listen", "192.0.2.1:0", STRANGE),
        ("--metrics", "192.0.2.1:0", STRANGE),
        ("--listen", "no-such-host.invalid:0", UNKNOWN),
        ("--metrics", "no-such-host.invalid:0", UNKNOWN),
    ],
)
def test_an_address_that_cannot_be_had_says_why(
    models: Path, flag: str, address: str, why: str
) -> None:
    """One line names the flag, its value and the reason."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        address, why = address.replace("PORT", port), why.replace("PORT", port)
        found = run_serve("--models", models, *FREE_PORTS, "--insecure", flag, address)
    assert found.returncode == 1
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("Error: ")]
    assert line.startswith(f"Error: {flag} {address}: {why}")


def test_a_port_that_needs_rights_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's refusal is simulated, because the tests may run as root, who may take any
    port."""

    def bind(self: socket.socket, address: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(machine.socket, "socket", type("Denied", (socket.socket,), {"bind": bind}))
    refusal = machine._refusal("listen", "127.0.0.1:80")
    assert refusal is not None
    said = machine._why_not("127.0.0.1:80", refusal)
    assert said == "this user may not listen on port 80: take one from 1024 on"


def test_unknown_variables_only_warn(serve: Serve) -> None:
    """Kubernetes' LSTMSERVE_PORT is warned about and does not stop the server."""
    serving = serve(LSTMSERVE_PORT="tcp://10.0.0.1:50051")
    (warning,) = serving.events("unknown environment variable")
    assert (warning["name"], warning["level"]) == ("LSTMSERVE_PORT", "warning")
    assert serving.stop() == 0


def test_flag_beats_variable(serve: Serve) -> None:
    """A variable sets a setting, and a flag overrides it."""
    serving = serve("--drain-s-max", "7", LSTMSERVE_DRAIN_S_MAX="8", LSTMSERVE_DRAIN_DELAY_S="0.5")
    assert serving.stop() == 0
    (draining,) = serving.events("draining")
    assert (draining["s_max"], draining["delay_s"]) == (7.0, 0.5)


def test_sigterm_before_ready_ends_it(models: Path, tmp_path: Path) -> None:
    """SIGTERM ends a starting server, also as process 1 of a container, where signals without a
    handler are ignored."""
    tokens = tmp_path / "tokens"
    os.mkfifo(tokens)
    command = [*COMMAND, *FREE_PORTS, "--models", models, "--tokens", tokens]
    with (
        subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL) as process,
        tokens.open("w"),  # blocks until the server opens it, which then waits for its content
    ):
        process.terminate()
        assert process.wait(WAIT_S_MAX) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("given", "protected_by", "warned"),
    [
        ({}, ["loopback"], ""),
        ({"listen": "0.0.0.0:1", "insecure": True}, [], "read along and call"),
        ({"listen": "0.0.0.0:1", "insecure": True, "tokens": Path("t")}, ["tokens"], "read along"),
        ({"listen": "0.0.0.0:1", "tls_cert": Path("c"), "tls_key": Path("k")}, ["TLS"], ""),
    ],
)
def test_what_protects_it_is_said(
    given: dict[str, Any], protected_by: list[str], warned: str
) -> None:
    """A server that others can reach in plain text logs that at its start."""
    config = Config(**given)
    with structlog.testing.capture_logs() as logs:
        machine.check_plain_text(config)
    assert machine.protections(config) == protected_by
    assert [line["log_level"] for line in logs] == ["warning"] * bool(warned)
    assert all(warned in line["event"] for line in logs)


def test_grpcs_own_listener_is_left_on() -> None:
    """Without gRPC's event listener one flooding connection stops all others, so no import turns it
    off."""
    program = (
        "import os\n"
        "import lstmserve.cli.serve, lstmserve.server.server\n"
        "print(os.environ.get('GRPC_EXPERIMENTS'))\n"
    )
    given = environment()
    given.pop("GRPC_EXPERIMENTS", None)
    printed = subprocess.check_output([sys.executable, "-c", program], env=given, text=True)
    assert printed.strip() == "None"
