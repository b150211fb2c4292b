"""The short form of servers that come and go; `make soak` runs the long one."""

from __future__ import annotations

from pathlib import Path

from soak import rescale


def test_a_rescale_moves_the_new_servers_share_alone(tmp_path: Path) -> None:
    """With 4 servers, then 5, and 4 again, under load, states follow, and no call fails."""
    found = rescale.run(tmp_path, times=1, sessions=100)
    print(found.figures())
    found.check()
