"""An LSTM of one unit with weights set by hand: it takes in a fact and keeps it.

The input of a time step is (tell, value, ask). It needs no training, no torch and no server.
    f: open, shut only when tell is 1      the old fact stays until a new one comes
    i: shut, open only when tell is 1      values in between do not get in
    g: the sign of the value
    o: shut, open only when ask is 1       the output is 0 until then
"""

from __future__ import annotations

import numpy as np

from examples.textbook.lstm import Cell, Floats

TELL, VALUE, ASK = range(3)
SURE = 20.0  # sigmoid(20) is 1 - 2e-9, which float32 rounds to 1: nothing is ever forgotten
HEAD_WEIGHT = 1 / np.tanh(1.0)  # h is tanh(1) times the fact


def latch_cell(sure: float = SURE) -> Cell:
    """The cell. Its forget gate stays at sigmoid(sure) while no fact comes."""
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
    """Rows [count, 3] that neither tell nor ask; the cell must not take their values for facts."""
    rows = np.zeros((count, 3))
    rows[:, VALUE] = rng.uniform(-1, 1, count)
    return rows
