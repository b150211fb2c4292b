"""Every refusal that docs/EXPORT.md lists: one line, exit code 1, nothing written, nothing run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from exporting import Net, refused, save
from hostile import ROWS
from hostile_modules import ROWS as MODULE_ROWS
from test_export_golden import ROWS as GOLDEN_ROWS
from test_export_scalers import ROWS as SCALER_ROWS
from test_windows_export import ROWS as WINDOW_ROWS

# The rows whose file is damaged, or may be; no other refusal may say so.
DAMAGED = (
    "a file cut short",
    "a flipped bit",
    "a storage missing in the archive",
    "entries larger than the file (overlapping)",
    "safetensors cut short or with a false header",
    "a pickled dict of arrays cut short",
    "an .npz of objects, which would be unpickled",
    "two entries of one name in an archive",
    "a weight beyond 1e8",
)
DOC = Path(__file__).parent.parent / "docs" / "EXPORT.md"


@pytest.mark.parametrize("label", ROWS)
def test_each_is_refused_with_what_to_do(tmp_path: Path, label: str) -> None:
    """`refused` asserts exit code 1, one line on stderr, an empty stdout and no models folder."""
    says, maker = ROWS[label]
    checkpoint, flags = maker(tmp_path)
    line = refused(checkpoint, *flags)
    assert says in line
    assert ("copy or save it again" in line) == (label in DAMAGED)
    assert "weights_only" not in line  # torch's own message advises to switch it off
    assert not (tmp_path / "sprung").exists()


def test_the_documented_rows_are_the_tested_rows() -> None:
    """The documented rows and the tested rows are the same."""
    rows = re.findall(r"^\| (.+?) \| `(.+)` \|$", DOC.read_text(), re.MULTILINE)
    tested = {
        label: says
        for label, (says, _) in (
            ROWS | GOLDEN_ROWS | MODULE_ROWS | SCALER_ROWS | WINDOW_ROWS
        ).items()
    }
    assert dict(rows) == tested
    assert len(rows) == len(tested)


def test_the_trap_springs_where_it_is_not_refused(tmp_path: Path) -> None:
    """The hostile pickle is real, because torch.load without weights_only runs it."""
    checkpoint, _ = ROWS["a pickle that runs a command"][1](tmp_path)
    torch.load(checkpoint, weights_only=False)
    assert (tmp_path / "sprung").is_dir()


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """A tensor's name may hold escape sequences and line feeds, and the refusal escapes them."""
    tensors = {**Net().state_dict(), "evil\x1b[2J\nname": torch.zeros(2)}
    line = refused(save(tensors, tmp_path / "net.pt"))
    assert "evil\\x1b[2J\\nname" in line


def test_a_long_list_of_names_is_cut(tmp_path: Path) -> None:
    """A thousand unknown tensors do not give a thousand names."""
    tensors = {**Net().state_dict(), **{f"block.{i}": torch.zeros(2) for i in range(1000)}}
    line = refused(save(tensors, tmp_path / "net.pt"))
    assert "block.7 and 992 more" in line
    assert "block.8" not in line


def test_real_programs_of_torch_are_refused(tmp_path: Path) -> None:
    """What torch.export really writes is refused like the outline in the table."""
    program = torch.export.export(torch.nn.Linear(2, 3), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "net.pt2")
    assert "is a .pt2 program" in refused(tmp_path / "net.pt2")
