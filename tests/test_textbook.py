"""Holds the textbook's LSTM, in numpy, to torch's and to the server's."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from examples.textbook.lstm import Cell, run


def cell_of(lstm: nn.LSTM) -> Cell:
    """The first layer of a torch LSTM as the textbook's cell, in float64."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    return Cell(*(getattr(lstm, name).detach().double().numpy() for name in names))


def test_the_textbook_is_torch() -> None:
    """f, i, g, o, c and h by numpy in torch's gate order give torch's float64 h and c."""
    torch.manual_seed(3)
    lstm = nn.LSTM(5, 10).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    with torch.inference_mode():
        out, (_, c) = lstm(x)
    trace = run(cell_of(lstm), x.numpy())
    np.testing.assert_allclose(trace.h, out.numpy(), rtol=0, atol=1e-14)
    np.testing.assert_allclose(trace.c[-1], c[0].numpy(), rtol=0, atol=1e-14)
