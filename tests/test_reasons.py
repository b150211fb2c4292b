"""The table of reasons against the contract's file, which publishes their meaning."""

import re
from pathlib import Path

from lstmserve.reasons import REASONS

PROTO = Path(__file__).parent.parent / "proto/lstmserve/v1/error_reason.proto"
LINE = re.compile(r"ERROR_REASON_(\w+) = \d+; // ([A-Z_]+)( [NA]\b)?")


def test_reasons_are_those_of_the_contract() -> None:
    """Every reason of the .proto has the code and the N or A mark that its comment publishes."""
    marks = {" N": False, " A": True, "": None}
    published = {
        name: (code, marks[mark or ""]) for name, code, mark in LINE.findall(PROTO.read_text())
    }
    assert len(published) == 43
    assert {name: (r.code.name, r.applied) for name, r in REASONS.items()} == published
