"""Every kind of exported nn.LSTM equals torch on inputs that the export has not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exporting import (
    HIDDEN,
    INPUTS,
    OUTPUTS,
    Net,
    exported,
    onnx_answers,
    rows,
    run_export,
    save,
)
from lstmserve.head_layers import BatchNorm, Elu, HeadLayer, LayerNorm, LeakyRelu, Linear
from lstmserve_export import export

# torch says once that oneDNN has no projections, here in the tests' own forward.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")
TOLERANCE = 2e-6

LAYERS: dict[str, tuple[nn.Module, HeadLayer]] = {
    "ELU": (nn.ELU(), Elu()),
    "ELU with an alpha": (nn.ELU(0.3), Elu(0.3)),
    "LeakyReLU": (nn.LeakyReLU(), LeakyRelu()),
    "LeakyReLU with a slope": (nn.LeakyReLU(0.2), LeakyRelu(0.2)),
    "GELU": (nn.GELU(), "gelu"),
    "GELU by tanh": (nn.GELU("tanh"), "gelu_tanh"),
    "SiLU": (nn.SiLU(), "silu"),
    "Softplus": (nn.Softplus(), "softplus"),
    "Hardtanh": (nn.Hardtanh(), "hardtanh"),
    "LogSoftmax": (nn.LogSoftmax(2), "log_softmax"),
    "LayerNorm": (nn.LayerNorm(HIDDEN), LayerNorm()),
    "LayerNorm without bias": (nn.LayerNorm(HIDDEN, 1e-3, bias=False), LayerNorm(1e-3, bias=False)),
    "LayerNorm without weights": (
        nn.LayerNorm(HIDDEN, elementwise_affine=False),
        LayerNorm(weight=False, bias=False),
    ),
    "BatchNorm1d": (nn.BatchNorm1d(HIDDEN), BatchNorm()),
    "BatchNorm1d without weights": (nn.BatchNorm1d(HIDDEN, affine=False), BatchNorm()),
}

VARIANTS = {
    "one layer": {},
    "two layers": {"num_layers": 2},
    "three layers": {"num_layers": 3},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
    "dropout": {"num_layers": 2, "dropout": 0.5},
    "projection": {"proj_size": 3},
    "projection, two layers, no bias": {"proj_size": 3, "num_layers": 2, "bias": False},
    "bidirectional": {"bidirectional": True},
    "bidirectional, two layers": {"bidirectional": True, "num_layers": 2},
    "bidirectional projection": {"bidirectional": True, "num_layers": 2, "proj_size": 3},
}


@torch.no_grad()
def torch_answers(net: Net, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """y, hn and cn of the net's own forward, whatever its order of axes."""
    net.eval()
    batch_first = net.lstm.batch_first
    tensor = torch.from_numpy(x)
    out, (hn, cn) = net.lstm(tensor if batch_first else tensor.transpose(0, 1))
    y = net.fc(out)
    return tuple(t.numpy() for t in (y if batch_first else y.transpose(0, 1), hn, cn))


@pytest.mark.parametrize("sizes", VARIANTS.values(), ids=VARIANTS)
def test_a_checkpoint_of_every_variant_equals_its_own_forward(
    tmp_path: Path, sizes: dict[str, object]
) -> None:
    """Sizes are inferred from the tensors alone, and y, hn and cn equal torch's."""
    net = Net(**sizes)
    path = save(net.state_dict(), tmp_path / "net.pt")
    spec = exported(path).manifest.lstm
    assert (spec.input_size, spec.hidden_size, spec.output_size) == (INPUTS, HIDDEN, OUTPUTS)
    assert spec.num_layers == net.lstm.num_layers
    assert spec.proj_size == net.lstm.proj_size
    assert spec.bidirectional == net.lstm.bidirectional
    assert spec.bias == net.lstm.bias
    x = rows()
    for actual, expected in zip(onnx_answers(path, x), torch_answers(net, x), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("sizes", VARIANTS.values(), ids=VARIANTS)
def test_a_ragged_batch_equals_every_row_alone_in_torch(
    tmp_path: Path, sizes: dict[str, object]
) -> None:
    """Padding changes neither y nor the state, also when read backwards."""
    net = Net(**sizes)
    path = save(net.state_dict(), tmp_path / "net.pt")
    exported(path)
    x, lengths = rows(), [9, 1, 4, 7]
    y, hn, cn = onnx_answers(path, x, lengths)
    for n, length in enumerate(lengths):
        alone = torch_answers(net, x[n : n + 1, :length])
        batch = y[n : n + 1, :length], hn[:, n : n + 1], cn[:, n : n + 1]
        for actual, expected in zip(batch, alone, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def trained(module: nn.Module) -> nn.Module:
    """The module with random values in each of its tensors, as training leaves them."""
    torch.manual_seed(5)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.2 if name.endswith("running_var") else -1, 2)
    return module.eval()


@pytest.mark.parametrize(("module", "layer"), LAYERS.values(), ids=LAYERS)
def test_a_layer_of_the_head_is_torchs(tmp_path: Path, module: nn.Module, layer: HeadLayer) -> None:
    """Each layer that a head may have gives what torch's module gives, for large values, too."""
    torch.manual_seed(3)
    lstm, wide = nn.LSTM(INPUTS, HIDDEN, batch_first=True), nn.Linear(HIDDEN, HIDDEN)
    with torch.no_grad():
        wide.weight.mul_(30)
    head = nn.Sequential(wide, trained(module))
    spec = export(lstm, head, name="net", models=tmp_path / "models").manifest.lstm
    assert spec.head == (Linear(HIDDEN), layer)
    x = rows()
    out = lstm.double()(torch.from_numpy(x).double())[0]
    # A BatchNorm1d would take the axis of time for features.
    expected = head.double()(out.flatten(0, 1) if "BatchNorm" in str(module) else out)
    actual = onnx_answers(tmp_path / "net.pt", x)[0]
    np.testing.assert_allclose(actual.ravel(), expected.detach().ravel(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", VARIANTS.values(), ids=VARIANTS)
def test_a_residual_and_a_learned_state_in_every_variant(
    tmp_path: Path, sizes: dict[str, object]
) -> None:
    """y + columns of the scaled x, from the state that was learned, is torch's own result."""
    net = Net(**sizes)
    lstm, norm = net.lstm, trained(nn.LayerNorm(net.fc.in_features))
    layers, rng = lstm.num_layers * (1 + lstm.bidirectional), np.random.default_rng(6)
    h0, c0 = (
        torch.from_numpy(rng.uniform(-1, 1, (layers, 1, width)))
        for width in (lstm.proj_size or HIDDEN, HIDDEN)
    )
    mean, scale = rng.normal(size=INPUTS), rng.uniform(1, 2, INPUTS)
    head = nn.Sequential(norm, net.fc, nn.ELU())
    done = export(
        *(lstm, head),
        name="net",
        models=tmp_path / "models",
        input_mean=mean,
        input_scale=scale,
        output_mean=[5, 6, 7],
        output_scale=[1, 2, 3],
        residual=[4, 0, 4],
        initial_state=(h0[:, 0], c0),
    )
    assert (done.manifest.lstm.residual, done.manifest.lstm.initial_state) == ((4, 0, 4), True)
    x = rows()
    read = torch.from_numpy((x - mean) / scale)
    lstm = lstm.double().eval()
    lstm.batch_first = True
    out, ends = lstm(read, (h0.repeat(1, len(x), 1), c0.repeat(1, len(x), 1)))
    y = head.double()(out) + read[..., [4, 0, 4]]
    expected = y * torch.tensor([1, 2, 3]) + torch.tensor([5, 6, 7]), *ends
    for actual, wanted in zip(onnx_answers(tmp_path / "net.pt", x), expected, strict=True):
        np.testing.assert_allclose(actual, wanted.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["npz", "pt"])
def test_flags_name_a_residual_and_an_initial_state(tmp_path: Path, form: str) -> None:
    """--residual all adds x itself, and --initial-state reads what numpy or torch saved."""
    torch.manual_seed(4)
    lstm, fc = nn.LSTM(INPUTS, HIDDEN, 2, batch_first=True), nn.Linear(HIDDEN, INPUTS)
    state = {"h0": torch.randn(2, HIDDEN), "c0": torch.randn(2, 1, HIDDEN)}
    tensors = {**lstm.state_dict(prefix="lstm."), **fc.state_dict(prefix="fc.")}
    path, file = save(tensors, tmp_path / "net.pt"), tmp_path / f"start.{form}"
    save(state, file) if form == "pt" else np.savez(file, **state)
    x = rows()
    out, _ = lstm(
        torch.from_numpy(x),
        (state["h0"][:, None].repeat(1, 4, 1), state["c0"].repeat(1, 4, 1)),
    )
    y = (fc(out) + torch.from_numpy(x)).detach().numpy()
    np.savez(tmp_path / "pairs.npz", x=x, y=y)
    flags = ["--residual", "all", "--initial-state", str(file)]
    result = run_export(path, *flags, "--golden", str(tmp_path / "pairs.npz"))
    assert result.exit_code == 0, result.output
    assert (
        "computes  y = linear(lstm(x)) + x, from a learned state, at every time step"
        in result.stdout
    )
    assert "head      Linear(8, 5); plus x" in result.stdout
    np.testing.assert_allclose(onnx_answers(path, x)[0], y, atol=TOLERANCE)
    result = run_export(path, "--residual", "4,3,2,1,0", "--name", "other")
    assert "computes  y = linear(lstm(x)) + x[4, 3, 2, 1, 0], at every time step" in result.stdout


def test_a_state_of_zeros_is_none(tmp_path: Path) -> None:
    """Zeros as initial state make the same model as no initial state."""
    net = Net()
    plain = export(net.lstm, net.fc, name="plain", models=tmp_path).manifest
    zeros = torch.zeros(1, HIDDEN), torch.zeros(1, HIDDEN)
    given = export(net.lstm, net.fc, name="z", models=tmp_path, initial_state=zeros).manifest
    assert given.fingerprint == plain.fingerprint


def test_an_lstm_without_a_head_answers_its_own_output(tmp_path: Path) -> None:
    """A bare nn.LSTM's state dict needs no flag."""
    net = Net(num_layers=2)
    path = save(net.lstm.state_dict(), tmp_path / "bare.pt")
    assert exported(path).manifest.lstm.head == ()
    x = rows()
    expected = net.lstm(torch.from_numpy(x).transpose(0, 1))[0].transpose(0, 1)
    np.testing.assert_allclose(onnx_answers(path, x)[0], expected.detach().numpy(), atol=TOLERANCE)


def test_an_lstm_cell_is_an_lstm_of_one_layer(tmp_path: Path) -> None:
    """An nn.LSTMCell's names without a layer number are understood."""
    torch.manual_seed(2)
    cell, fc = nn.LSTMCell(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
    path = save(nn.ModuleDict({"cell": cell, "fc": fc}).state_dict(), tmp_path / "cell.pt")
    assert exported(path).manifest.lstm.num_layers == 1
    x, state, ys = rows(), None, []
    for step in torch.from_numpy(x).unbind(1):
        state = cell(step, state)
        ys.append(fc(state[0]))
    expected = torch.stack(ys, 1).detach().numpy()
    np.testing.assert_allclose(onnx_answers(path, x)[0], expected, atol=TOLERANCE)


def test_a_convolution_of_kernel_one_is_a_linear_head(tmp_path: Path) -> None:
    """Its weight [out, H, 1] is a Linear's with one axis more."""
    net = Net()
    conv = nn.Conv1d(HIDDEN, OUTPUTS, 1)
    tensors = {**net.lstm.state_dict(prefix="lstm."), **conv.state_dict(prefix="out.")}
    path = save(tensors, tmp_path / "conv.pt")
    assert exported(path).manifest.lstm.head == (Linear(OUTPUTS),)
    x = rows()
    out, _ = net.lstm(torch.from_numpy(x).transpose(0, 1))
    expected = conv(out.permute(1, 2, 0)).transpose(1, 2).detach().numpy()
    np.testing.assert_allclose(onnx_answers(path, x)[0], expected, atol=TOLERANCE)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_activations_stand_where_the_flags_put_them(tmp_path: Path, activation: str) -> None:
    """They may stand before the head, between its Linears, and after it."""
    net, second = Net(), nn.Linear(OUTPUTS, 2)
    function = getattr(torch, activation)
    tensors = {**net.state_dict(), **second.state_dict(prefix="fc2.")}
    path = save(tensors, tmp_path / "net.pt")
    flags = ["--head", f"fc,{activation},fc2", "--pre-head", "tanh"]
    spec = exported(path, *flags, "--output-activation", "softmax").manifest.lstm
    assert spec.head == ("tanh", Linear(OUTPUTS), activation, Linear(2), "softmax")
    x = rows()
    out = net.lstm(torch.from_numpy(x).transpose(0, 1))[0].transpose(0, 1)
    expected = second(function(net.fc(out.tanh()))).softmax(-1).detach().numpy()
    np.testing.assert_allclose(onnx_answers(path, x)[0], expected, atol=TOLERANCE)


def test_an_embedding_is_used_when_it_is_named(tmp_path: Path) -> None:
    """With its embedding named the model takes tokens."""
    net, table = Net(), nn.Embedding(11, INPUTS)
    tensors = {**table.state_dict(prefix="embed."), **net.state_dict()}
    path = save(tensors, tmp_path / "net.pt")
    assert exported(path, "--embedding", "embed").manifest.lstm.num_embeddings == 11
    tokens = np.random.default_rng(0).integers(0, 11, (4, 9))
    expected = torch_answers(net, table(torch.from_numpy(tokens)).detach().numpy())
    for actual, wanted in zip(onnx_answers(path, tokens), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=TOLERANCE)


def test_means_and_scales_are_part_of_the_model(tmp_path: Path) -> None:
    """(x - mean) / scale comes before and y * scale + mean after, from .npy or one number a
    line."""
    net = Net()
    path = save(net.state_dict(), tmp_path / "net.pt")
    rng = np.random.default_rng(5)
    vectors = {
        "--input-mean": rng.normal(size=INPUTS),
        "--input-scale": rng.uniform(1, 2, INPUTS),
        "--output-mean": rng.normal(size=OUTPUTS),
        "--output-scale": rng.uniform(1, 2, OUTPUTS),
    }
    flags: list[str] = []
    for flag, vector in vectors.items():
        file = tmp_path / (flag[2:] + (".npy" if "input" in flag else ".txt"))
        np.save(file, vector) if file.suffix == ".npy" else np.savetxt(file, vector)
        flags += [flag, str(file)]
    exported(path, *flags)
    x = rows()
    scaled = ((x - vectors["--input-mean"]) / vectors["--input-scale"]).astype(np.float32)
    expected = torch_answers(net, scaled)[0] * vectors["--output-scale"] + vectors["--output-mean"]
    np.testing.assert_allclose(onnx_answers(path, x)[0], expected, atol=5 * TOLERANCE)
