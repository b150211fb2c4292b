"""What the export writes, the server finds good: golden replay, pool self-test, Ready."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exporting import HIDDEN, INPUTS, OUTPUTS
from lstmserve.config import Config
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
    """Every kind, with pairs of the user's own: as many as are allowed, last time step only."""
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
    """Embedding, and a softmax at the end."""
    head = nn.Sequential(nn.Linear(HIDDEN, 7), nn.Softmax(dim=-1))
    table = nn.Embedding(7, INPUTS)
    export(nn.LSTM(INPUTS, HIDDEN), head, name="net", models=tmp_path, embedding=table)
    (model,) = load_models(Config(models=tmp_path, pool_bytes=1 << 20))
    assert model.spec.lstm.num_embeddings == 7
