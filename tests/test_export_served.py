"""The server accepts what the export writes: golden replay, self-test, Ready."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exporting import HIDDEN, INPUTS, OUTPUTS
from lstmserve.config import Config
from lstmserve.engine.compute.pool import INITIAL
from lstmserve.engine.loading import load_models
from lstmserve_export import export

# torch says once that oneDNN has no projections, here in the test's own forward.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")
SIZES = {
    "one layer": {},
    "three layers without bias": {"num_layers": 3, "bias": False},
    "projection": {"num_layers": 2, "proj_size": 3},
    "bidirectional": {"bidirectional": True},
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_an_exported_model_loads(tmp_path: Path, sizes: dict[str, object]) -> None:
    """Every kind of network loads, with as many pairs of the user's own as allowed, last step
    only."""
    torch.manual_seed(7)
    lstm = nn.LSTM(INPUTS, HIDDEN, batch_first=True, **sizes)
    width = (lstm.proj_size or HIDDEN) * (1 + lstm.bidirectional)
    head = nn.Sequential(nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, OUTPUTS))
    x = np.random.default_rng(0).standard_normal((64, 3, INPUTS)).astype(np.float32)
    y = head(lstm(torch.from_numpy(x))[0])[:, -1].detach().numpy()
    done = export(lstm, head, name="net", models=tmp_path, golden={"x": x, "y": y})
    (model,) = load_models(Config(models=tmp_path, pool_bytes=1 << 20))
    assert model.fingerprint == done.manifest.fingerprint
    assert model.spec == done.manifest.spec


def test_a_model_of_tokens_loads(tmp_path: Path) -> None:
    """A model with an embedding and a softmax at the end loads."""
    head = nn.Sequential(nn.Linear(HIDDEN, 7), nn.Softmax(dim=-1))
    table = nn.Embedding(7, INPUTS)
    export(nn.LSTM(INPUTS, HIDDEN), head, name="net", models=tmp_path, embedding=table)
    (model,) = load_models(Config(models=tmp_path, pool_bytes=1 << 20))
    assert model.spec.lstm is not None
    assert model.spec.lstm.num_embeddings == 7


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_residual_and_a_learned_state_load(tmp_path: Path, sizes: dict[str, object]) -> None:
    """The self-test passes with each layer that a head may have, and new sessions begin from the
    learned state."""
    torch.manual_seed(8)
    lstm = nn.LSTM(INPUTS, HIDDEN, batch_first=True, **sizes)
    width = (lstm.proj_size or HIDDEN) * (1 + lstm.bidirectional)
    layers: list[nn.Module] = [nn.LayerNorm(width)]
    for each in (nn.ELU(0.5), nn.LeakyReLU(), nn.GELU(), nn.SiLU(), nn.Softplus(), nn.Hardtanh()):
        layers += [nn.Linear(width, 7), each]
        width = 7
    head = nn.Sequential(*layers, nn.BatchNorm1d(7), nn.Linear(7, OUTPUTS), nn.LogSoftmax(-1))
    rows = lstm.num_layers * (1 + lstm.bidirectional)
    start = torch.randn(rows, lstm.proj_size or HIDDEN), torch.randn(rows, HIDDEN)
    done = export(lstm, head, name="net", models=tmp_path, residual=[2, 2, 0], initial_state=start)
    (model,) = load_models(Config(models=tmp_path, pool_bytes=1 << 20))
    assert model.fingerprint == done.manifest.fingerprint
    found = (
        model.sequences.layout.initial
        if model.pool is None
        else model.pool.read(np.array([INITIAL]))
    )
    for name, wanted in zip("hc", start, strict=True):
        np.testing.assert_array_equal(found[name][0], wanted.numpy())
