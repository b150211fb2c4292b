"""The models for the client's tests, and one server process that serves them all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest

from lstmserve.graph import Weights
from lstmserve.head_layers import Elu, LayerNorm, Linear
from lstmserve.spec import LstmSpec
from modelmaking import TINY, Floats, make_model, reference
from serving import COMMAND, Serving

SPECS: Final = {
    "tiny": TINY,
    "letters": LstmSpec(input_size=4, hidden_size=6, num_embeddings=10, head=(Linear(3),)),
    "projected": LstmSpec(input_size=3, hidden_size=6, num_layers=2, proj_size=4),
    "both": LstmSpec(
        *(3, 4), bidirectional=True, head=(Linear(2),), residual=(0, 2), initial_state=True
    ),
    "learned": LstmSpec(
        *(3, 5, 2),
        head=(LayerNorm(), Linear(3), Elu()),
        input_norm=True,
        output_norm=True,
        residual=(2, 0, 1),
        initial_state=True,
    ),
}
TOLERANCE: Final = 2e-5


class Zoo:
    """The server and the weights of its models; tiny has the versions 1 and 2."""

    def __init__(self, serving: Serving, weights: dict[str, Weights]) -> None:
        self.target = serving.target
        self.serving = serving
        self._weights = weights

    def expected(
        self,
        model: str,
        x: npt.ArrayLike,
        h0: npt.ArrayLike | None = None,
        c0: npt.ArrayLike | None = None,
    ) -> tuple[Floats, Floats, Floats]:
        """y, hn, cn of one sequence by the float64 reference."""
        h0, c0 = (None if part is None else np.asarray(part) for part in (h0, c0))
        return reference(SPECS[model], self._weights[model], np.asarray(x), h0, c0)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """One server with every model of the zoo, shared by tests that close what they open."""
    folder = tmp_path_factory.mktemp("zoo")
    weights = {name: make_model(folder, spec, seed=7, name=name) for name, spec in SPECS.items()}
    weights["tiny"] = make_model(folder, TINY, seed=8, name="tiny", version=2)
    serving = Serving(("--models", folder), COMMAND)
    yield Zoo(serving, weights)
    assert serving.metric("lstm_sessions") == 0, "a test left a session open"
    assert serving.stop() == 0
