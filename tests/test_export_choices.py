"""What the flags choose among the tensors of a file, and what they may leave out of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import lstmserve.extras
from exporting import (
    HIDDEN,
    INPUTS,
    OUTPUTS,
    Net,
    exported,
    onnx_answers,
    refused,
    rows,
    save,
    save_script,
)
from exporting import run_export as run
from lstmserve.head_layers import LeakyRelu, Linear
from lstmserve_export.cli import export_command

TOLERANCE = 2e-6


def with_layer(folder: Path, layer: nn.Module, name: str) -> Path:
    """A network with one layer more, behind its head."""
    tensors = {**Net().state_dict(), **layer.state_dict(prefix=f"{name}.")}
    return save(tensors, folder / "net.pt")


@torch.no_grad()
def answers(*layers: nn.Module) -> np.ndarray:
    """y of rows() by a Net, with these layers behind it."""
    y = Net()(torch.from_numpy(rows()).transpose(0, 1)).transpose(0, 1)
    for layer in layers:
        y = layer(y)
    return y.numpy()


@pytest.mark.parametrize("name", ["softmax", "relu", "tanh", "sigmoid", "none"])
def test_a_linear_with_the_name_of_an_activation_is_not_taken_for_it(
    tmp_path: Path, name: str
) -> None:
    """The bare name is refused; NAME.weight is the layer."""
    layer = nn.Linear(OUTPUTS, 2)
    path = with_layer(tmp_path, layer, name)
    assert f"write {name}.weight for the layer" in refused(path, "--head", f"fc,{name}")
    spec = exported(path, "--head", f"fc,{name}.weight").manifest.lstm
    assert spec.head == (Linear(OUTPUTS), Linear(2))
    np.testing.assert_allclose(onnx_answers(path, rows())[0], answers(layer), atol=TOLERANCE)


def test_name_with_brackets_is_the_activation(tmp_path: Path) -> None:
    """With a layer of that name in the file, relu() is the function."""
    path = with_layer(tmp_path, nn.Linear(OUTPUTS, 2), "relu")
    spec = exported(path, "--head", "fc,relu()", "--drop", "relu").manifest.lstm
    assert spec.head == (Linear(OUTPUTS), "relu")
    np.testing.assert_allclose(onnx_answers(path, rows())[0], answers(nn.ReLU()), atol=TOLERANCE)


def test_none_with_brackets_is_no_head(tmp_path: Path) -> None:
    """With a layer called none in the file, none() says that there is no head."""
    path = with_layer(tmp_path, nn.Linear(OUTPUTS, 2), "none")
    assert exported(path, "--head", "none()", "--drop", "fc,none").manifest.lstm.head == ()


def test_the_end_of_a_name_is_enough(tmp_path: Path) -> None:
    """Below the dicts of a wrapper, a name that only one tensor or module ends with is that one."""
    net, other = Net(), nn.Linear(4, 4)
    content = {
        "actor": {"memory": net.lstm.state_dict(), "out": net.fc.state_dict()},
        "critic": other.state_dict(prefix="value."),
    }
    path = save(content, tmp_path / "net.pt")
    flags = ("--lstm", "memory", "--head", "out", "--drop", "value")
    assert exported(path, *flags).manifest.notes == (
        "not exported: critic.value.weight, critic.value.bias",
    )
    np.testing.assert_allclose(onnx_answers(path, rows())[0], answers(), atol=TOLERANCE)


def test_every_way_to_name_what_is_dropped(tmp_path: Path) -> None:
    """Tensors and modules, by commas and by several flags."""
    tensors = {
        **Net().state_dict(),
        **nn.LayerNorm(HIDDEN).state_dict(prefix="norm."),
        **nn.Linear(7, 7).state_dict(prefix="critic.0."),
        **nn.Linear(7, 1).state_dict(prefix="critic.2."),
        "log_std": torch.zeros(OUTPUTS),
    }
    path = save(tensors, tmp_path / "net.pt")
    line = refused(path, "--lstm", "lstm", "--head", "fc")
    assert line.partition("--drop ")[2].partition(";")[0] == "norm,critic,log_std"
    flags = ("--drop", "norm.weight,norm.bias", "--drop", "critic", "--drop", "log_std")
    notes = exported(path, *flags).manifest.notes
    left = [name for name in tensors if not name.startswith(("lstm.", "fc."))]
    assert notes == (f"not exported: {', '.join(left)}",)


def test_a_module_is_dropped_by_its_whole_name(tmp_path: Path) -> None:
    """--drop norm leaves norm2 where it is."""
    norms = nn.ModuleDict({"norm": nn.LayerNorm(HIDDEN), "norm2": nn.LayerNorm(HIDDEN)})
    path = save({**Net().state_dict(), **norms.state_dict()}, tmp_path / "net.pt")
    assert "would be left out: norm2.weight, norm2.bias;" in refused(path, "--drop", "norm")


def test_what_is_dropped_is_no_candidate(tmp_path: Path) -> None:
    """A Linear that --drop names leaves the other one as the only head."""
    path = with_layer(tmp_path, nn.Linear(HIDDEN, 2), "value")
    assert "several" not in refused(path)
    assert exported(path, "--drop", "value").manifest.lstm.head == (Linear(OUTPUTS),)


@pytest.mark.parametrize("names", ["hidden_state,cell_state", "h0,c0", "net.init_h,net.init_c"])
def test_an_initial_state_of_zeros_is_left_out_with_a_note(tmp_path: Path, names: str) -> None:
    """Buffers that keep the state of a policy are zeros in its file, and a session begins so."""
    h, c = names.split(",")
    path = save(
        {**Net().state_dict(), h: torch.zeros(1, 1, HIDDEN), c: torch.zeros(1, HIDDEN)},
        tmp_path / "net.pt",
    )
    (note,) = exported(path).manifest.notes
    assert note == f"{h} and {c} are zeros, as the state of a new session is: left out"


def test_zeros_excuse_no_other_tensor(tmp_path: Path) -> None:
    """Beside an initial state of zeros, other tensors are refused as ever."""
    zeros = {name: torch.zeros(1, HIDDEN) for name in ("h0", "c0", "bias")}
    line = refused(save({**Net().state_dict(), **zeros}, tmp_path / "net.pt"))
    assert "would be left out: bias;" in line


@pytest.mark.parametrize(
    ("names", "shape"),
    [("h0,c0", (1, 1, HIDDEN)), ("_initial_hidden,_initial_cell", (HIDDEN,))],
)
def test_another_initial_state_is_offered(
    tmp_path: Path, names: str, shape: tuple[int, ...]
) -> None:
    """It is neither taken nor left out in silence."""
    h, c = names.split(",")
    tensors = {**Net().state_dict(), c: torch.ones(shape), h: torch.ones(shape)}
    path = save(tensors, tmp_path / "net.pt")
    assert f"--initial-state {names}" in refused(path, "--lstm", "lstm", "--head", "fc")


@pytest.mark.parametrize(
    "others",
    [
        {"h0": (1, 1, HIDDEN)},
        {"h0": (1, 1, HIDDEN), "c0": (1, 1, HIDDEN + 1)},
        {"means": (HIDDEN,), "scales": (HIDDEN,)},
        {"a.h0": (HIDDEN,), "a.c0": (HIDDEN,), "b.h0": (HIDDEN,), "b.c0": (HIDDEN,)},
    ],
    ids=["one", "of another width", "of other names", "two pairs"],
)
def test_other_tensors_are_no_initial_state(
    tmp_path: Path, others: dict[str, tuple[int, ...]]
) -> None:
    """Zeros too are refused where they may be something else."""
    zeros = {name: torch.zeros(shape) for name, shape in others.items()}
    line = refused(save({**Net().state_dict(), **zeros}, tmp_path / "net.pt"))
    assert "would be left out" in line
    assert "--initial-state" not in line


def test_weight_norm_is_no_advice_where_there_is_none(tmp_path: Path) -> None:
    """A tensor more, or one that is missing, is no reason to remove weight norm."""
    tensors = {**nn.LSTM(INPUTS, HIDDEN).state_dict(), "initial_h": torch.ones(1, 1, HIDDEN)}
    assert "norm" not in refused(save(tensors, tmp_path / "net.pt"))
    del tensors["bias_hh_l0"]
    line = refused(save(tensors, tmp_path / "net.pt"))
    assert "lacks bias_hh_l0: save the whole model.state_dict() again" in line


def test_one_run_reports_every_fault(tmp_path: Path) -> None:
    """Names, values and files that are wrong do not hide each other."""
    net = Net()
    path = save(net.state_dict(), tmp_path / "net.pt")
    line = refused(
        path,
        *("--lstm", "rnn", "--head", "a,fc,mish", "--embedding", "table", "--drop", "norm"),
        *("--name", "my model", "--input-mean", str(path)),
    )
    for fault in ("rnn", "'a'", "mish", "table", "norm", "my model", "--input-mean"):
        assert f"{fault}" in line
    assert "(7)" in line
    assert "(8)" not in line
    tensors = {name: tensor.fill_(torch.nan) for name, tensor in net.state_dict().items()}
    line = refused(save(tensors, path))
    assert all(f"{name} has NaN" in line for name in tensors)


def test_linears_that_fit_nowhere_are_not_offered(tmp_path: Path) -> None:
    """A head that is refused for its width lists what fits."""
    path = with_layer(tmp_path, nn.Linear(4, 2), "other")
    line = refused(path, "--head", "other")
    assert "what fits here is fc (8 -> 3)" in line
    line = refused(path)
    assert "fc (8 -> 3) can follow lstm; other (4 -> 2) cannot follow lstm at all" in line


@pytest.mark.parametrize(
    "flags",
    [
        ("--lstm", "a", "--lstm", "b"),
        ("--head=a", "--head=b"),
        ("--dry-run", "--dry-run"),
        ("--models", "a", "--models", "b"),
    ],
)
def test_a_flag_given_twice_is_refused(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """The last one would win in silence."""
    path = save(Net().state_dict(), tmp_path / "net.pt")
    result = CliRunner().invoke(export_command, [str(path), *flags])
    assert result.exit_code == 2
    assert f"{flags[0].partition('=')[0]} is given twice" in result.stderr


def test_what_serves_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lstmserve serve` is no next command where the server's extra is not installed."""
    path = save(Net().state_dict(), tmp_path / "net.pt")
    monkeypatch.setattr(lstmserve.extras, "SERVER_MODULES", ("onnx", "no_such_module"))
    *_, line, command = run(path).stdout.splitlines()
    assert line.startswith("next      to serve it here, run pip install '.[cpu]'")
    assert "(no_such_module is missing); then" in line
    assert command.split()[:2] == ["lstmserve", "serve"]


@pytest.mark.parametrize(
    ("entry", "layer"),
    [
        ("norm", nn.LayerNorm(OUTPUTS)),
        ("norm=0.5", nn.LayerNorm(OUTPUTS, eps=0.5)),
        ("norm", nn.BatchNorm1d(OUTPUTS)),
        ("norm=0.5", nn.BatchNorm1d(OUTPUTS, eps=0.5)),
        ("norm", nn.BatchNorm1d(OUTPUTS, affine=False)),
    ],
    ids=str,
)
def test_a_norm_of_the_head(tmp_path: Path, entry: str, layer: nn.Module) -> None:
    """It is named like a Linear, and its eps is torch's unless =EPS follows."""
    torch.manual_seed(3)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(OUTPUTS) + 0.5)
    path = with_layer(tmp_path, layer, "norm")
    assert "--head can name norm" in refused(path)
    notes = exported(path, "--head", f"fc,{entry}").manifest.notes
    eps = entry.partition("=")[2] or "1e-05"
    (note,) = notes
    assert note == (
        f"norm is served as nn.{type(layer).__name__} with eps {eps}: no file says its eps"
    )
    expected = layer.eval()(torch.from_numpy(answers()).reshape(-1, OUTPUTS)).detach().numpy()
    y = onnx_answers(path, rows())[0].reshape(-1, OUTPUTS)
    np.testing.assert_allclose(y, expected, atol=5 * TOLERANCE)


@pytest.mark.parametrize(
    ("entry", "layer"),
    [
        ("elu", nn.ELU()),
        ("elu=0.5", nn.ELU(0.5)),
        ("leaky_relu", nn.LeakyReLU()),
        ("leaky_relu=0.2", nn.LeakyReLU(0.2)),
        ("GELU", nn.GELU()),
        ("gelu_tanh", nn.GELU(approximate="tanh")),
        ("silu", nn.SiLU()),
        ("softplus", nn.Softplus()),
        ("hardtanh", nn.Hardtanh()),
        ("log_softmax", nn.LogSoftmax(dim=-1)),
    ],
    ids=str,
)
def test_an_activation_of_the_head(tmp_path: Path, entry: str, layer: nn.Module) -> None:
    """Each by its name in torch, with its number behind = if it has one."""
    path = save(Net().state_dict(), tmp_path / "net.pt")
    exported(path, "--head", f"fc,{entry}")
    np.testing.assert_allclose(onnx_answers(path, rows())[0], answers(layer), atol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1, HIDDEN), (1, HIDDEN), (HIDDEN,)], ids=str)
def test_an_initial_state_beside_the_lstm_is_taken_by_its_names(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """--initial-state H0,C0 names two tensors of the file, by the ends of their names."""
    net, (h0, c0) = Net(), torch.rand(2, *shape)
    path = save({**net.state_dict(), "start.h0": h0, "start.c0": c0}, tmp_path / "net.pt")
    files = exported(path, "--initial-state", "h0,start.c0")
    assert files.manifest.lstm.initial_state
    for name, tensor in (("h", h0), ("c", c0)):
        found = files.network.weights[f"initial.{name}"]
        np.testing.assert_array_equal(found, tensor.reshape(1, HIDDEN).numpy())


def test_tensors_of_other_shapes_are_no_initial_state(tmp_path: Path) -> None:
    """The two that --initial-state names must have the sizes of the LSTM."""
    tensors = {**Net().state_dict(), "h0": torch.ones(1, 1, HIDDEN), "c0": torch.ones(2, HIDDEN)}
    path = save(tensors, tmp_path / "net.pt")
    line = refused(path, "--initial-state", "h0,c0")
    assert "--initial-state: c0 is [2, 8], must be [1, 8]" in line
    assert "--initial-state c1: the file has no tensor" in refused(path, "--initial-state", "h0,c1")
    result = run(path, "--initial-state", "h0")
    assert result.exit_code == 2
    assert "'h0' is neither a file nor the names of two tensors: H0,C0" in result.stderr


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"optimal_head": {"weight": torch.zeros(2, 9)}}, "optimal_head"),
        ({"heads": [{"weight": torch.zeros(2, 9)}]}, "heads.0"),
        ({"heads": {0: torch.zeros(9)}}, "heads.0"),
    ],
    ids=["a name like an optimizer's", "a list of dicts", "a number as a key"],
)
def test_tensors_in_other_containers_are_not_left_out_in_silence(
    tmp_path: Path, more: dict[str, object], says: str
) -> None:
    """The refusal names them, wherever they lie in the file."""
    path = save({"model": Net().state_dict()} | more, tmp_path / "net.pt")
    assert says in refused(path)


def test_a_program_with_activations_needs_a_head(tmp_path: Path) -> None:
    """Its only Linear is not the whole head, and a note beside a wrong model is too little."""

    class Active(Net):
        def __init__(self) -> None:
            super().__init__()
            self.act = torch.nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.act(self.fc(self.lstm(x)[0]))
            return y

    path = save_script(Active(), tmp_path / "net.pt")
    line = refused(path)
    assert "leaves its head open" in line
    assert "act (ReLU) may stand among them" in line
    exported(path, "--head", "fc,relu")


def test_an_activation_may_have_the_name_of_its_class(tmp_path: Path) -> None:
    """LeakyReLU is leaky_relu, as ReLU is relu."""
    path = save(Net().state_dict(), tmp_path / "net.pt")
    head = exported(path, "--head", "fc,LeakyReLU=0.2,LogSoftmax").manifest.lstm.head
    assert head[1:] == (LeakyRelu(0.2), "log_softmax")


@pytest.mark.parametrize(
    "more",
    [{"lstm": {"weight_ih_l0": torch.zeros(32, INPUTS)}}, {"1": torch.ones(2), 1: torch.zeros(2)}],
    ids=["a dict and a dot", "text and a number"],
)
def test_two_tensors_of_one_name_are_refused(tmp_path: Path, more: dict[object, object]) -> None:
    """The one that comes last is not taken in silence."""
    path = save({**Net().state_dict(), **more}, tmp_path / "net.pt")
    assert "two tensors of the file have one name" in refused(path)
