"""The proof itself: it finds a fault wherever one can be, and finds nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exporting import HIDDEN, INPUTS, OUTPUTS
from lstmserve.graph import Weights, build_portable
from lstmserve_export import export
from lstmserve_export.lstm.convert import convert
from lstmserve_export.lstm.network import Network, describe, take_head, take_lstm, take_state
from lstmserve_export.lstm.parity import check_start, prove, random_inputs
from lstmserve_export.lstm.reference import Inputs, forward, refer
from lstmserve_export.refusal import Refused
from lstmserve_export.sequences import LENGTHS

Fault = Callable[[dict[str, np.ndarray]], None]


def two_layers() -> Network:
    """A network with one of everything that a fault can change."""
    torch.manual_seed(3)
    return Network(take_lstm(nn.LSTM(INPUTS, HIDDEN, 2)), take_head(nn.Linear(HIDDEN, OUTPUTS)))


def with_everything() -> Network:
    """A network with norms in its head, a residual and a learned initial state."""
    torch.manual_seed(4)
    lstm = take_lstm(nn.LSTM(INPUTS, HIDDEN, 2))
    norm = nn.BatchNorm1d(HIDDEN)
    norm(torch.randn(20, HIDDEN) * 2 + 1)
    head = take_head(nn.Sequential(nn.LayerNorm(HIDDEN), norm, nn.Linear(HIDDEN, OUTPUTS)))
    start = take_state((torch.randn(2, HIDDEN), torch.randn(2, HIDDEN)), lstm)
    return Network(lstm, head, residual=(3, 0, 1), initial_state=start)


def proved(network: Network, weights: Weights) -> None:
    """Runs the proof on a model.onnx with these weights."""
    spec = describe(network)
    content = build_portable(spec, weights).SerializeToString()
    check_start(content, network, spec)
    prove(content, spec, refer(network, random_inputs(network, spec, LENGTHS)), lambda stage: None)


def swap_layers(w: dict[str, np.ndarray]) -> None:
    """Swaps the recurrent weights of the two layers."""
    w["lstm.0.R"], w["lstm.1.R"] = w["lstm.1.R"], w["lstm.0.R"]


def swap_biases(w: dict[str, np.ndarray]) -> None:
    """Swaps input and recurrent biases, which is no fault, because only their sum counts."""
    w["lstm.0.B"] = np.roll(w["lstm.0.B"], 4 * HIDDEN, axis=1)


def roll_gates(w: dict[str, np.ndarray]) -> None:
    """Rolls the gates of one layer by one."""
    w["lstm.1.W"] = np.roll(w["lstm.1.W"], HIDDEN, axis=1)


def roll_units(w: dict[str, np.ndarray]) -> None:
    """Rolls the units of one layer by one."""
    w["lstm.1.R"] = np.roll(w["lstm.1.R"], 1, axis=2)


def one_weight(w: dict[str, np.ndarray]) -> None:
    """Changes one of 1,000 weights by a thousandth."""
    w["lstm.0.R"] = w["lstm.0.R"].copy()
    w["lstm.0.R"][0, 5, 5] += 1e-3


def head_bias(w: dict[str, np.ndarray]) -> None:
    """Drops the head's bias."""
    w["head.0.bias"] = np.zeros_like(w["head.0.bias"])


@pytest.mark.parametrize("fault", [swap_layers, roll_gates, roll_units, one_weight, head_bias])
def test_a_planted_fault_fails_the_proof(fault: Fault) -> None:
    """Each planted fault is as large as a real mistake, or smaller, and the proof finds it."""
    network = two_layers()
    weights = dict(convert(network, describe(network)))
    fault(weights)
    with pytest.raises(Refused, match="parity failed"):
        proved(network, weights)


def norm_bias(w: dict[str, np.ndarray]) -> None:
    """Drops the LayerNorm's bias, or changes it from zeros."""
    w["head.0.bias"] = w["head.0.bias"] + np.float32(1e-3)


def norm_statistics(w: dict[str, np.ndarray]) -> None:
    """Takes the BatchNorm's mean for zero."""
    w["head.1.offset"] = np.zeros_like(w["head.1.offset"])


def start_of_layers(w: dict[str, np.ndarray]) -> None:
    """Swaps the initial states of the two layers."""
    w["initial.c"] = w["initial.c"][::-1]


@pytest.mark.parametrize("fault", [norm_bias, norm_statistics, start_of_layers])
def test_a_fault_around_the_lstm_fails_the_proof(fault: Fault) -> None:
    """The proof also finds faults in norms and in the initial state, which no sequence shows."""
    network = with_everything()
    weights = dict(convert(network, describe(network)))
    proved(network, weights)
    fault(weights)
    with pytest.raises(Refused, match="parity failed"):
        proved(network, weights)


def test_another_column_of_the_residual_fails_the_proof() -> None:
    """The proof finds a graph that adds x in another order."""
    network = with_everything()
    spec = describe(network)
    other = build_portable(replace(spec, residual=(0, 3, 1)), convert(network, spec))
    case = refer(network, random_inputs(network, spec, LENGTHS))
    with pytest.raises(Refused, match="parity failed"):
        prove(other.SerializeToString(), spec, case, lambda stage: None)


def test_what_is_no_fault_passes() -> None:
    """The proof judges numbers, not tensors."""
    network = two_layers()
    weights = dict(convert(network, describe(network)))
    swap_biases(weights)
    proved(network, weights)


def test_the_random_case_has_200_rows_and_both_kinds_of_start() -> None:
    """Half of its sequences start from zeros, like new sessions, and half from a state."""
    network = two_layers()
    inputs = random_inputs(network, describe(network), LENGTHS)
    assert sum(LENGTHS) == inputs.lengths.sum() == 200
    starts = np.abs(inputs.h0).max(axis=(0, 2)), np.abs(inputs.c0).max(axis=(0, 2))
    for start in starts:
        assert (start[::2] == 0).all()
        assert (start[1::2] > 0).all()


def test_the_reference_is_torch_itself() -> None:
    """forward() with padding equals a plain call of the modules on every sequence."""
    network = two_layers()
    inputs = random_inputs(network, describe(network), LENGTHS)
    y, hn, cn = forward(network, inputs, torch.float64)
    lstm, head = network.lstm.double(), network.head.double()
    for n, length in enumerate(inputs.lengths):
        part = slice(n, n + 1)
        state = tuple(torch.from_numpy(s[:, part]).double() for s in (inputs.h0, inputs.c0))
        out, (h, c) = lstm(torch.from_numpy(inputs.x[part, :length]).double(), state)
        np.testing.assert_allclose(y[part, :length], head(out).numpy(), atol=1e-14)
        np.testing.assert_allclose(hn[:, part], h.numpy(), atol=1e-14)
        np.testing.assert_allclose(cn[:, part], c.numpy(), atol=1e-14)


def test_a_chaotic_network_is_proved_where_float32_means_something(tmp_path: Path) -> None:
    """Large weights amplify rounding, so the sequences are shortened until float32 means something,
    and a note says so."""
    network = two_layers()
    for name, parameter in network.lstm.named_parameters():
        parameter.mul_(30 if "_hh_" in name else 1)
    manifest = export(network.lstm, network.head, name="net", models=tmp_path).manifest
    assert manifest.parity["torch_error"] <= 0.01
    assert manifest.parity["rows"] < sum(LENGTHS)
    assert max(manifest.parity["excess"].values()) <= 1
    (note,) = manifest.notes
    assert "this network amplifies rounding" in note


def test_answers_past_a_length_do_not_count() -> None:
    """Values in the padding of x change nothing."""
    network = two_layers()
    inputs = random_inputs(network, describe(network), LENGTHS)
    past = np.arange(inputs.x.shape[1]) >= inputs.lengths[:, None]
    other = Inputs(np.where(past[:, :, None], 7, inputs.x), inputs.lengths, inputs.h0, inputs.c0)
    first, second = refer(network, inputs), refer(network, replace(other))
    for name in ("y", "hn", "cn"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
