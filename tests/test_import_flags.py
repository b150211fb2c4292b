"""Flags of `lstmserve import` become a Request, or one line that says their form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lstmserve_export import import_run
from lstmserve_export.import_cli import import_command
from lstmserve_export.refusal import Refused


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The flags that the command got."""
    found: dict[str, Any] = {}

    def run(file: Path, **flags: Any) -> None:
        found.update(flags, file=file)
        raise Refused("enough")

    monkeypatch.setattr(import_run, "run", run)
    return found


AXES: dict[str, tuple[list[str], dict[str, int | None]]] = {
    "commas": (["x=0,h=1"], {"x": 0, "h": 1}),
    "several times": (["x=0", "h=none"], {"x": 0, "h": None}),
    "none alone": (["none"], {"": None}),
    "a name with =": (["a=b=2"], {"a=b": 2}),
    "nothing": ([], {}),
}


@pytest.mark.parametrize("name", AXES)
def test_axes_of_a_batch(name: str, given: dict[str, Any]) -> None:
    """One flag has all axes that a note proposes, or each axis has its own."""
    texts, wanted = AXES[name]
    args = [part for each in texts for part in ("--batch-axis", each)]
    CliRunner().invoke(import_command, [__file__, *args])
    assert given["batch_axis"] == wanted


FORMS = {
    "--batch-axis x": "'x' must be NAME=AXIS, NAME=none or none",
    "--batch-axis x=-1": "x=-1 must be an axis from 0, or none",
    "--batch-axis x=0,x=1": "x is given twice: give it once",
    "--constant sr": "'sr' must be NAME=VALUE",
    "--state h": "'h' must be IN:OUT, an input and an output of the file",
    "--window-fill zeros": "--window-fill needs --window W",
}


@pytest.mark.parametrize("flags", FORMS)
def test_a_flag_of_another_form(flags: str, given: dict[str, Any]) -> None:
    """The command ends with 2 and says the form; nothing is imported."""
    done = CliRunner().invoke(import_command, [__file__, *flags.split()])
    assert done.exit_code == 2
    assert FORMS[flags] in done.output
    assert not given
