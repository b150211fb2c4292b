"""The short form of clients that freeze, go deaf or die; `make soak` runs the long one."""

from __future__ import annotations

from pathlib import Path

from soak import peers


def test_peers_that_are_gone_harm_nobody(tmp_path: Path) -> None:
    """The server lets go of them in time, and another client steps their sessions."""
    found = peers.run(tmp_path, rounds=1, each=1, phase_s=2, is_short=True)
    print(found.figures())
    found.check()
