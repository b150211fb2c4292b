"""The alert rules: they are valid, each one fires and does not fire in a test, and has a
runbook."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lstmserve.server.observe.metrics import WATCHED_CODES
from monitoring import FOLDER, promtool
from serving import ROOT

ALERTS = re.findall(r"- alert: (\w+)", (FOLDER / "rules/alerts.yml").read_text())
TESTS = sorted((FOLDER / "tests").glob("*.yml"))
PAGE = ROOT / "docs/MONITORING.md"


def test_the_configuration_is_valid() -> None:
    """promtool accepts the configuration and its rules."""
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should(path: Path) -> None:
    """The tests in deploy/prometheus/tests pass."""
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_explained() -> None:
    """Each alert is expected to fire in a promtool test, and names its entry in the runbook."""
    tests = "".join(path.read_text() for path in TESTS)
    rules = (FOLDER / "rules/alerts.yml").read_text()
    headings = re.findall(r"^### (\w+)$", PAGE.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(ALERTS)
    for alert in ALERTS:
        assert f'alertname="{alert}"' in tests
        assert f"runbook: docs/MONITORING.md#{alert.lower()}\n" in rules


def test_the_goal_s_codes_are_shown_from_the_start() -> None:
    """A new server shows every code that the recording rules count as bad, before it occurs."""
    rules = (FOLDER / "rules/recording.yml").read_text()
    assert set(re.findall(r'code=~"([^"]+)"', rules)) == {"|".join(WATCHED_CODES[1:])}
