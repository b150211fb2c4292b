"""The tests' own reference compared with onnxruntime, on the portable graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from lstmserve.golden import excess
from lstmserve.head_layers import Linear
from lstmserve.lstm_golden import load_lstm_golden
from lstmserve.manifest import GOLDEN, MODEL
from lstmserve.spec import LstmSpec
from modelmaking import TINY, make_model

SPECS = {
    "tiny": TINY,
    "no bias, no head": LstmSpec(2, 4, bias=False),
    "projected": LstmSpec(3, 6, num_layers=2, proj_size=4, head=(Linear(5), "relu", Linear(2))),
    "projected, bidirectional": LstmSpec(3, 6, 2, proj_size=4, bidirectional=True),
    "bidirectional": LstmSpec(3, 4, 2, bidirectional=True, head=(Linear(3), "softmax")),
    "embedding": LstmSpec(4, 6, num_embeddings=11, head=("tanh", Linear(11, bias=False))),
    "normalised": LstmSpec(3, 4, head=(Linear(2), "sigmoid"), input_norm=True, output_norm=True),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_reference_agrees_with_onnxruntime(tmp_path: Path, spec: LstmSpec) -> None:
    """The float64 reference passes the parity gate against the written model.onnx."""
    make_model(tmp_path, spec, seed=7)
    case = load_lstm_golden((tmp_path / "tiny" / "1" / GOLDEN).read_bytes())["random"]
    session = onnxruntime.InferenceSession(tmp_path / "tiny" / "1" / MODEL)
    x_name = "tokens" if spec.num_embeddings else "x"
    feeds = {x_name: case.x, "lengths": case.lengths, "h0": case.h0, "c0": case.c0}
    y, hn, cn = session.run(["y", "hn", "cn"], feeds)
    for n, length in enumerate(case.lengths):
        assert excess(y[n, :length], case.y[n, :length], case.torch_error) <= 1
    assert case.hn is not None
    assert case.cn is not None
    assert excess(hn, case.hn, case.torch_error) <= 1
    assert excess(cn, case.cn, case.torch_error) <= 1
    assert np.abs(case.y).max() > 0
