"""docs/GUARANTEES.md names proofs that exist: its tests, and a figure of every long proof."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from serving import ROOT
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


def test_the_proofs_can_be_listed() -> None:
    """`python -m soak`, as the page has it, works in a checkout, and its help names all proofs."""
    command = [sys.executable, "-m", "soak", "--help"]
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=True)
    assert [name for name in PROOFS if name not in "".join(done.stdout.split())] == []
