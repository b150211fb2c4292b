"""The textbook's LSTM in numpy compared with torch's, and docs/lstm.md run on a real server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from examples.serving import serve
from examples.textbook.lstm import Cell, run

PAGE = Path(__file__).parents[1] / "docs" / "lstm.md"
SETUP = "Models to look at"
SECTIONS = ("The gates, step by step", "Shapes", "A long memory")
Blocks = list[tuple[int, str]]


def read_blocks(page: Path) -> dict[str, Blocks]:
    """The page's Python by heading: (line of the page, code)."""
    blocks: dict[str, Blocks] = {}
    heading, start = "", 0
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line == "```python":
            start = number
            blocks.setdefault(heading, []).append((number, ""))
        elif line == "```":
            start = 0
        elif start:
            blocks[heading][-1] = (start, blocks[heading][-1][1] + line + "\n")
    return blocks


def run_block(block: tuple[int, str], target: str, names: dict[str, Any]) -> None:
    """Runs one block, with its Client() on `target`; a traceback names the page's line."""
    line, code = block
    code = re.sub(r"\bClient\(\)", f"Client({target!r})", code)
    exec(compile("\n" * line + code, str(PAGE), "exec"), names)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, Any]]]:
    """A server of the page's models, and the names that its export blocks left."""
    *exports, _ = read_blocks(PAGE)[SETUP]
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        for block in exports:
            run_block(block, "", names)
        models = Path("models").resolve()
    with serve(models) as server:
        yield server.target, names


def cell_of(lstm: nn.LSTM) -> Cell:
    """The first layer of a torch LSTM as the textbook's cell, in float64."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    return Cell(*(getattr(lstm, name).detach().double().numpy() for name in names))


def test_the_textbook_is_torch() -> None:
    """f, i, g, o, c and h by numpy in torch's gate order give torch's float64 h and c."""
    torch.manual_seed(3)
    lstm = nn.LSTM(5, 10).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    with torch.inference_mode():
        out, (_, c) = lstm(x)
    trace = run(cell_of(lstm), x.numpy())
    np.testing.assert_allclose(trace.h, out.numpy(), rtol=0, atol=1e-14)
    np.testing.assert_allclose(trace.c[-1], c[0].numpy(), rtol=0, atol=1e-14)


def test_no_block_of_the_page_is_left_out() -> None:
    """Every heading of docs/lstm.md that has code is run by a test here."""
    assert set(read_blocks(PAGE)) == {SETUP, *SECTIONS}


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_is_right(section: str, served: tuple[str, dict[str, Any]]) -> None:
    """The section's code runs as printed against a real server, and its assertions hold."""
    target, names = served
    names = dict(names)
    blocks = read_blocks(PAGE)
    run_block(blocks[SETUP][-1], target, names)
    with names["client"]:
        for block in blocks[section]:
            run_block(block, target, names)
