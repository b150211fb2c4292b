"""Takes the user's own pairs: x, and the y that forward() gave. Never compares them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import numpy.typing as npt

from lstmserve.golden import Floats, torch_error_max
from lstmserve.lstm_golden import LstmGolden
from lstmserve.spec import LstmSpec, ModelSpec
from lstmserve_export.arrays import Array, Arrays
from lstmserve_export.lstm.network import Network, first_states
from lstmserve_export.lstm.reference import Inputs, begins_as_sessions, refer
from lstmserve_export.lstm.windows import cut_windows
from lstmserve_export.refusal import Refused, shorten

FIELDS = ("x", "tokens", "y", "lengths", "h0", "c0", "hn", "cn")
# The server runs them at every start, each sequence in slots of its own.
SEQUENCE_COUNT_MAX = 64
ROW_COUNT_MAX = 10_000
OF_SEQUENCES, OF_LAYERS = 0, 1  # where the axis of the sequences is: [N, ...] or [L, N, ...]
Valid = npt.NDArray[np.bool_]
Singles = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Fields:
    """The arrays by name. If they are of one sequence, they may lack the axis of sequences.

    Each method checks the array that it returns, which has that axis always, at `axis`.
    """

    arrays: Arrays
    is_one: bool

    def floats(
        self,
        name: str,
        *shapes: tuple[int, ...],
        axis: int = OF_SEQUENCES,
        valid: Valid | None = None,
    ) -> Floats:
        """A finite float64 array of one of the shapes; zeros where it is not `valid` [N, T].

        Raises Refused.
        """
        array = self.any(name, *shapes, axis=axis)
        if array.dtype.kind not in "fiu":
            raise Refused(f"--golden: {name} is {array.dtype}, must be numbers")
        floats = array.astype(np.float64)
        if valid is not None and floats.shape[:2] == valid.shape and floats.ndim == 3:
            floats[~valid] = 0
        if not np.isfinite(floats).all():
            raise Refused(f"--golden: {name} has NaN or infinite values: give rows without")
        return floats

    def integers(
        self, name: str, shape: tuple[int, ...], low: int, high: int, valid: Valid | None = None
    ) -> Array:
        """An int64 array of the shape with values in [low, high]; zeros where it is not `valid`.

        Raises Refused.
        """
        array = self.any(name, shape)
        if valid is not None and array.dtype.kind in "iu":
            array = np.where(valid, array, array.dtype.type(0))
        if array.dtype.kind not in "iu" or array.min() < low or array.max() > high:
            raise Refused(f"--golden: {name} must be integers in [{low}, {high}]")
        return array.astype(np.int64)

    def any(self, name: str, *shapes: tuple[int, ...], axis: int = OF_SEQUENCES) -> Array:
        """An array of one of the shapes. Raises Refused."""
        if name not in self.arrays:
            raise Refused(f"--golden: the file has no array {name}")
        array = self.arrays[name]
        if array.shape in shapes:
            return array
        wanted = shapes
        if self.is_one:
            wanted = tuple((*shape[:axis], *shape[axis + 1 :]) for shape in shapes)
            if array.shape in wanted:
                return np.expand_dims(array, axis)
        allowed = " or ".join(str(list(shape)) for shape in wanted)
        swap = ": swap its axes" if any(_permutes(array.shape, shape) for shape in wanted) else ""
        raise Refused(f"--golden: {name} is {list(array.shape)}, must be {allowed}{swap}")


def _permutes(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(shape) == len(other) and other in permutations(shape)


def take_pairs(arrays: Arrays, network: Network, spec: LstmSpec) -> LstmGolden:
    """The pairs as a golden case, with the user's y, and torch_error computed here from their x.

    One sequence may lack the axis of sequences. Raises Refused for pairs that docs/EXPORT.md does
    not allow.
    """
    pairs = read_pairs(arrays, network, spec)
    inputs = Inputs(pairs.x, pairs.lengths, pairs.h0, pairs.c0)
    case = replace(refer(network, inputs), y=pairs.y, hn=pairs.hn, cn=pairs.cn)
    return _clear(case, "give shorter sequences")


def take_windows(
    arrays: Arrays, network: Network, spec: ModelSpec
) -> tuple[LstmGolden, LstmGolden]:
    """The pairs, and the windows in them with the user's y, as cut_windows() has them.

    Raises Refused, also for pairs of a running state.
    """
    assert spec.lstm is not None
    if states := [name for name in ("hn", "cn") if name in arrays]:
        raise Refused(f"--golden: with --window a step leaves no {states[0]}: leave it out")
    pairs = read_pairs(arrays, network, spec.lstm)
    if not begins_as_sessions(network, pairs):
        raise Refused(
            "--golden: with --window every window begins from the model's initial state: leave h0 "
            "and c0 out, or give a learned initial state with --initial-state"
        )
    return pairs, _clear(cut_windows(network, spec, pairs), "take a shorter window")


def _clear(case: LstmGolden, mend: str) -> LstmGolden:
    """The case. Raises Refused if rounding decides torch's answers."""
    if not case.torch_error <= torch_error_max(case.y, case.hn, case.cn):
        raise Refused(
            f"--golden: torch's own float32 is off by {case.torch_error:.2g} on these rows, "
            f"because the network amplifies rounding: {mend}"
        )
    return case


def read_pairs(arrays: Arrays, network: Network, spec: LstmSpec) -> LstmGolden:
    """The pairs as they are, without torch's error. Raises Refused."""
    if unknown := sorted(set(arrays) - set(FIELDS)):
        raise Refused(f"--golden: unknown arrays {shorten(unknown)}; known: {', '.join(FIELDS)}")
    fields, count, rows = _open(arrays, spec)
    lengths = np.full(count, rows)
    if "lengths" in arrays:
        lengths = fields.integers("lengths", (count,), 1, rows)
    valid = lengths[:, None] > np.arange(rows)
    x, h0, c0 = _inputs(fields, network, spec, valid)
    swapped = (rows, spec.output_size)
    if not fields.is_one and count != rows and arrays.get("y", lengths).shape == swapped:
        name = spec.inputs[0].name
        raise Refused(f"--golden: beside y, {name} is time-major: store it as [N, T, ...]")
    y = fields.floats("y", (count, rows, spec.output_size), (count, spec.output_size), valid=valid)
    hn, cn = (
        fields.floats(name, shape, axis=OF_LAYERS) if name in arrays else None
        for name, shape in _state_shapes(spec, count, "hn", "cn").items()
    )
    return LstmGolden(x, lengths.astype(np.int32), h0, c0, y, hn, cn, torch_error=0.0)


def _open(arrays: Arrays, spec: LstmSpec) -> tuple[_Fields, int, int]:
    """The arrays, and N and T of x or the tokens. Raises Refused."""
    (tensor,) = spec.inputs
    name, width = tensor.name, tensor.shape
    if name not in arrays:
        raise Refused(f"--golden: the file has no array {name}")
    shape = arrays[name].shape
    lead = shape[: len(shape) - len(width)]
    if len(lead) not in (1, 2) or shape[len(lead) :] != width:
        end = "".join(f", {size}" for size in width)
        wanted = f"must be [N, T{end}], or [T{end}] for one sequence"
        is_swapped = len(lead) in (1, 2) and any(size in shape for size in width)
        hint = f": move the axis of{end[1:]} to the end" if is_swapped else ""
        raise Refused(f"--golden: {name} is {list(shape)}, {wanted}{hint}")
    count, rows = (1, *lead) if len(lead) == 1 else lead
    if not (1 <= count <= SEQUENCE_COUNT_MAX and 1 <= count * rows <= ROW_COUNT_MAX):
        raise Refused(
            f"--golden: {name} is {list(shape)}, must be [N, T, ...] with N in "
            f"[1, {SEQUENCE_COUNT_MAX}] and N x T in [1, {ROW_COUNT_MAX}]"
        )
    return _Fields(arrays, count == 1), count, rows


def _inputs(
    fields: _Fields, network: Network, spec: LstmSpec, valid: Valid
) -> tuple[Array, Singles, Singles]:
    """x or tokens, h0 and c0."""
    count, rows = valid.shape
    x: Array
    if spec.num_embeddings:
        x = fields.integers("tokens", (count, rows), 0, spec.num_embeddings - 1, valid)
    else:
        x = fields.floats("x", (count, rows, spec.input_size), valid=valid).astype(np.float32)
    first = dict(zip(("h0", "c0"), first_states(network, spec, count), strict=True))
    h0, c0 = (
        fields.floats(state, shape, axis=OF_LAYERS) if state in fields.arrays else first[state]
        for state, shape in _state_shapes(spec, count, "h0", "c0").items()
    )
    return x, h0.astype(np.float32), c0.astype(np.float32)


def _state_shapes(spec: LstmSpec, count: int, h: str, c: str) -> dict[str, tuple[int, int, int]]:
    layers = spec.num_layers * spec.num_directions
    return {h: (layers, count, spec.state_size), c: (layers, count, spec.hidden_size)}
