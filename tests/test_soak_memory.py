"""The short form of the floods of long messages; `make soak` runs every form."""

from __future__ import annotations

from pathlib import Path

import pytest

from soak import memory


@pytest.mark.parametrize("form", ["Step", "StepStream", "repeats"])
def test_a_flood_of_long_messages_stays_within_the_formula(tmp_path: Path, form: str) -> None:
    """Resident memory stays below pool + 300 MB + K x pending-bytes-max, and is given back."""
    found = memory.run(tmp_path, seconds=4, forms=(form,))
    print(found.figures())
    found.check()
