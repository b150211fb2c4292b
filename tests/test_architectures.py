"""The generator of random networks: what it writes runs, remembers, looks back by its recurrent
layers alone, and is neither saturated nor chaotic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from randomnets import VOCABULARY, architecture

SEEDS = range(40)
BATCH, LENGTH = 3, 40

# torch says once that oneDNN has no projections.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_network_can_be_streamed(seed: int, tmp_path: Path) -> None:
    """A result at a step depends on that step and those before it, and on them in float32 as in
    float64."""
    made = architecture(seed)
    print(made)
    net = made.build(tmp_path)
    inputs = made.draw(np.random.default_rng(seed), BATCH, LENGTH)
    whole, exact = made.results(net, inputs), made.exact_results(net, inputs)
    assert set(whole) == set(made.names)
    start = made.results(net, {name: each[:, :9] for name, each in inputs.items()})
    later = {name: np.concatenate([each[:, 1:2], each[:, 1:]], 1) for name, each in inputs.items()}
    forgot = made.results(net, later)
    assert max(np.abs(forgot[name] - each)[:, 1].max() for name, each in whole.items()) > 1e-4
    for name, each in whole.items():
        assert each.dtype == np.float32
        assert each.shape[:2] == (BATCH, LENGTH)
        np.testing.assert_allclose(start[name], each[:, :9], atol=2e-6, rtol=1e-5)
        np.testing.assert_allclose(each, exact[name], atol=2e-5, rtol=2e-5)
        assert np.abs(each).max() < 100
        assert each.std() > 1e-3


def test_the_whole_vocabulary_is_drawn() -> None:
    """The long form's seeds draw every choice that there is."""
    drawn = [architecture(seed).choices for seed in SEEDS]
    assert set().union(*drawn) == VOCABULARY
