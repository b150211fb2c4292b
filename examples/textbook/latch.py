"""Owns an LSTM of one unit whose weights are set by hand: it is told a fact and keeps it.

The input of a time step is (tell, value, ask). No training, no torch, no server.
    f: open, shut only while told          the old fact stays until a new one comes
    i: shut, open only while told          what comes in between is not let in
    g: the sign of the value
    o: shut, open only while asked         so it is silent until asked
"""

from __future__ import annotations

import numpy as np

from examples.textbook.lstm import Cell, Floats

TELL, VALUE, ASK = range(3)
SURE = 20.0  # sigmoid(20) is 1 - 2e-9, which float32 rounds to 1: nothing is ever forgotten
HEAD_WEIGHT = 1 / np.tanh(1.0)  # h is tanh(1) times the fact


def latch_cell(sure: float = SURE) -> Cell:
    """The cell. `sure` sets how near to 1 the forget gate stays: sigmoid(sure)."""
    weight_ih = np.zeros((4, 3))
    bias_ih = np.zeros(4)
    i, f, g, o = range(4)
    weight_ih[i, TELL], bias_ih[i] = 2 * SURE, -SURE
    weight_ih[f, TELL], bias_ih[f] = -sure - SURE, sure
    weight_ih[g, VALUE] = SURE
    weight_ih[o, ASK], bias_ih[o] = 2 * SURE, -SURE
    return Cell(weight_ih, np.zeros((4, 1)), bias_ih, np.zeros(4))


def tell(value: float) -> Floats:
    """The input row that states the fact, +1 or -1."""
    return np.array([1.0, value, 0.0])


def ask() -> Floats:
    """The input row that asks for it."""
    return np.array([0.0, 0.0, 1.0])


def chatter(count: int, rng: np.random.Generator) -> Floats:
    """Rows [count, 3] that neither tell nor ask, with values that must not be taken for facts."""
    rows = np.zeros((count, 3))
    rows[:, VALUE] = rng.uniform(-1, 1, count)
    return rows
