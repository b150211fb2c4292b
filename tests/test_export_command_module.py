"""`lstmserve export --module`: the user's own file is run, filled and handed on, or refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lstmserve_export.command
from exporting import Net as LstmNet
from exporting import exported, models_of, refused, run_export, save
from hostile import ROWS as TENSOR_ROWS
from hostile_modules import HIDDEN, ROWS, STATEFUL, TEXT, WIDTH, Maker, Net, arrays, rows, write
from lstmserve.head_layers import Linear
from lstmserve.manifest import Manifest
from lstmserve.spec import LstmSpec, ModelSpec, Tap, TensorSpec
from lstmserve_export.module.forward import Axes, Forward
from lstmserve_export.refusal import MODULE_WAY
from lstmserve_export.scalers.sides import UNSCALED
from lstmserve_export.target import Exported, Target

NOTICE = "--module runs your own code: "
CONSOLE_SCRIPT = Path(sys.executable).with_name("lstmserve")


SPEC = ModelSpec(
    (TensorSpec("x", (WIDTH,)), TensorSpec("kind", (), "int64")),
    (TensorSpec("y", (3,)),),
    (TensorSpec("gru.h", (1, HIDDEN)),),
)


@dataclass
class Export:
    """Stands for export_module, which takes half a minute: it keeps what it was given."""

    module: nn.Module = field(default_factory=nn.Module)
    example: Mapping[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=lambda: {"is_exact": True})
    spec: ModelSpec = SPEC

    def __call__(
        self, module: nn.Module, example: Mapping[str, Any], target: Target, **options: Any
    ) -> Exported:
        """A manifest as of a network."""
        self.module, self.example, self.options = module, example, options
        forward = Forward(module, example)
        forward(forward.example)  # which may import more of the user's files
        manifest = Manifest(
            name=target.name,
            version=target.choose_version(),
            spec=self.spec,
            fingerprint="",
            sha256={},
            parity={"excess": {"steps": 0.5}, "onnx_error": 1e-7, "torch_error": 2e-7}
            | self.parity,
            notes=("a remark",),
            taps=tuple(
                Tap("rnn", n, "lstm", "x", ("h", "c"), {"W": "w", "R": "r"}) for n in (0, 1)
            ),
        )
        return target.write(manifest, {})


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch) -> Export:
    """The command with an Export in place of the real one."""
    export = Export()
    monkeypatch.setattr(lstmserve_export.command, "export_module", export)
    return export


def lines_of(case: tuple[Path, list[str]]) -> tuple[list[str], list[str]]:
    """Stdout and stderr, line by line, of an export that succeeds."""
    result = run_export(case[0], *case[1])
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines(), result.stderr.splitlines()


@pytest.mark.parametrize(("says", "maker"), ROWS.values(), ids=ROWS)
def test_each_is_refused_with_what_to_do(
    tmp_path: Path, export: Export, says: str, maker: Maker
) -> None:
    """A refusal is one line beside the notice, the exit code is 1, and nothing is written."""
    checkpoint, flags = maker(tmp_path)
    path, arguments = list(sys.path), sys.argv
    result = run_export(checkpoint, *flags)
    assert result.exit_code == 1, result.output
    (line,) = (line for line in result.stderr.splitlines() if not line.startswith(NOTICE))
    assert line.startswith("Error: ")
    assert says in line
    assert result.stdout == ""
    assert not models_of(checkpoint).exists()
    assert export.options == {}
    assert (sys.path, sys.argv) == (path, arguments)


def test_a_module_is_exported_from_its_file_and_its_checkpoint(tmp_path: Path) -> None:
    """The real export streams it, compares it with forward(), and the summary says so."""
    x = np.random.default_rng(0).standard_normal((3, 6, WIDTH)).astype(np.float32)
    net = Net().eval()
    golden = arrays(tmp_path, x=x, y=net(torch.from_numpy(x)).detach().numpy())
    checkpoint, flags = write(tmp_path, golden=golden)
    stdout, stderr = lines_of((checkpoint, flags))
    assert stderr[0] == f"{NOTICE}{tmp_path / 'train.py'}"
    assert "forward() gives what" in stderr[1]
    assert "layers    gru (GRU)" in stdout
    assert "inputs    x [5]" in stdout
    assert "states    gru.h [1, 8]" in stdout
    assert "outputs   y [3]" in stdout
    assert any(line.startswith("parity    ") and "passed" in line for line in stdout)
    assert "exact: no bit depends on the batch or the chunk" in "\n".join(stdout)
    assert stdout[-2].strip() == "Every check compared the model with your own forward()."
    assert stdout[-1].startswith("next      lstmserve serve --models ")


def test_the_weights_of_the_checkpoint_are_loaded(tmp_path: Path, export: Export) -> None:
    """Every tensor is the file's, in eval mode, whatever the constructor made."""
    tensors = {name: part + 1 for name, part in Net().state_dict().items()}
    lines_of(write(tmp_path, content=tensors))
    assert not export.module.training
    assert {n: p.tolist() for n, p in export.module.state_dict().items()} == {
        name: part.tolist() for name, part in tensors.items()
    }


WRAPPED: dict[str, tuple[Callable[[dict[str, Any]], object], list[str]]] = {
    "a dict": (lambda t: {"epoch": 3, "model": t}, ["the weights lie in 'model' of the file"]),
    "DataParallel": (lambda t: {f"module.{name}": part for name, part in t.items()}, []),
    "torch.compile": (lambda t: {f"_orig_mod.{name}": part for name, part in t.items()}, []),
    "a LightningModule": (
        lambda t: {"loss.weight": torch.ones(3), **{f"net.{name}": p for name, p in t.items()}},
        ["the weights lie below 'net' in the file", "Net has no place for loss.weight: left out"],
    ),
    "AveragedModel": (
        lambda t: {"n_averaged": torch.tensor(3), **{f"module.{name}": p for name, p in t.items()}},
        [
            "the weights lie below 'module' in the file",
            "Net has no place for n_averaged: left out",
        ],
    ),
    "two networks of different sizes": (
        lambda t: {"big": Net(9).state_dict(), "small": t},
        [
            "the weights lie below 'small' in the file",
            "Net has no place for big.front.weight, big.front.bias, big.gru.weight_ih_l0, "
            "big.gru.weight_hh_l0, big.gru.bias_ih_l0, big.gru.bias_hh_l0, big.fc.weight, "
            "big.fc.bias: left out",
        ],
    ),
    "bfloat16": (
        lambda t: {name: part.bfloat16() for name, part in t.items()},
        ["weights are bfloat16 in the file, served as float32"],
    ),
}


@pytest.mark.parametrize(("wrap", "notes"), WRAPPED.values(), ids=WRAPPED)
def test_wrappers_are_taken_off(
    tmp_path: Path,
    export: Export,
    wrap: Callable[[dict[str, Any]], object],
    notes: list[str],
) -> None:
    """The module gets its tensors however the file wraps them, and notes say what was left out."""
    tensors = dict(Net().state_dict())
    _, stderr = lines_of(write(tmp_path, content=wrap(tensors)))
    assert [line for line in stderr if line.startswith("note: ")] == [f"note: {n}" for n in notes]
    loaded = export.module.state_dict()["gru.weight_hh_l0"]
    assert torch.allclose(loaded, tensors["gru.weight_hh_l0"], rtol=0.01)


def test_a_modules_own_names_may_look_like_a_wrapper(tmp_path: Path, export: Export) -> None:
    """A layer called `module` is not taken for DataParallel's prefix."""
    text = (
        f"{TEXT}\nclass Wrapped(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.module = Net()\n\n    def forward(self, x):\n        return self.module(x)\n"
    )
    tensors = {f"module.{name}": part for name, part in Net().state_dict().items()}
    lines_of(write(tmp_path, text, "Wrapped", tensors))
    loaded = export.module.state_dict()
    assert torch.equal(loaded["module.fc.weight"], tensors["module.fc.weight"])


def test_names_of_the_file_do_not_control_the_terminal(tmp_path: Path, export: Export) -> None:
    """A note escapes what a tensor's name has besides text."""
    tensors = {f"net.{name}": part for name, part in Net().state_dict().items()}
    _, stderr = lines_of(write(tmp_path, content={**tensors, "evil\x1b[2J\n": torch.ones(1)}))
    assert "note: Net has no place for evil\\x1b[2J\\n: left out" in stderr


def test_buffers_are_loaded_too(tmp_path: Path, export: Export) -> None:
    """A scale, an integer and a mask of infinities are buffers, and belong to the checkpoint."""
    text = TEXT.replace(
        "        self.fc =",
        "        self.register_buffer('mask', torch.zeros(2))\n"
        "        self.norm = nn.BatchNorm1d(3)\n"
        "        self.fc =",
    )
    norm = {
        "norm.weight": torch.ones(3),
        "norm.bias": torch.zeros(3),
        "norm.running_mean": torch.full((3,), 2.0),
        "norm.running_var": torch.ones(3),
        "norm.num_batches_tracked": torch.tensor(7),
    }
    mask = torch.tensor([0.0, -torch.inf])
    lines_of(write(tmp_path, text, content={**Net().state_dict(), **norm, "mask": mask}))
    loaded = export.module.state_dict()
    assert loaded["mask"].tolist() == mask.tolist()
    assert loaded["norm.num_batches_tracked"] == 7
    assert loaded["norm.running_mean"].tolist() == [2.0] * 3


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Net", ""),
        ("Net", '{"hidden": 8, "bias": true}'),
        ("Net", "[8]"),
        ("make", '{"hidden": 8}'),
        ("Outer.Inner", "[]"),
        ("ready", ""),
    ],
)
def test_a_class_a_function_or_a_module_is_named(
    tmp_path: Path, export: Export, name: str, arguments: str
) -> None:
    """CLASS may have dots, and --module-args are keyword or positional arguments."""
    lines_of(write(tmp_path, name=name, module_args=arguments))
    assert [name for name, _ in export.module.named_children()] == ["front", "gru", "fc"]


def test_the_file_runs_like_a_script_but_not_as_the_main_one(
    tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may import its neighbours, also in forward(), and print; it sees no flags of ours."""
    early, late = "a_neighbour_of_train", "a_neighbour_of_forward"
    for name in (early, late):
        (tmp_path / f"{name}.py").write_text("one = 1\n")
        monkeypatch.setitem(sys.modules, name, sys)  # so that it is taken out again
        monkeypatch.delitem(sys.modules, name)
    text = (
        f"import dataclasses, sys, {early}\nprint('seen', sys.argv)\n"
        "@dataclasses.dataclass\nclass Sizes:\n    hidden: 'int' = 8\n"
        + TEXT.replace("        return self.fc", f"        import {late}\n        return self.fc")
        + "if __name__ == '__main__':\n    raise RuntimeError\n"
    )
    stdout, stderr = lines_of(write(tmp_path, text))
    assert f"seen ['{tmp_path / 'train.py'}']" in stderr
    assert not any("seen" in line for line in stdout)
    assert str(tmp_path) not in sys.path


EXAMPLES: dict[str, tuple[str, list[int]]] = {
    "features": (TEXT, [3, 8, WIDTH]),
    "tokens": (TEXT.replace("nn.Linear(5, hidden, bias=bias)", "nn.Embedding(5, hidden)"), [3, 8]),
    "rows without time": (
        STATEFUL.replace("LSTMCell", "GRUCell")
        .replace("x, state):", "x, h=None):")
        .replace("h, c = self.cell(x, state)", "h = self.cell(x, h)")
        .replace(", (h, c)", ", h"),
        [3, WIDTH],
    ),
}


@pytest.mark.parametrize(("text", "shape"), EXAMPLES.values(), ids=EXAMPLES)
def test_an_example_is_made_where_the_layers_say_what_it_is(
    tmp_path: Path, export: Export, text: str, shape: list[int]
) -> None:
    """One argument of one width leaves no choice, and the command says what it took."""
    checkpoint, flags = write(tmp_path, text)
    content = Net().state_dict()
    if "Embedding" in text:
        content = {n: p for n, p in content.items() if n != "front.bias"}
        content["front.weight"] = torch.randn(5, HIDDEN)
    elif "GRUCell" in text:
        content = nn.GRUCell(WIDTH, HIDDEN).state_dict(prefix="cell.")
    save(content, checkpoint)
    _, stderr = lines_of((checkpoint, flags))
    assert list(export.example) == ["x"]
    assert list(export.example["x"].shape) == shape
    (line,) = (line for line in stderr if line.startswith("example: random x "))
    assert str(shape) in line
    assert line.endswith("; give --example with real rows")


def test_an_example_is_read_by_the_names_of_the_arguments(tmp_path: Path, export: Export) -> None:
    """An .npz has an array for each argument, NAME.0 and NAME.1 for a tuple."""
    content = {"x": rows(2, WIDTH), "state.1": rows(2, HIDDEN), "state.0": rows(2, HIDDEN) + 1}
    cell = nn.LSTMCell(WIDTH, HIDDEN).state_dict(prefix="cell.")
    lines_of(write(tmp_path, STATEFUL, content=cell, example=arrays(tmp_path, **content)))
    assert list(export.example) == ["x", "state"]
    h, c = export.example["state"]
    assert (float(h[0, 0]), float(c[0, 0])) == (1.0, 0.0)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_lone_array_is_the_first_argument(tmp_path: Path, export: Export, name: str) -> None:
    """Neither a .npy nor np.savez(path, x) names the array."""
    x = np.ones((2, 4, WIDTH), ">f8")
    if name.endswith(".npy"):
        np.save(tmp_path / name, x)
    else:
        np.savez(tmp_path / name, x)
    lines_of(write(tmp_path, example=tmp_path / name))
    assert list(export.example) == ["x"]
    assert export.example["x"].tolist() == x.tolist()


def test_pairs_catch_arguments_that_load_and_are_wrong(tmp_path: Path, export: Export) -> None:
    """A slope is not in the checkpoint, so only the user's own results tell a wrong one."""
    torch.manual_seed(0)
    cell = nn.LSTMCell(WIDTH, HIDDEN)
    x, state = torch.ones(2, WIDTH), (torch.zeros(2, HIDDEN), torch.zeros(2, HIDDEN))
    h, c = cell(x, state)
    given = {"x": x, "state.0": state[0], "state.1": state[1], "y": h + 0.5, "1.1": c}
    golden = arrays(tmp_path, **{name: part.detach().numpy() for name, part in given.items()})
    content = {f"cell.{name}": part for name, part in cell.state_dict().items()}
    case = write(tmp_path, STATEFUL, content=content, golden=golden)
    assert "times the allowed one; check --module-args" in run_export(case[0], *case[1]).stderr
    lines_of((case[0], [*case[1], "--module-args", json.dumps({"slope": 0.5})]))
    assert list(export.example) == ["x", "state"]


TIME_FIRST = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = torch.nn.GRUCell(5, 8)

    def forward(self, x):
        h = x.new_zeros(x.shape[1:-1] + (8,))
        out = []
        for row in x:
            h = self.cell(row, h)
            out.append(h)
        return torch.stack(out)
"""
STRICT = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.GRU(5, 8, batch_first=True)

    def forward(self, x):
        batch, steps, _ = x.shape
        return self.rnn(x)[0][:, -1]
"""


def test_pairs_of_one_sequence_need_no_batch(tmp_path: Path, export: Export) -> None:
    """x [T, I] and its y become a batch of one, on the axis where forward() has it, whether nn.LSTM
    reads a sequence without a batch or forward() fails on it."""
    x = rows(6, WIDTH)
    y = Net().eval()(torch.from_numpy(x)).detach().numpy()
    lines_of(write(tmp_path, golden=arrays(tmp_path, x=x, y=y)))
    assert list(export.example["x"].shape) == [1, 6, WIDTH]
    torch.manual_seed(0)
    rnn = nn.GRU(WIDTH, HIDDEN, batch_first=True)
    y = rnn(torch.from_numpy(x))[0].detach().numpy()
    content = {f"rnn.{name}": part for name, part in rnn.state_dict().items()}
    lines_of(write(tmp_path, STRICT, content=content, golden=arrays(tmp_path, x=x, y=y[-1])))
    assert list(export.example["x"].shape) == [1, 6, WIDTH]
    content = {f"cell.{n.removesuffix('_l0')}": part for n, part in rnn.state_dict().items()}
    lines_of(write(tmp_path, TIME_FIRST, content=content, golden=arrays(tmp_path, x=x, y=y)))
    assert list(export.example["x"].shape) == [6, 1, WIDTH]


def test_pairs_with_a_batch_stay_as_they_are(tmp_path: Path, export: Export) -> None:
    """Rows [N, T, I] have a batch, and so have rows [N, I] beside states, although forward() may
    take one axis more."""
    torch.manual_seed(0)
    cell = nn.LSTMCell(WIDTH, HIDDEN)
    x, state = torch.ones(2, WIDTH), (torch.zeros(2, HIDDEN), torch.zeros(2, HIDDEN))
    h, c = cell(x, state)
    given = {"x": x, "state.0": state[0], "state.1": state[1], "y": h, "1.1": c}
    golden = arrays(tmp_path, **{name: part.detach().numpy() for name, part in given.items()})
    content = {f"cell.{name}": part for name, part in cell.state_dict().items()}
    lines_of(write(tmp_path, STATEFUL, content=content, golden=golden))
    assert list(export.example["x"].shape) == [2, WIDTH]
    x = torch.from_numpy(rows(1, 6, WIDTH))
    golden = arrays(tmp_path, x=x.numpy(), y=Net().eval()(x).detach().numpy())
    lines_of(write(tmp_path, golden=golden))
    assert list(export.example["x"].shape) == [1, 6, WIDTH]


def test_an_example_beside_pairs_is_the_one_that_is_exported(
    tmp_path: Path, export: Export
) -> None:
    """The pairs are compared, and real rows are the example."""
    x = rows(2, 4, WIDTH)
    y = Net().eval()(torch.from_numpy(x)).detach().numpy()
    np.save(tmp_path / "x.npy", rows(7, 3, WIDTH))
    golden = arrays(tmp_path, x=x, y=y)
    lines_of(write(tmp_path, golden=golden, example=tmp_path / "x.npy"))
    assert list(export.example["x"].shape) == [7, 3, WIDTH]


def test_the_environment_sets_the_flags(tmp_path: Path, export: Export) -> None:
    """Each flag of the module way has its variable."""
    np.save(tmp_path / "x.npy", rows(2, 4, WIDTH))
    checkpoint, (_, module) = write(tmp_path)
    env = {
        "LSTMSERVE_MODULE": module,
        "LSTMSERVE_MODULE_ARGS": '{"hidden": 8}',
        "LSTMSERVE_EXAMPLE": str(tmp_path / "x.npy"),
        "LSTMSERVE_STATES": "h, c",
        "LSTMSERVE_OUTPUT_NAMES": "a,b",
        "LSTMSERVE_AXES": "TB",
        "LSTMSERVE_WINDOW": "24",
        "LSTMSERVE_WINDOW_FILL": "zeros",
    }
    result = run_export(checkpoint, env=env)
    assert result.exit_code == 0, result.output
    assert export.options.pop("progress")
    assert export.options == {
        "states": ("h", "c"),
        "output_names": ("a", "b"),
        "axes": Axes.of("TB"),
        "scalers": UNSCALED,
        "window": 24,
        "window_fill": "zeros",
        "is_guess": False,
    }
    assert list(export.example["x"].shape) == [2, 4, WIDTH]


BAD_FLAGS: dict[str, tuple[list[str], str]] = {
    "no class": (["--module", "train.py"], "must be FILE.py:CLASS"),
    "no Python file": (["--module", "net.ipynb:Net"], "must be FILE.py:CLASS"),
    "no name": (["--module", "train.py:Net()"], "must be FILE.py:CLASS"),
    "no axes": (
        ["--module", "train.py:Net", "--axes", "XY"],
        "'BT', 'TB', 'BFT', 'BCFT', 'B', 'T'",
    ),
    "an empty name": (["--module", "train.py:Net", "--states", "h,,c"], "names with commas"),
    "a missing example": (["--module", "train.py:Net", "--example", "no.npy"], "does not exist"),
    "arguments alone": (["--module-args", "{}"], "--module-args needs --module FILE.py:CLASS"),
    "states alone": (["--states", "h"], "--states needs --module FILE.py:CLASS"),
    "a head": (["--module", "train.py:Net", "--head", "fc"], "--head has no meaning with --module"),
    "an activation": (
        ["--module", "train.py:Net", "--pre-head", "relu"],
        "--pre-head has no meaning with --module",
    ),
}


@pytest.mark.parametrize(("flags", "says"), BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_a_bad_flag_exits_with_2(
    tmp_path: Path, export: Export, flags: list[str], says: str
) -> None:
    """Nothing is read and nothing is run."""
    checkpoint, _ = write(tmp_path, "raise SystemExit(9)\n")
    result = run_export(checkpoint, *flags)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert NOTICE not in result.stderr


def test_the_file_is_not_run_for_a_checkpoint_that_is_refused(tmp_path: Path) -> None:
    """What can be refused without the user's code is refused before it runs."""
    for flags, content in ((["--name", "my model"], {"a.b": torch.ones(1)}), ([], [1, 2])):
        checkpoint, given = write(tmp_path, "raise SystemExit(9)\n", content=content)
        result = run_export(checkpoint, *given, *flags)
        assert result.exit_code == 1
        assert "SystemExit" not in result.stderr


def test_without_the_flag_no_file_of_the_users_is_run(tmp_path: Path) -> None:
    """A plain export in a folder of traps imports none of them, and --module springs one."""
    sprung = tmp_path / "sprung"
    for name in ("train", "net", "model", "torch", "onnx", "rich", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(sprung)!r}, 'w')\n")
    save(LstmNet().state_dict(), tmp_path / "net.pt")
    command = [str(CONSOLE_SCRIPT), "export", "net.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "models" / "net" / "1").is_dir()
    assert not sprung.exists()
    command += ["--module", "train.py:Net"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert sprung.exists()


def test_the_summary_says_how_far_from_exact_a_network_is(tmp_path: Path, export: Export) -> None:
    """It names inputs, outputs and states with their dtypes, and the notes."""
    export.parity = {"is_exact": False, "difference": 3e-7}
    stdout, _ = lines_of(write(tmp_path))
    assert "inputs    x [5], kind [] int64" in stdout
    assert "layers    rnn (LSTM, 2 layers)" in stdout
    assert "note      a remark" in stdout
    (line,) = (line for line in stdout if "not exact" in line)
    assert line.endswith("at most 3.0e-07")


def test_a_module_that_is_an_lstm_and_its_head_has_their_summary(
    tmp_path: Path, export: Export
) -> None:
    """The formula says what is served, and the last line that forward() was compared."""
    export.spec = ModelSpec.of_lstm(LstmSpec(WIDTH, HIDDEN, head=(Linear(3),)))
    stdout, _ = lines_of(write(tmp_path))
    assert stdout[-3] == "computes  y = linear(lstm(x)), at every time step"
    assert stdout[-2].endswith("compared the model with your own forward().")
    assert not any("--golden" in line for line in stdout)


# Rows of tests/hostile.py where the weights do not say enough, and the module does.
MODULE_IS_THE_WAY = (
    "an nn.GRU or nn.RNN",
    "no LSTM in the file",
    "several LSTMs and no --lstm",
    "several Linears and no --head",
    "one matrix that may be head or embedding",
    "tensors that would be left out (normalisation, attention)",
    "tensors under the LSTM's name that nn.LSTM does not have",
    "two nn.GRUs or nn.RNNs",
    "an initial state beside the LSTM",
    "an attention that no flag names",
)
WEIGHTS_AND_MODULE = (
    "a frozen TorchScript program (torch.jit.freeze)",
    "a .pt2 program (torch.export)",
    "a pickled module (torch.save(model))",
)


@pytest.mark.parametrize("label", MODULE_IS_THE_WAY)
def test_the_way_of_the_weights_shows_the_way_of_the_module_first(
    tmp_path: Path, label: str
) -> None:
    """Where a file of tensors leaves something open, --module is the first way out."""
    checkpoint, flags = TENSOR_ROWS[label][1](tmp_path)
    line = refused(checkpoint, *flags)
    assert MODULE_WAY in line
    others = [
        line.find(f"--{flag}") for flag in ("lstm", "head", "embedding") if f"--{flag}" in line
    ]
    assert all(line.index("--module") < place for place in others)


@pytest.mark.parametrize("label", WEIGHTS_AND_MODULE)
def test_programs_show_how_to_save_weights_and_name_the_module(tmp_path: Path, label: str) -> None:
    """What holds code is not read; its weights and its source are the way."""
    checkpoint, flags = TENSOR_ROWS[label][1](tmp_path)
    line = refused(checkpoint, *flags)
    assert line.index("state_dict()") < line.index("--module FILE.py:CLASS")


def test_an_lstm_and_its_head_may_go_either_way(tmp_path: Path) -> None:
    """The same checkpoint is exported by its weights alone, as before."""
    files = exported(save(LstmNet().state_dict(), tmp_path / "net.pt"))
    assert files.manifest.spec.kind == "lstm"
