"""The LSTM as a textbook writes it, gate by gate in numpy. It needs no torch, and it is slow.

The formulas and their names are those of torch.nn.LSTM's documentation (after Hochreiter and
Schmidhuber 1997, with the forget gate of Gers et al. 2000):
    f = sigmoid(W_f x + b_f + U_f h + d_f)    what to keep of the cell
    i = sigmoid(W_i x + b_i + U_i h + d_i)    what to let in
    g =    tanh(W_g x + b_g + U_g h + d_g)    what could be let in
    o = sigmoid(W_o x + b_o + U_o h + d_o)    what to show
    c = f * c + i * g
    h = o * tanh(c)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
ORDER = "ifgo"  # the order of the gates in torch's matrices


@dataclass(frozen=True, slots=True)
class Cell:
    """One layer's weights as torch holds them: rows are the gates i, f, g, o of H units each.

    weight_ih [4H, I], weight_hh [4H, H], bias_ih [4H], bias_hh [4H].
    """

    weight_ih: Floats
    weight_hh: Floats
    bias_ih: Floats
    bias_hh: Floats

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.weight_hh.shape[1]


@dataclass(frozen=True, slots=True)
class Trace:
    """The gates and the state of each time step: f, i, g, o, c, h, each [T, H]."""

    f: Floats
    i: Floats
    g: Floats
    o: Floats
    c: Floats
    h: Floats


def sigmoid(z: Floats) -> Floats:
    """1 / (1 + exp(-z))."""
    return 1 / (1 + np.exp(-z))


def step(cell: Cell, x: Floats, h: Floats, c: Floats) -> dict[str, Floats]:
    """Computes a time step of x [I], h [H], c [H]. Returns the gates, the new c and h, each [H]."""
    z = cell.weight_ih @ x + cell.bias_ih + cell.weight_hh @ h + cell.bias_hh
    z_i, z_f, z_g, z_o = np.split(z, 4)
    f, i, g, o = sigmoid(z_f), sigmoid(z_i), np.tanh(z_g), sigmoid(z_o)
    c = f * c + i * g
    h = o * np.tanh(c)
    return {"f": f, "i": i, "g": g, "o": o, "c": c, "h": h}


def run(cell: Cell, x: Floats, h: Floats | None = None, c: Floats | None = None) -> Trace:
    """Computes a sequence x [T, I] from h [H] and c [H], zeros by default."""
    h = np.zeros(cell.hidden_size) if h is None else h
    c = np.zeros(cell.hidden_size) if c is None else c
    rows = []
    for row in x:
        rows.append(step(cell, row, h, c))
        h, c = rows[-1]["h"], rows[-1]["c"]
    return Trace(**{name: np.stack([row[name] for row in rows]) for name in "figoch"})
