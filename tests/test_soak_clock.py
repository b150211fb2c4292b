"""The short form of a wall clock that jumps; `make soak` runs the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from soak import clock
from soak.crowd import Mode


@pytest.mark.parametrize("mode", ["through", "behind"])
def test_a_clock_that_jumps_ends_no_session(mode: Mode, tmp_path: Path) -> None:
    """A day forward past every ttl, and back, with kills: all sessions step on, stored, bit for
    bit."""
    found = clock.run(tmp_path / "proof", mode, jumps=2, sessions=20)
    print(found.figures())
    found.check()
