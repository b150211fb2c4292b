"""docs/GUARANTEES.md: each promise is one sentence, and names tests and proofs that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving import ROOT
from soak.__main__ import PAGE, PROOFS, ROW, START

TESTS = Path(__file__).parent
END_OF_PROMISES = "\n## Not promised\n"
HEADER = "| promise | tests | proofs |\n|---|---|---|\n"
PROMISE = re.compile(r"^- \*\*(?P<name>[^*]+)\.\*\* (?P<text>.*?)(?=\n- |\n\n|\n\Z)", re.M | re.S)
TEST = re.compile(r"test_[a-z0-9_*]+\.py|simulation/")


def promises(page: str) -> list[tuple[str, str]]:
    """Name and sentence of each promise, in the page's order."""
    _, _, after_words = page.partition("\n## ")
    before, end, _ = after_words.partition(END_OF_PROMISES)
    assert end
    return [(match["name"], " ".join(match["text"].split())) for match in PROMISE.finditer(before)]


def rows(page: str) -> list[tuple[str, list[str], list[str]]]:
    """Name, tests and proofs of each row of the table, in the page's order."""
    _, header, table = page.partition(HEADER)
    assert header
    cells = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in table.partition("\n\n")[0].splitlines()
    ]
    codes = re.compile(r"`([^`]+)`")
    return [(name, codes.findall(tests), codes.findall(proofs)) for name, tests, proofs in cells]


def has_tests(name: str) -> bool:
    """Whether a file of tests, one of a pattern's files or a folder of them has that name."""
    paths = [TESTS / name] if name.endswith("/") else TESTS.glob(name)
    files = [
        file for path in paths for file in (path.glob("test_*.py") if path.is_dir() else [path])
    ]
    return any(re.search(r"^(async )?def test_", file.read_text(), re.M) for file in files)


def faults(page: str) -> Iterator[str]:
    """What is wrong with the page's promises and with the table of their tests and proofs."""
    promised, table = promises(page), rows(page)
    if [name for name, _ in promised] != [name for name, _, _ in table]:
        yield "the table does not have the promises, each once and in their order"
    if len({name for name, _ in promised}) != len(promised):
        yield "two promises have one name"
    for name, sentence in promised:
        if not sentence.endswith(".") or re.search(r"[.!?] [A-Z]", sentence):
            yield f"not one sentence: {name}"
    for name, tests, proofs in table:
        if not tests:
            yield f"no test holds it: {name}"
        yield from (f"no such test: {each}" for each in tests if not TEST.fullmatch(each))
        yield from (f"no such test: {each}" for each in tests if not has_tests(each))
        yield from (f"no such proof: {each}" for each in proofs if each not in PROOFS)
    used = {proof for _, _, proofs in table for proof in proofs}
    yield from (f"no promise has the proof {each}" for each in PROOFS if each not in used)


def test_every_promise_names_tests_and_proofs_that_exist() -> None:
    """Each promise is one sentence with one row in the table, whose tests and proofs exist."""
    page = PAGE.read_text()
    assert len(promises(page)) > 50
    assert list(faults(page)) == []


FIRST = "`test_oracle.py`, `test_onnxruntime_facts.py`"


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (lambda page: page.replace("`test_oracle.py`", "`test_oracles.py`"), "no such test"),
        (lambda page: page.replace(FIRST, ""), "no test holds it: Batching"),
        (lambda page: page.replace("`simulation/`", "`simulations/`"), "no such test"),
        (lambda page: page.replace("`amnesia`", "`amnesiac`"), "no such proof: amnesiac"),
        (lambda page: page.replace("`rescale`", ""), "no promise has the proof rescale"),
        (lambda page: re.sub(r"\| Tenants \|.*\n", "", page), "the table does not have"),
        (lambda page: re.sub(r"- \*\*Tenants\.\*\*", "-", page), "the table does not have"),
        (lambda page: page.replace("**Tenants.** ", "**Tenants.** So. "), "not one sentence"),
    ],
    ids=["test", "no-test", "folder", "proof", "unused-proof", "no-row", "no-promise", "sentences"],
)
def test_a_planted_fault_is_found(plant: Callable[[str], str], fault: str) -> None:
    """A row with a missing test or proof, a promise without a row, and two sentences are faults."""
    page = PAGE.read_text()
    planted = plant(page)
    assert planted != page
    assert any(each.startswith(fault) for each in faults(planted)), list(faults(planted))


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
