"""docs/GUARANTEES.md names proofs that exist: its tests, and a figure of every long proof."""

from __future__ import annotations

import re
from pathlib import Path

from soak.__main__ import PAGE, PROOFS, ROW, START

TESTS = Path(__file__).parent


def test_every_promise_names_tests_that_exist() -> None:
    """Each row of a promise has at least one test, and every name in it is a file's."""
    rows = [line for line in PAGE.read_text().splitlines() if re.match(r"\| [A-Z]", line)]
    assert len(rows) > 10
    for row in rows:
        names = re.findall(r"`(test_[a-z0-9_*]+\.py|simulation/)`", row)
        assert names, row
        for name in names:
            assert list(TESTS.glob(name)), name


def test_every_proof_has_its_figure() -> None:
    """The table has one row for each proof that `make soak` runs."""
    _, _, table = PAGE.read_text().partition(START)
    assert [match["name"] for match in ROW.finditer(table)] == list(PROOFS)
