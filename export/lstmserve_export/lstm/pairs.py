"""Takes the user's own pairs: x, and the y that forward() gave. Never compares them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lstmserve.golden import Floats, torch_error_max
from lstmserve.lstm_golden import LstmGolden
from lstmserve.spec import LstmSpec
from lstmserve_export.arrays import Array, Arrays
from lstmserve_export.lstm.network import Network, first_states
from lstmserve_export.lstm.reference import Inputs, refer
from lstmserve_export.refusal import Refused

FIELDS = ("x", "tokens", "y", "lengths", "h0", "c0", "hn", "cn")
# The server runs them at every start, each sequence in slots of its own.
SEQUENCE_COUNT_MAX = 64
ROW_COUNT_MAX = 10_000


@dataclass(frozen=True, slots=True)
class _Fields:
    """The arrays by name. Each method checks the array that it returns."""

    arrays: Arrays

    def floats(self, name: str, *shapes: tuple[int, ...]) -> Floats:
        """A finite float64 array of one of the shapes. Raises Refused."""
        array = self.any(name, *shapes)
        if array.dtype.kind not in "fiu":
            raise Refused(f"--golden: {name} is {array.dtype}, must be numbers")
        floats = array.astype(np.float64)
        if not np.isfinite(floats).all():
            raise Refused(f"--golden: {name} has NaN or infinite values: give rows without")
        return floats

    def integers(self, name: str, shape: tuple[int, ...], low: int, high: int) -> Array:
        """An int64 array of the shape with values in [low, high]. Raises Refused."""
        array = self.any(name, shape)
        if array.dtype.kind not in "iu" or array.min() < low or array.max() > high:
            raise Refused(f"--golden: {name} must be integers in [{low}, {high}]")
        return array.astype(np.int64)

    def any(self, name: str, *shapes: tuple[int, ...]) -> Array:
        """An array of one of the shapes. Raises Refused."""
        if name not in self.arrays:
            raise Refused(f"--golden: the file has no array {name}")
        array = self.arrays[name]
        if array.shape not in shapes:
            allowed = " or ".join(str(list(shape)) for shape in shapes)
            raise Refused(f"--golden: {name} is {list(array.shape)}, must be {allowed}")
        return array


def take_pairs(arrays: Arrays, network: Network, spec: LstmSpec) -> LstmGolden:
    """The pairs as a golden case, with the user's y, and torch_error computed here from their x.

    Raises Refused for pairs that docs/EXPORT.md does not allow.
    """
    if unknown := sorted(set(arrays) - set(FIELDS)):
        raise Refused(f"--golden: unknown arrays {', '.join(unknown)}; known: {', '.join(FIELDS)}")
    fields = _Fields(_without_padding(arrays))
    inputs = _inputs(fields, network, spec)
    count, rows = inputs.x.shape[:2]
    y = fields.floats("y", (count, rows, spec.output_size), (count, spec.output_size))
    ends = {
        name: fields.floats(name, shape) if name in arrays else None
        for name, shape in _state_shapes(spec, count, "hn", "cn").items()
    }
    case = replace(refer(network, inputs), y=y, hn=ends["hn"], cn=ends["cn"])
    if not case.torch_error <= torch_error_max(case.y, case.hn, case.cn):
        raise Refused(
            f"--golden: torch's own float32 is off by {case.torch_error:.2g} on these rows, "
            "because the network amplifies rounding: give shorter sequences"
        )
    return case


def _inputs(fields: _Fields, network: Network, spec: LstmSpec) -> Inputs:
    name = "tokens" if spec.num_embeddings else "x"
    shape = fields.arrays[name].shape if name in fields.arrays else ()
    count, rows = shape[:2] if len(shape) >= 2 else (0, 0)
    is_small = 1 <= count <= SEQUENCE_COUNT_MAX and 1 <= count * rows <= ROW_COUNT_MAX
    if name in fields.arrays and not is_small:
        raise Refused(
            f"--golden: {name} is {list(shape)}, must be [N, T, ...] with N in "
            f"[1, {SEQUENCE_COUNT_MAX}] and N x T in [1, {ROW_COUNT_MAX}]"
        )
    x: Array
    if spec.num_embeddings:
        x = fields.integers(name, (count, rows), 0, spec.num_embeddings - 1)
    else:
        x = fields.floats(name, (count, rows, spec.input_size)).astype(np.float32)
    lengths = np.full(count, rows)
    if "lengths" in fields.arrays:
        lengths = fields.integers("lengths", (count,), 1, rows)
    first = dict(zip(("h0", "c0"), first_states(network, spec, count), strict=True))
    h0, c0 = (
        (fields.floats(state, shape) if state in fields.arrays else first[state])
        for state, shape in _state_shapes(spec, count, "h0", "c0").items()
    )
    return Inputs(x, lengths.astype(np.int32), h0.astype(np.float32), c0.astype(np.float32))


def _state_shapes(spec: LstmSpec, count: int, h: str, c: str) -> dict[str, tuple[int, int, int]]:
    layers = spec.num_layers * spec.num_directions
    return {h: (layers, count, spec.state_size), c: (layers, count, spec.hidden_size)}


def _without_padding(arrays: Arrays) -> Arrays:
    """x and y with zeros past each length, where their values have no meaning."""
    x, lengths = arrays.get("x", arrays.get("tokens")), arrays.get("lengths")
    if x is None or lengths is None or x.ndim < 2 or lengths.shape != x.shape[:1]:
        return arrays
    valid = lengths[:, None] > np.arange(x.shape[1])
    padded = {
        name: np.where(valid if ndim == 2 else valid[:, :, None], array, array.dtype.type(0))
        for name, ndim in (("x", 3), ("tokens", 2), ("y", 3))
        if (array := arrays.get(name)) is not None
        and array.ndim == ndim
        and array.shape[:2] == valid.shape
        and array.dtype.kind in "fiu"
    }
    return {**arrays, **padded}
