"""export() of live modules: the same folder as from a checkpoint, and its own refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exporting import HIDDEN, INPUTS, OUTPUTS, Net, exported, onnx_answers, rows, save
from lstmserve.head_layers import Linear
from lstmserve_export import Refused, export


def test_live_modules_and_their_checkpoint_are_one_model(tmp_path: Path) -> None:
    """Both have one fingerprint, so sessions may move between them."""
    net = Net(num_layers=2)
    live = export(net.lstm, net.fc, name="net", models=tmp_path / "live")
    assert live.folder == tmp_path / "live" / "net" / "1"
    files = exported(save(net.state_dict(), tmp_path / "net.pt"))
    assert live.manifest.fingerprint == files.manifest.fingerprint


def test_the_modules_stay_as_they_were(tmp_path: Path) -> None:
    """Training can go on after an export: mode, gradients and dtype are unchanged."""
    net = Net().double().train()
    export(net.lstm, net.fc, name="net", models=tmp_path)
    assert net.lstm.training
    assert not net.lstm.batch_first
    assert all(p.requires_grad and p.dtype == torch.float64 for p in net.parameters())


def test_a_sequential_head_keeps_its_order(tmp_path: Path) -> None:
    """Dropout and Identity are left out, and nested Sequentials are flattened."""
    head = nn.Sequential(
        nn.ReLU(),
        nn.Sequential(nn.Linear(HIDDEN, 6, bias=False), nn.Tanh(), nn.Dropout(0.5)),
        nn.Identity(),
        nn.Linear(6, OUTPUTS),
        nn.Softmax(dim=-1),
    )
    lstm = nn.LSTM(INPUTS, HIDDEN, batch_first=True)
    result = export(lstm, head, name="net", models=tmp_path / "models")
    expected = ("relu", Linear(6, bias=False), "tanh", Linear(OUTPUTS), "softmax")
    assert result.manifest.lstm.head == expected
    y = head.eval()(lstm(torch.from_numpy(rows()))[0]).detach().numpy()
    np.testing.assert_allclose(onnx_answers(tmp_path / "net.pt", rows())[0], y, atol=2e-6)


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch's, about oneDNN
def test_everything_at_once(tmp_path: Path) -> None:
    """Embedding, projection, output scale, pairs of tokens and a given version work together."""
    torch.manual_seed(0)
    table, lstm = nn.Embedding(7, INPUTS), nn.LSTM(INPUTS, HIDDEN, proj_size=4, batch_first=True)
    head, scale = nn.Linear(4, 2), [2.0, 3.0]
    tokens = torch.randint(0, 7, (3, 5))
    y = head(lstm(table(tokens))[0]) * torch.tensor(scale)
    result = export(
        lstm,
        head,
        name="net",
        models=tmp_path,
        version=3,
        embedding=table,
        output_scale=scale,
        golden={"tokens": tokens.numpy(), "y": y.detach().numpy()},
    )
    spec = result.manifest.lstm
    assert (spec.num_embeddings, spec.proj_size, spec.output_norm) == (7, 4, True)
    assert result.folder == tmp_path / "net" / "3"


@pytest.mark.parametrize("dim", [-1, 2])
def test_softmax_over_the_features_is_taken(tmp_path: Path, dim: int) -> None:
    """A softmax over the last axis is taken, however the axis is written."""
    head = nn.Sequential(nn.Linear(HIDDEN, OUTPUTS), nn.Softmax(dim=dim))
    result = export(nn.LSTM(INPUTS, HIDDEN), head, name="net", models=tmp_path)
    assert result.manifest.lstm.head[-1] == "softmax"


def weight_normed() -> nn.LSTM:
    """An LSTM with tensors that nn.LSTM does not have."""
    lstm = nn.LSTM(INPUTS, HIDDEN)
    nn.utils.parametrizations.weight_norm(lstm, "weight_hh_l0")
    return lstm


REFUSED: dict[str, tuple[Callable[[], tuple[nn.Module, nn.Module | None]], str]] = {
    "GRU": (lambda: (nn.GRU(2, 3), None), "GRU needs an example of what its forward() takes"),
    "weight norm": (lambda: (weight_normed(), None), "remove weight norm"),
    "PReLU": (lambda: (nn.LSTM(2, 3), nn.PReLU()), "head: PReLU is not served"),
    "a subclass": (lambda: (nn.LSTM(2, 3), nn.ReLU6()), "head: ReLU6 is not served"),
    "LayerNorm of two axes": (
        lambda: (nn.LSTM(2, 3), nn.LayerNorm((4, 3))),
        "is not over the features alone",
    ),
    "LayerNorm of another width": (
        lambda: (nn.LSTM(2, 3), nn.LayerNorm(4)),
        "a LayerNorm reads 4 values, but 3 come to it",
    ),
    "BatchNorm of the batch": (
        lambda: (nn.LSTM(2, 3), nn.BatchNorm1d(3, track_running_stats=False)),
        "has no running statistics",
    ),
    "BatchNorm of another width": (
        lambda: (nn.LSTM(2, 3), nn.BatchNorm1d(4)),
        "a BatchNorm1d reads 4 values, but 3 come to it",
    ),
    "Softplus of another slope": (
        lambda: (nn.LSTM(2, 3), nn.Softplus(2)),
        "is not torch's default",
    ),
    "Hardtanh to 6": (lambda: (nn.LSTM(2, 3), nn.Hardtanh(0, 6)), "is not from -1 to 1"),
    "infinite alpha": (lambda: (nn.LSTM(2, 3), nn.ELU(float("inf"))), "a finite number as alpha"),
    "log softmax over time": (lambda: (nn.LSTM(2, 3), nn.LogSoftmax(1)), "LogSoftmax(dim=1)"),
    "softmax over time": (lambda: (nn.LSTM(2, 3), nn.Softmax(dim=1)), "Softmax(dim=1)"),
    "wrong width": (lambda: (nn.LSTM(2, 3), nn.Linear(4, 1)), "a Linear reads 4 values, but 3"),
    "65 layers": (lambda: (nn.LSTM(2, 3, 65), None), "num_layers is 65"),
}


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_modules_that_are_not_served(
    tmp_path: Path, make: Callable[[], tuple[nn.Module, nn.Module | None]], says: str
) -> None:
    """They are refused by name, and nothing is written."""
    lstm, head = make()
    with pytest.raises(Refused) as error:
        export(lstm, head, name="net", models=tmp_path / "models")
    assert says in str(error.value)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"residual": "some"}, "residual is 'some', must be \"all\" or"),
        ({"residual": "all"}, "residual has 5 columns of x, must have one for each of the 3"),
        ({"residual": [0, 1]}, "residual has 2 columns of x, must have one for each of the 3"),
        ({"residual": [0, 1, 5]}, r"residual is \(0, 1, 5\), must be columns of x in \[0, 4\]"),
        (
            {"initial_state": (np.zeros((1, 8)), np.zeros(8))},
            r"c0 has shape \[8\], must be \[1, 8\]",
        ),
        ({"initial_state": (np.full((1, 8), np.nan), np.zeros((1, 8)))}, r"initial\.h has NaN"),
    ],
    ids=str,
)
def test_parts_that_do_not_fit_are_refused(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    """A residual needs a column for each output, and an initial state the LSTM's sizes."""
    net = Net()
    with pytest.raises(Refused, match=says):
        export(net.lstm, net.fc, name="net", models=tmp_path / "models", **options)
    assert not (tmp_path / "models").exists()
    with pytest.raises(Refused, match="is exported as it is"):
        export(net, name="net", example=torch.from_numpy(rows()), models=tmp_path, **options)


def test_weights_that_diverged_are_refused(tmp_path: Path) -> None:
    """NaN in a live module is found as in a file."""
    net = Net()
    with torch.no_grad():
        net.fc.bias[0] = float("nan")
    with pytest.raises(Refused, match=r"head\.0\.bias has NaN"):
        export(net.lstm, net.fc, name="net", models=tmp_path)


def test_an_embedding_that_renormalises_is_refused(tmp_path: Path) -> None:
    """An embedding with max_norm is refused, because it changes rows while it runs."""
    with pytest.raises(Refused, match="max_norm"):
        export(
            nn.LSTM(4, 3),
            name="net",
            models=tmp_path,
            embedding=nn.Embedding(5, 4, max_norm=1.0),
        )


@pytest.mark.parametrize("good", [True, False])
def test_pairs_may_be_arrays(tmp_path: Path, good: bool) -> None:
    """Arrays pass the same gate as the file of --golden."""
    net = Net()
    x = torch.from_numpy(rows())
    y = net.fc(net.lstm(x.transpose(0, 1))[0]).transpose(0, 1).detach().numpy()
    golden = {"x": x.numpy(), "y": y if good else y + 1}
    if good:
        result = export(net.lstm, net.fc, name="net", models=tmp_path, golden=golden)
        assert "user" in result.manifest.parity["excess"]
    else:
        with pytest.raises(Refused, match="not your forward"):
            export(net.lstm, net.fc, name="net", models=tmp_path, golden=golden)
