"""The short form of floods of frames; `make soak` runs the long one, of more kinds."""

from __future__ import annotations

from pathlib import Path

from soak import flood


def test_a_flood_of_frames_stops_nobody_else(tmp_path: Path) -> None:
    """Beside floods of SETTINGS, PING and WINDOW_UPDATE, plain and TLS, every step and health call
    ends."""
    found = flood.run(tmp_path, seconds=2)
    print(found.figures())
    found.check()
