"""Golden vectors: inputs with the outputs a model must give, and the parity gate. Runs no model.

golden.npz of kind "network" has arrays CASE/lengths, CASE/torch_error, CASE/GROUP/NAME for the
groups of Golden, and for a model without states CASE/output_lengths; lstm_golden.py has the arrays
of kind "lstm".
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from lstmserve.spec import ModelSpec, TensorSpec

Number = TypeVar("Number", bound=np.generic)
Case = TypeVar("Case")
Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]

ABSOLUTE = 1e-5
RELATIVE = 2e-5
TORCH_FACTOR = 4.0
# Relative to the largest value, or to 1 if that is larger. In float32 a sum of 65,536 terms, the
# widest layer there is, is wrong by at most 65,536 x 2^-24 = 0.004 of them. If torch is wrong by
# more than 0.01, the network amplifies rounding errors, and its answers on such rows prove nothing.
TORCH_ERROR_MAX = 0.01
BYTES_MAX = 1 << 30  # unpacked


AGAIN = "export the model again"


class InvalidGolden(ValueError):
    """A golden.npz is not what the export wrote. The message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Golden:
    """N sequences and the outputs they must give, by name, each padded to T time steps.

    A model without states may give fewer rows, R: `output_lengths` int32 [N] says how many for each
    sequence, and `outputs` are [N, R, *shape]. None: as many as `lengths`.

    `inputs` [N, T, *shape]; `lengths` int32 [N]; `initial` [N, *shape] of every state, or None for
    the model's initial state. `outputs` [N, T, *shape], or [N, *shape] of the last time step with
    `last_only`; `finals` [N, *shape] of the states that are known. Floats that the model must give
    are float64. `torch_error` is max |torch float32 - float64| over outputs and finals: the error
    of the reference itself.
    """

    inputs: Mapping[str, Array]
    lengths: npt.NDArray[np.int32]
    initial: Mapping[str, Array] | None
    outputs: Mapping[str, Array]
    finals: Mapping[str, Array]
    torch_error: float
    last_only: bool = False
    output_lengths: npt.NDArray[np.int32] | None = None

    @property
    def rows(self) -> npt.NDArray[np.int32]:
        """How many rows of outputs each sequence has, [N]."""
        return self.lengths if self.output_lengths is None else self.output_lengths

    def part(self, rows: slice) -> Golden:
        """Some of the sequences."""

        def cut(group: Mapping[str, Array]) -> Mapping[str, Array]:
            return {name: each[rows] for name, each in group.items()}

        return Golden(
            cut(self.inputs),
            self.lengths[rows],
            None if self.initial is None else cut(self.initial),
            cut(self.outputs),
            cut(self.finals),
            self.torch_error,
            self.last_only,
            None if self.output_lengths is None else self.output_lengths[rows],
        )


def torch_error_max(*expected: Array | None) -> float:
    """The largest torch_error with which a case that expects these proves something."""
    known = [float(np.abs(each).max(initial=0)) for each in expected if each is not None]
    return TORCH_ERROR_MAX * max([1.0, *known])


def check_golden(cases: Mapping[str, Golden], spec: ModelSpec) -> None:
    """Raises InvalidGolden unless the cases fit the spec and prove something."""
    if not cases:
        raise InvalidGolden(f"golden.npz has no rows, so it proves nothing: {AGAIN}")
    for name, case in cases.items():
        for fault in _faults(case, spec):
            raise InvalidGolden(f"golden.npz: {name[:40]!r}: {fault}: {AGAIN}")


def _faults(case: Golden, spec: ModelSpec) -> Iterator[str]:
    """The faults of a case. A check may rely on those before it, as the first fault is raised."""
    count = len(case.lengths)
    rows = case.lengths.max(initial=0)
    if not count or case.lengths.min() < 1:
        yield "lengths must be those of a sequence at least, each 1 or more"
    steps = (each.shape[1] for each in case.inputs.values() if each.ndim > 1)
    lead = count, max(steps, default=0)
    if lead[1] < rows:
        yield f"the inputs have {lead[1]} time steps, lengths says {rows}"
    yield from _group_faults("inputs", case.inputs, spec.inputs, lead)
    if case.initial is not None:
        yield from _group_faults("initial", case.initial, spec.states, (count,))
    if case.output_lengths is not None:
        yield from _length_faults(case, spec)
        steps = (each.shape[1] for each in case.outputs.values() if each.ndim > 1)
        lead = count, max(steps, default=0)
    yield from _group_faults("outputs", case.outputs, spec.results, lead)
    if case.finals:
        yield from _group_faults("finals", case.finals, spec.states, (count,))
    floats = [e for e in (*case.outputs.values(), *case.finals.values()) if e.dtype.kind == "f"]
    limit = torch_error_max(*floats)
    if not 0 <= case.torch_error <= limit:
        yield f"torch_error is {case.torch_error:.3g}, must be in [0, {limit:.3g}]"


def _length_faults(case: Golden, spec: ModelSpec) -> Iterator[str]:
    """Faults of `output_lengths`."""
    if spec.states:
        yield "output_lengths are for models without states"
    if case.rows.shape != case.lengths.shape:
        yield f"output_lengths has {len(case.rows)} sequences, lengths has {len(case.lengths)}"
    if case.rows.min() < 0 or (case.rows > case.lengths).any():
        yield "output_lengths must be in [0, the sequence's length]"
    steps = max((each.shape[1] for each in case.outputs.values() if each.ndim > 1), default=0)
    if steps < case.rows.max():
        yield f"the outputs have {steps} rows, output_lengths says {case.rows.max()}"


def _group_faults(
    group: str, found: Mapping[str, Array], wanted: tuple[TensorSpec, ...], lead: tuple[int, ...]
) -> Iterator[str]:
    if set(found) != {each.name for each in wanted}:
        names = ", ".join(each.name for each in wanted)
        yield f"{group} are of {', '.join(sorted(found)) or 'nothing'}, must be of {names}"
    for each in wanted:
        array = found[each.name]
        if array.shape != (*lead, *each.shape):
            yield f"{each.name} is {list(array.shape)}, must be {[*lead, *each.shape]}"
        if not np.isfinite(array).all():
            yield f"{each.name} has NaN or infinite values"


def excess(actual: Array, expected: Array, torch_error: float) -> float:
    """The parity gate: the largest error of `actual` in units of the allowed one; <= 1 passes.

    Allowed: max(4 x torch_error, 1e-5 + 2e-5 x |expected|); nothing for integers and bool. A value
    that is not finite gives inf.
    """
    if actual.size == 0:
        return 0.0
    if expected.dtype.kind in "biu":
        return 0.0 if np.array_equal(actual, expected) else float("inf")
    allowed = np.maximum(TORCH_FACTOR * torch_error, ABSOLUTE + RELATIVE * np.abs(expected))
    ratio = np.abs(np.asarray(actual, np.float64) - np.asarray(expected, np.float64)) / allowed
    return float(ratio.max()) if np.isfinite(ratio).all() else float("inf")


# Files --------------------------------------------------------------------------------------------

GROUPS: Final = ("inputs", "initial", "outputs", "finals")


def dump_golden(cases: Mapping[str, Golden]) -> bytes:
    """The cases of a model of kind "network" as the content of a golden.npz."""
    arrays: dict[str, Array] = {}
    for name, case in cases.items():
        assert not case.last_only
        arrays[f"{name}/lengths"] = case.lengths
        arrays[f"{name}/torch_error"] = np.array(case.torch_error)
        if case.output_lengths is not None:
            arrays[f"{name}/output_lengths"] = case.output_lengths
        for group in GROUPS:
            members = getattr(case, group) or {}
            arrays |= {f"{name}/{group}/{key}": np.asarray(e) for key, e in members.items()}
    return dump_arrays(arrays)


def load_golden(content: bytes, spec: ModelSpec) -> dict[str, Golden]:
    """The cases dump_golden wrote. Raises InvalidGolden; never unpickles."""
    return load_cases(content, lambda arrays, name: _case(arrays, name, spec))


def _case(arrays: Mapping[str, Array], name: str, spec: ModelSpec) -> Golden:
    def group(kind: str, tensors: tuple[TensorSpec, ...], floats: type[Any]) -> dict[str, Array]:
        found = {}
        for each in tensors:
            dtype = floats if each.dtype == "float32" else np.dtype(each.dtype).type
            if (key := f"{name}/{kind}/{each.name}") in arrays:
                found[each.name] = take_array(arrays, key, dtype)
        return found

    def lengths(kind: str) -> npt.NDArray[np.int32]:
        return take_array(arrays, f"{name}/{kind}", np.int32).reshape(-1)

    given = "output_lengths" if f"{name}/output_lengths" in arrays else None
    return Golden(
        inputs=group("inputs", spec.inputs, np.float32),
        lengths=lengths("lengths"),
        initial=group("initial", spec.states, np.float32) or None,
        outputs=group("outputs", spec.results, np.float64),
        finals=group("finals", spec.states, np.float64),
        torch_error=float(take_array(arrays, f"{name}/torch_error", np.float64)),
        output_lengths=None if given is None else lengths(given),
    )


def take_array(arrays: Mapping[str, Array], name: str, dtype: type[Number]) -> npt.NDArray[Number]:
    """The array of that name. Raises ValueError where it has no numbers."""
    array = arrays[name]
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name[:80]} is {array.dtype}, must be numbers")
    with np.errstate(over="ignore", invalid="ignore"):  # the checks refuse infinity by name
        return np.asarray(array, dtype)


def dump_arrays(arrays: Mapping[str, Array]) -> bytes:
    """The content of an .npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def load_cases(content: bytes, make: Callable[[Mapping[str, Array], str], Case]) -> dict[str, Case]:
    """make(arrays, name) for every case of a golden.npz, whose arrays are named CASE/...

    Raises InvalidGolden, also for what `make` raises; never unpickles.
    """
    try:
        _check_headers(content)
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        names = dict.fromkeys(name.partition("/")[0] for name in arrays)
        return {name: make(arrays, name) for name in names}
    except InvalidGolden:
        raise
    except MemoryError as error:
        raise InvalidGolden("golden.npz needs more memory than this machine gives") from error
    except _UNREADABLE as error:
        line = " ".join(str(error).split())[:200]
        raise InvalidGolden(f"golden.npz cannot be read: {line}") from error


def _check_headers(content: bytes) -> None:
    """Raises InvalidGolden if an array unpacks to more than its header says, or all to BYTES_MAX.

    numpy allocates what an array's header says before it reads the array.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > BYTES_MAX:
            raise InvalidGolden(f"golden.npz unpacks to more than {BYTES_MAX} bytes: {AGAIN}")
        for entry in entries:
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                if version not in _HEADERS:
                    raise InvalidGolden(f"golden.npz: {entry.filename[:40]!r} is no array of ours")
                shape, _, dtype = _HEADERS[version](file)
                size = file.tell() + math.prod(shape) * dtype.itemsize
                if not dtype.hasobject and size != entry.file_size:
                    raise InvalidGolden(
                        f"golden.npz: {entry.filename[:40]!r} is {list(shape)} and has "
                        f"{entry.file_size} bytes, not {size}: {AGAIN}"
                    )


_HEADERS: Final = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    OSError,
    EOFError,
    NotImplementedError,  # from zipfile, for an unknown compression
    RuntimeError,  # from zipfile, for an encrypted entry
    zipfile.BadZipFile,
    zlib.error,
)
