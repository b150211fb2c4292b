"""Computes what a network must give: torch's float64 result, and the error of its float32.

Must not know ONNX, so that it is an independent check of the graph.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstmserve.lstm_golden import LstmGolden
from lstmserve_export.lstm.network import (
    Floats,
    Network,
    Norm,
    describe,
    first_states,
    to_dtype,
)


@dataclass(frozen=True, slots=True)
class Inputs:
    """N sequences: x float32 [N, T, I] or tokens int64 [N, T]; lengths int32 [N], each in [1, T].

    h0 [L, N, state], c0 [L, N, H]; L is num_layers * directions.
    """

    x: npt.NDArray[np.generic]
    lengths: npt.NDArray[np.int32]
    h0: npt.NDArray[np.floating[Any]]
    c0: npt.NDArray[np.floating[Any]]


def refer(network: Network, inputs: Inputs) -> LstmGolden:
    """The inputs with torch's float64 answers y [N, T, O], hn, cn and its float32 error.

    y past a sequence's length is zero.
    """
    valid = inputs.lengths[:, None] > np.arange(inputs.x.shape[1])
    exact = forward(network, inputs, torch.float64)
    single = forward(network, inputs, torch.float32)
    y_error = np.abs(exact[0] - single[0])[valid]
    errors = [y_error, np.abs(exact[1] - single[1]), np.abs(exact[2] - single[2])]
    return LstmGolden(
        x=inputs.x,
        lengths=inputs.lengths,
        h0=inputs.h0.astype(np.float32),
        c0=inputs.c0.astype(np.float32),
        y=np.where(valid[:, :, None], exact[0], 0.0),
        hn=exact[1],
        cn=exact[2],
        torch_error=max(float(error.max()) for error in errors),
    )


@torch.no_grad()
def forward(network: Network, inputs: Inputs, dtype: torch.dtype) -> tuple[Floats, Floats, Floats]:
    """y [N, T, O], hn [L, N, state], cn [L, N, H], computed in `dtype`, given as float64."""
    copy = to_dtype(network, dtype)
    x = torch.from_numpy(np.array(inputs.x))
    x = copy.embedding(x) if copy.embedding is not None else x.to(dtype)
    if norm := copy.input_norm:
        mean, scale = _tensors(norm, dtype)
        x = (x - mean) / scale
    lengths = torch.from_numpy(inputs.lengths.astype(np.int64))
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    state = tuple(torch.from_numpy(np.array(part)).to(dtype) for part in (inputs.h0, inputs.c0))
    with warnings.catch_warnings():
        # torch warns once that oneDNN has no projections, and then computes without oneDNN.
        warnings.filterwarnings("ignore", "LSTM with projections")
        out, (hn, cn) = copy.lstm(packed, state)
    y, _ = pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
    y = copy.head(y.flatten(0, 1)).unflatten(0, y.shape[:2])
    if copy.residual:
        y = y + x[..., list(copy.residual)]
    if norm := copy.output_norm:
        mean, scale = _tensors(norm, dtype)
        y = y * scale + mean
    y, hn, cn = (tensor.to(torch.float64).numpy() for tensor in (y, hn, cn))
    return y, hn, cn


def begins_as_sessions(network: Network, case: LstmGolden) -> bool:
    """Whether every sequence begins from the state of a new session."""
    first = first_states(network, describe(network), len(case.lengths))
    return all(
        np.array_equal(given, each.astype(np.float32))
        for given, each in zip((case.h0, case.c0), first, strict=True)
    )


def _tensors(norm: Norm, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(norm.mean).to(dtype), torch.from_numpy(norm.scale).to(dtype)
