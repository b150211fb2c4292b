"""Small ONNX files whose nodes mix the rows of a batch where answers seldom show it.

Each has an input x, a state s and maybe a counter n, and answers each session right when it is
alone. One entry each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxfiles import model_of

FLOATS: Final = "(float[B, 4] x, float[B, 4] s) => (float[B, 4] y, float[B, 4] s_out)"
COUNTED: Final = (
    "(float[B, 4] x, float[B, 4] s, int64[B] n)"
    " => (float[B, 4] y, float[B, 4] s_out, int64[B] n_out)"
)
NUMBERED: Final = "(float[B, 4] x, int64[B] n, float[B, 4] s) => (float[B, 4] y, float[B, 4] s_out)"
STEP: Final = "h = Add (x, s)\ns_out = Tanh (h)\n"
CONSTANTS: Final = {
    "zero": np.array(0),
    "one": np.array(1),
    "many": np.array(5000),
    "late": np.array(100),
    "two": np.array(2),
    "last": np.array([-1]),
    "before": np.array([-(1 << 40)]),
    "sixty_four": np.array(64),
    "hundred": np.array([100]),
    "four": np.array([-1, 4]),
    "parts": np.array([2, -1, 4]),
    "at0": np.array([0]),
    "at1": np.array([1]),
    "end": np.array([1 << 40]),
    "high": np.array(500, np.float32),
    "yes": np.array(True),
    "start": np.zeros(4, np.float32),
    "table": np.repeat(np.array([1, 2], np.float32), (30, 500)).reshape(-1, 1),
    "w": np.random.default_rng(5).uniform(-1, 1, (4, 4)).astype(np.float32),
}


@dataclass(frozen=True, slots=True)
class MixedFile:
    """`size` sessions, `scale` of x, `numbers` to which n goes, and `steps` that show the fault."""

    signature: str
    body: str
    size: int = 5
    scale: float = 1.0
    numbers: int = 100
    steps: int = 3

    def content(self) -> bytes:
        """The file."""
        text = (
            f'<ir_version: 8, opset_import: ["": 17]>\nmixed {self.signature}\n{{\n{self.body}\n}}'
        )
        words = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
        return model_of(text, {n: a for n, a in CONSTANTS.items() if n in words})

    @property
    def pairs(self) -> tuple[str, ...]:
        """IN:OUT of its states."""
        return ("s:s_out", "n:n_out") if "n_out" in self.signature else ("s:s_out",)


MIXED: Final = {
    "a sum of the rows ahead, where x is large": MixedFile(
        FLOATS,
        f"{STEP}sums = CumSum (x, zero)\nis_high = Greater (x, high)\n"
        "y = Where (is_high, sums, s_out)",
        scale=1e3,
    ),
    "the same of integers beyond those that are drawn": MixedFile(
        NUMBERED,
        f"{STEP}is_high = Greater (n, many)\nbits = Cast <to = 7> (is_high)\n"
        "sums = CumSum (bits, zero)\nas_float = Cast <to = 1> (sums)\n"
        "column = Unsqueeze (as_float, at1)\ny = Add (s_out, column)",
        numbers=10_000,
    ),
    "the largest integer of the batch": MixedFile(
        NUMBERED,
        f"{STEP}most = ReduceMax <keepdims = 1> (n)\nis_high = Greater (most, many)\n"
        "chosen = Where (is_high, most, n)\nas_float = Cast <to = 1> (chosen)\n"
        "column = Unsqueeze (as_float, at1)\ny = Add (s_out, column)",
        numbers=10_000,
    ),
    "a sum over the batch after many steps": MixedFile(
        COUNTED,
        f"n_out = Add (n, one)\n{STEP}is_late = Greater (n, late)\n"
        "column = Unsqueeze (is_late, at1)\nsum = ReduceSum <keepdims = 1> (s_out, at0)\n"
        "y = Where (column, sum, s_out)",
        steps=140,
    ),
    "the rows turned around, for integers beyond those that are drawn": MixedFile(
        NUMBERED,
        f"{STEP}is_high = Greater (n, many)\nbits = Cast <to = 1> (is_high)\n"
        "column = Unsqueeze (bits, at1)\nloud = Mul (column, x)\n"
        "turned = Slice (loud, last, before, at0, last)\ny = Add (s_out, turned)",
        numbers=10_000,
    ),
    "row 0 in a batch of 64": MixedFile(
        FLOATS,
        f"{STEP}shape = Shape (x)\nrows = Gather (shape, zero)\nis_64 = Equal (rows, sixty_four)\n"
        "first = Slice (s_out, at0, at1, at0)\ny = Where (is_64, first, s_out)",
        size=64,
    ),
    "a factor by the number of rows": MixedFile(
        FLOATS,
        f"{STEP}shape = Shape (x)\nrows = Gather (shape, zero)\nis_64 = Equal (rows, sixty_four)\n"
        "bit = Cast <to = 1> (is_64)\ny = Add (s_out, bit)",
        size=64,
    ),
    "the rows behind the first 100": MixedFile(
        FLOATS,
        f"{STEP}ahead = Slice (s_out, at0, hundred, at0)\nbehind = Slice (s_out, hundred, end, at0)"
        "\nother = Neg (behind)\ny = Concat <axis = 0> (ahead, other)",
        size=150,
    ),
    "a branch that one session takes for all": MixedFile(
        NUMBERED,
        f"{STEP}most = ReduceMax <keepdims = 0> (n)\nis_high = Greater (most, many)\n"
        "y = If (is_high) <then_branch = high () => (float[B, 4] a) {a = Neg (s_out)},"
        " else_branch = low () => (float[B, 4] b) {b = Identity (s_out)}>",
        numbers=10_000,
    ),
    "turns of a Loop that one session says": MixedFile(
        NUMBERED,
        "most = ReduceMax <keepdims = 0> (n)\nturns = Div (most, many)\nall = Add (turns, one)\n"
        "s_out = Loop <body = turn (int64 i, bool on, float[B, 4] now)"
        " => (bool still, float[B, 4] next)\n"
        "{still = Identity (on)\nsum = Add (now, x)\nnext = Tanh (sum)}> (all, yes, s)\n"
        "y = Identity (s_out)",
        numbers=20_000,
    ),
    "a sum of the rows within a Loop": MixedFile(
        FLOATS,
        "s_out = Loop <body = turn (int64 i, bool on, float[B, 4] now)"
        " => (bool still, float[B, 4] next)\n"
        "{still = Identity (on)\nsum = Add (now, x)\nsums = CumSum (x, zero)\n"
        "is_high = Greater (x, high)\nchosen = Where (is_high, sums, sum)\n"
        "next = Tanh (chosen)}> (one, yes, s)\ny = Identity (s_out)",
        scale=1e3,
    ),
    "rows that are chosen": MixedFile(
        NUMBERED,
        f"{STEP}is_high = Greater (n, many)\nplaces = NonZero (is_high)\nshape = Shape (places)\n"
        "count = Gather (shape, one)\nas_float = Cast <to = 1> (count)\ny = Add (s_out, as_float)",
        numbers=10_000,
    ),
}
# A batch that is right, although its rows seem to meet.
APART: Final = {
    "rows beside other values on one axis": MixedFile(
        "(float[B, 2, 4] x, float[B, 2, 4] s) => (float[B, 2, 4] y, float[B, 2, 4] s_out)",
        "turned = Transpose <perm = [1, 0, 2]> (x)\nflat = Reshape (turned, four)\n"
        "seen = MatMul (flat, w)\nparted = Reshape (seen, parts)\n"
        "back = Transpose <perm = [1, 0, 2]> (parted)\nh = Add (back, s)\ns_out = Tanh (h)\n"
        "y = Identity (s_out)",
    ),
    "zeros as many as rows": MixedFile(
        FLOATS,
        "shape = Shape (x)\nzeros = ConstantOfShape (shape)\nmore = Add (x, zeros)\n"
        "h = Add (more, s)\ns_out = Tanh (h)\ny = Identity (s_out)",
    ),
    "a counter of turns": MixedFile(
        FLOATS,
        "turns, s_out = Loop <body = turn (int64 i, bool on, int64 count, float[B, 4] now)"
        " => (bool still, int64 counted, float[B, 4] next)\n"
        "{still = Identity (on)\ncounted = Add (count, one)\nsum = Add (now, x)\n"
        "next = Tanh (sum)}> (two, yes, zero, s)\ny = Identity (s_out)",
    ),
}
