"""Checks the exported model against the user's own pairs, and says what they leave open."""

from __future__ import annotations

import numpy as np
import torch

from lstmserve.lstm_golden import LstmGolden
from lstmserve.runtime import plain_session
from lstmserve_export.choice import Series, describe_choice, distance
from lstmserve_export.lstm.mends import mends
from lstmserve_export.lstm.network import Network, describe, first_states
from lstmserve_export.lstm.parity import judge, run, run_alone
from lstmserve_export.lstm.reference import Inputs, begins_as_sessions, forward
from lstmserve_export.refusal import Refused


def prove_pairs(content: bytes, case: LstmGolden, network: Network) -> float:
    """How far model.onnx is from the user's y, in units of the allowed error, at most 1.

    Raises Refused, naming the one change that would make the pairs match, if there is one.
    """
    session = plain_session(content)
    outputs = run_alone(session, case), run(session, case, [0, int(case.lengths.max())])
    value = max(judge(output, case) for output in outputs)
    if value <= 1:
        return value
    hint = next(mends(network, case), "check normalisation, activations, order of the axes")
    raise Refused(
        f"--golden: the exported model is not your forward(): the difference is {value:.3g} times "
        f"the allowed one; {hint}; nothing was written"
    )


def start_notes(case: LstmGolden, network: Network) -> tuple[str, ...]:
    """A note where the pairs begin from states that no new session begins from."""
    if begins_as_sessions(network, case):
        return ()
    starts = case.h0, case.c0
    is_same = len(case.lengths) > 1 and all((each == each[:, :1]).all() for each in starts)
    same = ", the same in every sequence," if is_same else ""
    own = "zeros" if network.initial_state is None else "the model's own initial state"
    return (
        f"your pairs begin from h0 and c0{same} but a new session begins from {own}: if forward() "
        "has a learned initial state, give it with --initial-state; otherwise import the state "
        "into the session",
    )


def choice_notes(case: LstmGolden, network: Network) -> tuple[str, ...]:
    """Asks for a window or a running state where the pairs have one y for the last of T rows."""
    window = int(case.lengths[0])
    if case.y.ndim == 3 or window < 2 or (case.lengths != window).any():
        return ()
    lstm = describe(network)
    if lstm.bidirectional:
        return (
            f"your forward() answers for the last of {window} rows: with --window {window} "
            f"(window={window} in Python) a session answers so at each step; without it this model "
            "takes whole sequences only",
        )
    far, series = None, Series.of({"x": case.x[:, :window]})
    if len(case.x) > 1:
        x = series.rows["x"][np.newaxis]
        first = (each.astype(np.float32) for each in first_states(network, lstm, 1))
        inputs = Inputs(x, np.array([x.shape[1]], np.int32), *first)
        far = distance(forward(network, inputs, torch.float64)[0][0, series.ends], case.y)
    return (describe_choice(window, far, is_consecutive=series.is_consecutive),)
