"""Checks the exported model against the user's own pairs. Never writes.

If they differ, it looks for one change of the network that would make them match.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import torch
from torch import nn

from lstmserve.lstm_golden import LstmGolden
from lstmserve.spec import ACTIVATIONS
from lstmserve_export.lstm.network import Network, make_activation
from lstmserve_export.lstm.parity import judge, open_session, run, run_alone
from lstmserve_export.lstm.reference import Inputs, forward
from lstmserve_export.refusal import Refused
from lstmserve_export.scalers.min_max import other_readings


def prove_pairs(content: bytes, case: LstmGolden, network: Network) -> float:
    """How far model.onnx is from the user's y, in units of the allowed error, at most 1.

    Raises Refused, naming the one change that would make the pairs match, if there is one.
    """
    session = open_session(content)
    outputs = run_alone(session, case), run(session, case, [0, int(case.lengths.max())])
    value = max(judge(output, case) for output in outputs)
    if value <= 1:
        return value
    hint = next(_mends(network, case), "check normalisation, activations, order of the axes")
    raise Refused(
        f"--golden: the exported model is not your forward(): the difference is {value:.3g} times "
        f"the allowed one; {hint}; nothing was written"
    )


def _mends(network: Network, case: LstmGolden) -> Iterator[str]:
    """Hints on what would make the pairs match: an activation that no flag named, another reading
    of the scalers, or other axes."""
    for place, name in product(range(len(network.head) + 1), ACTIVATIONS):
        layers = list(network.head)
        layers.insert(place, make_activation(name))
        if _matches(replace(network, head=nn.Sequential(*layers)), case):
            yield f"with {name} {_where(place, len(network.head))} it would match"
    for words, changed in _other_norms(network):
        if _matches(changed, case):
            yield f"with {words} it would match"
    if case.y.ndim == 3 and len(set(case.lengths)) == 1:
        axes = (1, 0, *range(2, case.x.ndim))
        count, rows = case.x.shape[:2]
        states = (
            np.zeros((len(state), rows, state.shape[2]), np.float32) for state in (case.h0, case.c0)
        )
        h0, c0 = states
        swapped = replace(
            case,
            x=case.x.transpose(axes),
            y=case.y.transpose(1, 0, 2),
            lengths=np.full(rows, count, np.int32),
            h0=h0,
            c0=c0,
            hn=None,
            cn=None,
        )
        if _matches(network, swapped):
            yield "x and y are time-major: store them as [N, T, ...]"


def _other_norms(network: Network) -> Iterator[tuple[str, Network]]:
    """The network with other readings of its scalers, each in words."""
    readings = (
        other_readings(side, {} if norm is None else {"": norm})
        for side, norm in (("input", network.input_norm), ("output", network.output_norm))
    )
    for (x_words, x), (y_words, y) in list(product(*readings))[1:]:
        words = " and with ".join(filter(None, (x_words, y_words)))
        yield words, replace(network, input_norm=x.get(""), output_norm=y.get(""))


def _where(place: int, count: int) -> str:
    if place == count:
        return "after the head (--output-activation or --head ...)"
    return "before the head (--pre-head)" if place == 0 else f"before layer {place + 1} of the head"


def _matches(network: Network, case: LstmGolden) -> bool:
    inputs = Inputs(case.x, case.lengths, case.h0, case.c0)
    return judge(forward(network, inputs, torch.float64), case) <= 1
