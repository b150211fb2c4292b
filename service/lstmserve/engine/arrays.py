"""Types of the arrays that the engine's parts pass to each other. It has no code."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Input = npt.NDArray[Any]
"""Rows [T, ...] of a model's inputs, in its RowFormat (lstmserve/rows.py)."""
Floats = npt.NDArray[np.float32]
"""States and other values; each use says its axes."""
Output = npt.NDArray[Any]
"""Rows y [T, ...] of a model's outputs, in its RowFormat."""
Index = npt.NDArray[np.int64]
"""Rows of the session table, or indices into a message, [N]."""
Digests = npt.NDArray[np.uint64]
"""[N]; 0 for a step without a number."""
