"""--golden: the user's own pairs are proved and kept, or refused with what would make them
match."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exporting import HIDDEN, INPUTS, OUTPUTS, Net, exported, models_of, refused, rows, save
from lstmserve_export.sequences import LENGTHS

Arrays = dict[str, np.ndarray[Any, Any]]
Edit = Callable[[Arrays], Arrays]


@torch.no_grad()
def pairs(net: Net, activation: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> Arrays:
    """x and y of the user's forward(), with an activation before the head."""
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
    "one sequence": lambda a: one(a),
    "one sequence, last time step": lambda a: {"x": one(a)["x"], "y": one(a)["y"][-1]},
    "one sequence with its states": lambda a: {
        **one(a),
        "h0": np.zeros((1, HIDDEN), np.float32),
        "c0": np.zeros((1, HIDDEN), np.float32),
    },
    "one sequence beside states of a batch": lambda a: {**one(a), "hn": a["hn"][:, 1:2]},
    "one sequence with NaN as padding": lambda a: {
        "x": np.concatenate([one(a)["x"], np.full((2, INPUTS), np.nan)]),
        "y": np.concatenate([one(a)["y"], np.full((2, OUTPUTS), np.nan)]),
        "lengths": np.array(9),
    },
}


def one(arrays: Arrays) -> Arrays:
    """The second sequence, as forward() takes and gives it without a batch."""
    return {
        name: array[:, 1] if name in ("hn", "cn") else array[1] for name, array in arrays.items()
    }


def padded(arrays: Arrays) -> Arrays:
    """Pairs whose sequences have padding after their first rows."""
    lengths = np.array([9, 1, 4, 7])
    past = np.arange(9) >= lengths[:, None]
    return {
        "lengths": lengths,
        **{k: np.where(past[:, :, None], np.nan, arrays[k]).astype(np.float32) for k in "xy"},
    }


@pytest.mark.parametrize("edit", GOOD.values(), ids=GOOD)
def test_good_pairs_pass_and_are_kept(tmp_path: Path, edit: Edit) -> None:
    """golden.npz then has them beside the export's own, and the manifest says how close they
    are."""
    net = Net()
    path, flags = export_with(tmp_path, net, edit(pairs(net)))
    files = exported(path, *flags)
    assert sorted(files.golden) == ["parity", "user"]
    assert 0 <= files.manifest.parity["excess"]["user"] <= 1
    assert files.golden["user"].outputs["y"].shape[-1] == OUTPUTS
    assert len(files.golden["user"].lengths) in (1, 4)
    assert np.isfinite(files.golden["user"].outputs["y"]).all()


@pytest.mark.parametrize("is_one", [False, True], ids=["several", "one sequence"])
def test_pairs_of_tokens(tmp_path: Path, is_one: bool) -> None:
    """A model with an embedding takes tokens in place of x."""
    net = Net()
    net.embed = nn.Embedding(7, INPUTS)
    tokens = np.random.default_rng(0).integers(0, 7, (3, 6))
    with torch.no_grad():
        y = net.fc(net.lstm(net.embed(torch.from_numpy(tokens).T))[0]).transpose(0, 1).numpy()
    arrays = {"tokens": tokens, "y": y}
    path, flags = export_with(tmp_path, net, one(arrays) if is_one else arrays)
    files = exported(path, *flags, "--embedding", "embed")
    assert files.golden["user"].inputs["tokens"].dtype == np.int64


def test_a_foreign_order_of_gates_is_caught(tmp_path: Path) -> None:
    """Only the user's pairs show another order of gates with the same names and shapes."""
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


def test_a_residual_is_named(tmp_path: Path) -> None:
    """The refusal names the columns of x that forward() adds to y."""
    net = Net()
    arrays = pairs(net)
    arrays["y"] += arrays["x"][..., [3, 0, 3]]
    path, flags = export_with(tmp_path, net, arrays)
    assert "; with --residual 3,0,3 it would match: forward() adds x" in refused(path, *flags)
    last = {"x": arrays["x"], "y": arrays["y"][:, -1]}
    path, flags = export_with(tmp_path, net, last)
    assert "; with --residual 3,0,3 it would match" in refused(path, *flags)


def test_a_residual_beside_scales_is_named(tmp_path: Path) -> None:
    """The residual is of x as the LSTM reads it, and comes before the scale of y."""
    net = Net()
    mean, scale = np.arange(INPUTS) - 2.0, np.arange(INPUTS) + 0.5
    x = rows()
    read = torch.from_numpy(((x - mean) / scale).astype(np.float32))
    with torch.no_grad():
        inner = net.fc(net.lstm(read.transpose(0, 1))[0]).transpose(0, 1) + read[..., 1:4]
    path, flags = export_with(tmp_path, net, {"x": x, "y": inner.numpy() * 3 + 5})
    for name, values in (("input-mean", mean), ("input-scale", scale)):
        np.savetxt(tmp_path / name, values)
        flags += [f"--{name}", str(tmp_path / name)]
    np.savetxt(tmp_path / "m", np.full(OUTPUTS, 5))
    np.savetxt(tmp_path / "s", np.full(OUTPUTS, 3))
    flags += ["--output-mean", str(tmp_path / "m"), "--output-scale", str(tmp_path / "s")]
    assert "; with --residual 1,2,3 it would match" in refused(path, *flags)


@torch.no_grad()
def started(net: Net, count: int, length: int, *, is_shared: bool) -> Arrays:
    """Pairs of a forward() that begins from a state other than zeros, which are in them too."""
    x, generator = rows(count, length), torch.Generator().manual_seed(4)
    h0, c0 = (
        torch.rand((1, 1 if is_shared else count, HIDDEN), generator=generator) * 1.6 - 0.8
        for _ in "hc"
    )
    state = tuple(each.expand(1, count, HIDDEN).contiguous() for each in (h0, c0))
    y = net.fc(net.lstm(torch.from_numpy(x).transpose(0, 1), state)[0]).transpose(0, 1)
    return {"x": x, "y": y.numpy(), "h0": state[0].numpy(), "c0": state[1].numpy()}


@pytest.mark.parametrize(
    ("count", "length", "is_shared", "says"),
    [
        (4, 9, True, "; with another initial state, the same for every sequence, it would match"),
        (2, 16, False, "; with another initial state it would match: if the rows continue a"),
        (1, 16, True, "; with another initial state it would match: if the rows continue a"),
        (2, 90, False, "; the first rows differ and the last ones match"),
    ],
)
def test_a_start_from_another_state_is_named(
    tmp_path: Path, count: int, length: int, is_shared: bool, says: str
) -> None:
    """The refusal says that forward() begins from a learned state, or from one that the pairs
    lack; the flag and the arrays for it are named."""
    net = Net()
    arrays = started(net, count, length, is_shared=is_shared)
    del arrays["h0"], arrays["c0"]
    path, flags = export_with(tmp_path, net, arrays)
    line = refused(path, *flags)
    assert says in line
    assert "--initial-state" in line


@pytest.mark.parametrize(
    ("length", "says"),
    [
        (12, "; with --residual 0,1,2 and another initial state, the same for every sequence, it"),
        (90, "; with --residual 0,1,2 the first rows differ and the last ones match"),
    ],
)
def test_a_residual_and_a_start_are_named_together(tmp_path: Path, length: int, says: str) -> None:
    """Two changes at once are found if one is a residual."""
    net = Net()
    arrays = started(net, 4, length, is_shared=True)
    arrays["y"] += arrays["x"][..., :3]
    del arrays["h0"], arrays["c0"]
    path, flags = export_with(tmp_path, net, arrays)
    assert says in refused(path, *flags)


@pytest.mark.parametrize("is_shared", [True, False])
def test_pairs_from_a_state_are_noted(tmp_path: Path, is_shared: bool) -> None:
    """Pairs may begin from any state, but a new session does not, and a note says so; it does not
    where the model has that initial state."""
    net = Net()
    arrays = started(net, 3, 9, is_shared=is_shared)
    path, flags = export_with(tmp_path, net, arrays)
    (note,) = exported(path, *flags).manifest.notes
    same = ", the same in every sequence," if is_shared else ""
    says = f"your pairs begin from h0 and c0{same} but a new session begins from "
    assert note.startswith(
        f"{says}zeros: if forward() has a learned initial state, give it with --"
    )
    np.savez(tmp_path / "first.npz", h0=arrays["h0"][:, 0], c0=arrays["c0"][:, 0])
    learned = ("--initial-state", str(tmp_path / "first.npz"), "--force", "--model-version", "1")
    notes = exported(path, *flags, *learned).manifest.notes
    assert [note.startswith(f"{says}the model's own") for note in notes] == [True] * (not is_shared)


def test_pairs_decide_where_noise_is_chaos(tmp_path: Path) -> None:
    """Of a network that amplifies rounding on random rows, but not on the user's, the user's rows
    are checked in full length, half of them from the middle of a sequence, and a note says so."""
    net = Net()
    with torch.no_grad():
        net.lstm.weight_hh_l0.mul_(30)
    net.eval()
    short = exported(save(net.state_dict(), tmp_path / "noise.pt")).golden["parity"]
    assert short.lengths.max() < LENGTHS[0]
    x = rows(3, 80) * 30
    with torch.no_grad():
        y = net.fc(net.lstm(torch.from_numpy(x).transpose(0, 1))[0]).transpose(0, 1).numpy()
    path, flags = export_with(tmp_path, net, {"x": x, "y": y})
    files = exported(path, *flags)
    case = files.golden["parity"]
    assert tuple(case.lengths) == LENGTHS
    assert case.initial["h"].any(axis=(1, 2)).tolist() == [False, True] * 4
    for n, (rows_, length) in enumerate(zip(case.inputs["x"], LENGTHS, strict=True)):
        windows = np.lib.stride_tricks.sliding_window_view(x[n % 3], length, axis=0).swapaxes(1, 2)
        assert (windows == rows_[:length]).all(axis=(1, 2)).any()
    (note,) = files.manifest.notes
    assert note.startswith("torch's own float32 is off by ")
    assert note.endswith("the export checked single steps, chunks and batches on yours")


def test_pairs_decide_where_even_a_row_of_noise_is_chaos(tmp_path: Path) -> None:
    """A network whose answers to random rows mean nothing is exported with pairs on which they
    do, and refused without."""
    net = Net()
    with torch.no_grad():
        # Two units of almost equal values that depend on x[0] alone, which the user's x lacks.
        for tensor in net.lstm.parameters():
            tensor.view(4, HIDDEN, -1)[:, :2] = 0
        net.lstm.weight_ih_l0.view(4, HIDDEN, -1)[:, :2, 0] = torch.tensor([1, 1 + 1e-6])
        net.lstm.bias_ih_l0.view(4, HIDDEN)[1, :2] = -1000
        net.fc.weight[:, :2] = torch.tensor([1e7, -1e7])
    x = rows() * (np.arange(INPUTS) > 0).astype(np.float32)
    with torch.no_grad():
        y = net.fc(net.lstm(torch.from_numpy(x).transpose(0, 1))[0]).transpose(0, 1).numpy()
    path, flags = export_with(tmp_path, net, {"x": x, "y": y})
    line = refused(path)
    assert "on a single row" in line
    assert line.endswith("train with smaller ones, or give rows of your own with --golden")
    assert exported(path, *flags).golden["parity"].torch_error < 1e-5


def test_a_named_start_and_a_named_residual_match(tmp_path: Path) -> None:
    """The flags that the refusals name make the pairs match, also together."""
    net = Net()
    arrays = started(net, 4, 12, is_shared=True)
    np.savez(tmp_path / "first.npz", h0=arrays.pop("h0")[:, 0], c0=arrays.pop("c0")[:, 0])
    arrays["y"] += arrays["x"][..., [4, 0, 4]]
    path, flags = export_with(tmp_path, net, arrays)
    first = ("--initial-state", str(tmp_path / "first.npz"))
    assert "; with --residual 4,0,4 it would match" in refused(path, *flags, *first)
    assert "; with --residual 4,0,4 it would match" in refused(
        path, *flags, *first, "--residual", "0,1,2"
    )
    files = exported(path, *flags, *first, "--residual", "4,0,4")
    assert files.manifest.lstm.residual == (4, 0, 4)
    assert files.manifest.notes == ()


def test_time_major_pairs_are_named(tmp_path: Path) -> None:
    """The refusal names x and y in nn.LSTM's order without batch_first."""
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
    "x with its features ahead of time": (
        "x is [4, 5, 9], must be [N, T, 5], or [T, 5] for one sequence: move the axis of 5 to",
        lambda a: {**a, "x": a["x"].swapaxes(1, 2)},
    ),
    "x without an axis of features": (
        "x is [9], must be [N, T, 5], or [T, 5] for one sequence",
        lambda a: {**a, "x": a["x"][0, :, 0]},
    ),
    "one sequence with y of other shapes": (
        "y is [3, 9], must be [9, 3] or [3]: swap its axes",
        lambda a: {"x": a["x"][0], "y": a["y"][0].T},
    ),
    "one sequence with a state of another size": (
        "h0 is [1, 7], must be [1, 8]",
        lambda a: {**one(a), "h0": np.zeros((1, 7))},
    ),
    "states with the sequences first": (
        "hn is [4, 1, 8], must be [1, 4, 8]: swap its axes",
        lambda a: {**a, "hn": a["hn"].swapaxes(0, 1)},
    ),
    "time-major x beside y of the last time step": (
        "beside y, x is time-major: store it as [N, T, ...]",
        lambda a: {"x": a["x"].swapaxes(0, 1), "y": a["y"][:, -1]},
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
    """Bad pairs give one line and exit code 1, and nothing is written."""
    net = Net()
    path, flags = export_with(tmp_path, net, edit(pairs(net)))
    if edit is dict:
        (tmp_path / "pairs.npz").write_bytes(b"no zip")
    assert says in refused(path, *flags)
    assert not models_of(path).exists()
