"""The short form of restarts under load; `make soak` runs the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from soak import rolling
from soak.crowd import Kind, Mode


@pytest.mark.parametrize(("mode", "kind"), [("through", "library"), ("behind", "library")])
def test_a_rolling_restart_drops_nothing(mode: Mode, kind: Kind, tmp_path: Path) -> None:
    """SIGTERM of three servers under 200 clients gives only UNAVAILABLE, and no step counts
    twice."""
    found = rolling.run(tmp_path, mode, kind, clients=200, restarts=3)
    print(found.figures())
    found.check()
