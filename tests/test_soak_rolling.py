"""The short form of restarts under load; `make soak` runs the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from soak import rolling


@pytest.mark.parametrize("mode", ["through", "behind"])
def test_a_rolling_restart_drops_nothing(mode: str, tmp_path: Path) -> None:
    """SIGTERM of three servers under 200 clients: nothing but UNAVAILABLE, and nothing twice."""
    found = rolling.run(tmp_path, mode, clients=200, restarts=3)
    print(found.figures())
    found.check()
