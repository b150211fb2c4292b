"""--golden: the user's own pairs are proved, kept, and refused with what would make them match."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exporting import HIDDEN, INPUTS, OUTPUTS, Net, exported, models_of, refused, rows, save

Arrays = dict[str, np.ndarray[Any, Any]]
Edit = Callable[[Arrays], Arrays]


@torch.no_grad()
def pairs(net: Net, activation: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> Arrays:
    """x and y of the user's forward(), an activation before the head."""
    x = rows()
    out, (hn, cn) = net.lstm(torch.from_numpy(x).transpose(0, 1))
    y = net.fc(activation(out)).transpose(0, 1).numpy()
    return {"x": x, "y": y, "hn": hn.numpy(), "cn": cn.numpy()}


def export_with(folder: Path, net: nn.Module, arrays: Arrays) -> tuple[Path, list[str]]:
    """The checkpoint and the flags."""
    np.savez(folder / "pairs.npz", **arrays)
    path = save(net.state_dict(), folder / "net.pt")
    return path, ["--golden", str(folder / "pairs.npz")]


GOOD: dict[str, Edit] = {
    "whole": lambda a: a,
    "without state": lambda a: {"x": a["x"], "y": a["y"]},
    "last time step": lambda a: {"x": a["x"], "y": a["y"][:, -1]},
    "float64": lambda a: {k: v.astype(np.float64) for k, v in a.items()},
    "zero state given": lambda a: {
        **a,
        "h0": np.zeros((1, 4, HIDDEN), np.float32),
        "c0": np.zeros((1, 4, HIDDEN), np.float32),
    },
    "lengths, NaN as padding": lambda a: padded(a),
}


def padded(arrays: Arrays) -> Arrays:
    """Only the first rows of each sequence count."""
    lengths = np.array([9, 1, 4, 7])
    past = np.arange(9) >= lengths[:, None]
    return {
        "lengths": lengths,
        **{k: np.where(past[:, :, None], np.nan, arrays[k]).astype(np.float32) for k in "xy"},
    }


@pytest.mark.parametrize("edit", GOOD.values(), ids=GOOD)
def test_good_pairs_pass_and_are_kept(tmp_path: Path, edit: Edit) -> None:
    """golden.npz then has them beside the export's own, and the manifest says how close."""
    net = Net()
    path, flags = export_with(tmp_path, net, edit(pairs(net)))
    files = exported(path, *flags)
    assert sorted(files.golden) == ["parity", "user"]
    assert 0 <= files.manifest.parity["excess"]["user"] <= 1
    assert files.golden["user"].outputs["y"].shape[-1] == OUTPUTS
    assert np.isfinite(files.golden["user"].outputs["y"]).all()


def test_pairs_of_tokens(tmp_path: Path) -> None:
    """A model with an embedding takes tokens in place of x."""
    net = Net()
    net.embed = nn.Embedding(7, INPUTS)
    tokens = np.random.default_rng(0).integers(0, 7, (3, 6))
    with torch.no_grad():
        y = net.fc(net.lstm(net.embed(torch.from_numpy(tokens).T))[0]).transpose(0, 1).numpy()
    path, flags = export_with(tmp_path, net, {"tokens": tokens, "y": y})
    files = exported(path, *flags, "--embedding", "embed")
    assert files.golden["user"].inputs["tokens"].dtype == np.int64


def test_a_foreign_order_of_gates_is_caught(tmp_path: Path) -> None:
    """Same names and shapes, other order: only the user's pairs can tell."""
    net = Net()
    arrays = pairs(net)
    with torch.no_grad():
        for parameter in net.lstm.parameters():
            i, f, g, o = parameter.chunk(4)
            parameter.copy_(torch.cat([i, g, f, o]))
    path, flags = export_with(tmp_path, net, arrays)
    assert "is not your forward()" in refused(path, *flags)


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid"])
def test_a_forgotten_activation_is_named(tmp_path: Path, name: str) -> None:
    """The refusal says what would match, and with that flag it does."""
    net = Net()
    arrays = pairs(net, getattr(torch, name))
    del arrays["hn"], arrays["cn"]
    path, flags = export_with(tmp_path, net, arrays)
    assert f"with {name} before the head (--pre-head) it would match" in refused(path, *flags)
    if name != "sigmoid":
        assert exported(path, *flags, "--pre-head", name).manifest.lstm.head[0] == name


def test_time_major_pairs_are_named(tmp_path: Path) -> None:
    """x and y as nn.LSTM has them without batch_first."""
    net = Net()
    arrays = {k: v.swapaxes(0, 1) for k, v in pairs(net).items() if k in "xy"}
    path, flags = export_with(tmp_path, net, arrays)
    assert "x and y are time-major" in refused(path, *flags)


ROWS: dict[str, tuple[str, Edit]] = {
    "--golden that is no .npz of arrays": ("is no .npz of plain arrays", dict),
    "pairs with other arrays": ("unknown arrays z", lambda a: {**a, "z": a["x"]}),
    "pairs without x (or tokens) or y": ("the file has no array y", lambda a: {"x": a["x"]}),
    "more than 64 sequences or 10,000 rows": (
        "N x T in [1, 10000]",
        lambda a: {**a, "x": np.zeros((2, 5001, INPUTS))},
    ),
    "pairs of other shapes": (
        "y is [4, 9, 2], must be [4, 9, 3] or [4, 3]",
        lambda a: {**a, "y": a["y"][:, :, :2]},
    ),
    "pairs with NaN or infinity": (
        "x has NaN or infinite values",
        lambda a: {**a, "x": a["x"] * np.nan},
    ),
    "pairs of text or objects": (
        "y is <U32, must be numbers",
        lambda a: {**a, "y": a["y"].astype("U")},
    ),
    "lengths outside [1, T]": (
        "lengths must be integers in [1, 9]",
        lambda a: {**a, "lengths": np.array([9, 9, 9, 10])},
    ),
    "pairs that are not what the model gives": (
        "the exported model is not your forward()",
        lambda a: {**a, "y": a["y"] + 0.01},
    ),
}


@pytest.mark.parametrize(("says", "edit"), ROWS.values(), ids=ROWS)
def test_bad_pairs_are_refused(tmp_path: Path, says: str, edit: Edit) -> None:
    """One line, exit 1, nothing written."""
    net = Net()
    path, flags = export_with(tmp_path, net, edit(pairs(net)))
    if edit is dict:
        (tmp_path / "pairs.npz").write_bytes(b"no zip")
    assert says in refused(path, *flags)
    assert not models_of(path).exists()
