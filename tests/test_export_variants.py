"""Every kind of nn.LSTM that is exported equals torch on inputs the export has not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exporting import HIDDEN, INPUTS, OUTPUTS, Net, exported, onnx_answers, rows, save
from lstmserve.spec import Linear

# torch says once that oneDNN has no projections, here in the tests' own forward.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")
TOLERANCE = 2e-6

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
    """y, hn, cn of the net's own forward, whatever its order of axes."""
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
    """Sizes are inferred from the tensors alone, and y, hn and cn are torch's."""
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
    """Padding reaches neither y nor the state, also read backwards."""
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


def test_an_lstm_without_a_head_answers_its_own_output(tmp_path: Path) -> None:
    """A bare nn.LSTM's state dict needs no flag."""
    net = Net(num_layers=2)
    path = save(net.lstm.state_dict(), tmp_path / "bare.pt")
    assert exported(path).manifest.lstm.head == ()
    x = rows()
    expected = net.lstm(torch.from_numpy(x).transpose(0, 1))[0].transpose(0, 1)
    np.testing.assert_allclose(onnx_answers(path, x)[0], expected.detach().numpy(), atol=TOLERANCE)


def test_an_lstm_cell_is_an_lstm_of_one_layer(tmp_path: Path) -> None:
    """nn.LSTMCell's names have no layer number."""
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
    """Its weight [out, H, 1] is the Linear's with an axis more."""
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
    """Before the head, between its Linears, after it."""
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
    """The model then takes tokens."""
    net, table = Net(), nn.Embedding(11, INPUTS)
    tensors = {**table.state_dict(prefix="embed."), **net.state_dict()}
    path = save(tensors, tmp_path / "net.pt")
    assert exported(path, "--embedding", "embed").manifest.lstm.num_embeddings == 11
    tokens = np.random.default_rng(0).integers(0, 11, (4, 9))
    expected = torch_answers(net, table(torch.from_numpy(tokens)).detach().numpy())
    for actual, wanted in zip(onnx_answers(path, tokens), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=TOLERANCE)


def test_means_and_scales_are_part_of_the_model(tmp_path: Path) -> None:
    """(x - mean) / scale before, y * scale + mean after; .npy or one number a line."""
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
