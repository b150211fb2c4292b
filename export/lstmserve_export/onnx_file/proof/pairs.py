"""Reads --golden of an import: what the user fed to the file, and what it answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lstmserve.golden import excess
from lstmserve.spec import ModelSpec
from lstmserve_export.arrays import Array, Arrays, read_npz
from lstmserve_export.onnx_file.layout.place import Layout, Place
from lstmserve_export.refusal import Refused, shorten


@dataclass(frozen=True, slots=True)
class Pairs:
    """N sequences of T steps: `inputs` and `outputs` [N, T, *shape], and the states `initial`
    [N, *shape] before them, by our names. `outputs` may lack some."""

    inputs: Arrays
    outputs: Arrays
    initial: Arrays

    @property
    def lengths(self) -> Array:
        """int32 [N]: all T."""
        count, steps = next(iter(self.inputs.values())).shape[:2]
        return np.full(count, steps, np.int32)


def read_pairs(path: Path, layout: Layout) -> Pairs:
    """The arrays of an .npz by the file's names or ours; `x` and `y` are the only input and output.

    An array is [T, *shape] of one sequence or [N, T, *shape] of several; the shape is that of one
    step, ours or the file's. Raises Refused.
    """
    inputs, outputs, initial = _read(path, layout)
    found = {name: _sequences(array, place, name) for name, (array, place) in inputs.items()}
    answers = {name: _sequences(array, place, name) for name, (array, place) in outputs.items()}
    lead = next(iter(found.values())).shape[:2]
    for name, array in (found | answers).items():
        if array.shape[:2] != lead:
            raise Refused(
                f"--golden: {name} has {array.shape[0]} sequences of {array.shape[1]} steps, and "
                f"{next(iter(found))} has {lead[0]} of {lead[1]}"
            )
    if not all(lead):
        raise Refused(f"--golden: {path} has no rows")
    starts = {
        name: _states(array, place, lead[0], name) for name, (array, place) in initial.items()
    }
    return Pairs(found, answers, starts)


@dataclass(frozen=True, slots=True)
class SequencePair:
    """One sequence or window of the user: `inputs` [T, *shape] and `outputs` [R, *shape]."""

    inputs: Arrays
    outputs: Arrays


def read_sequence_pairs(path: Path, layout: Layout) -> list[SequencePair]:
    """The arrays of an .npz for a file without states; names as for read_pairs().

    An input is [T, *shape] of one sequence or [N, T, *shape] of several. An output is [R, *shape]
    or [N, R, *shape], and may lack R where it is 1. Raises Refused.
    """
    inputs, outputs, _ = _read(path, layout)
    count = 0
    for name, (array, place) in inputs.items():
        inputs[name] = _sequences(array, place, name), place
        count = count or len(inputs[name][0])
        if len(inputs[name][0]) != count:
            raise Refused(f"--golden: {name} has {len(inputs[name][0])} sequences, not {count}")
    found = {n: _answers(array, place, count, n) for n, (array, place) in outputs.items()}
    return [
        SequencePair(
            {name: array[at] for name, (array, _) in inputs.items()},
            {name: array[at] for name, array in found.items()},
        )
        for at in range(count)
    ]


def check_sequence_pairs(pairs: Sequence[SequencePair], answers: Sequence[Arrays]) -> None:
    """Raises Refused where the file's own `answers` [R, *shape] are not the user's outputs."""
    for at, (pair, answer) in enumerate(zip(pairs, answers, strict=True), 1):
        for name, wanted in pair.outputs.items():
            found = answer[name]
            if found.shape != wanted.shape:
                raise Refused(
                    f"--golden: {name} of sequence {at} is {list(wanted.shape)}, the file gives "
                    f"{list(found.shape)}"
                )
            ratio = excess(found, wanted.astype(np.float64), 0.0)
            if not ratio <= 1:
                raise Refused(
                    f"--golden: the file itself, in onnxruntime, does not give your {name} of "
                    f"sequence {at}: the difference is {ratio:.3g} times the allowed one; "
                    "check --constant and the scaling of x"
                )


def given_rows(path: Path, names: Sequence[str]) -> Arrays:
    """The user's rows of the file's inputs, to draw random rows from; `x` is the only input.

    Raises Refused.
    """
    arrays = read_npz(path, "--golden")
    found = {name: arrays[name] for name in names if name in arrays}
    if len(names) == 1 and "x" in arrays:
        found.setdefault(names[0], arrays["x"])
    for name, each in found.items():
        if each.dtype.kind == "f" and not np.isfinite(each).all():
            raise Refused(f"--golden: {name} has NaN or infinite values")
    return {name: each for name, each in found.items() if each.dtype.kind in "biuf" and each.size}


def check_pairs(pairs: Pairs, answers: Arrays, spec: ModelSpec) -> float:
    """How far the file's own `answers` [N, T, *shape] are from the user's outputs, in units of the
    allowed error. Raises Refused beyond it."""
    worst = 0.0
    for each in spec.outputs:
        if each.name not in pairs.outputs:
            continue
        wanted = pairs.outputs[each.name].astype(np.float64)
        ratios = [
            excess(answers[each.name][:, t], wanted[:, t], 0.0) for t in range(wanted.shape[1])
        ]
        if not max(ratios) <= 1:
            first = next(at for at, ratio in enumerate(ratios) if not ratio <= 1)
            raise Refused(
                f"--golden: the file itself, in onnxruntime, does not give your {each.name}: it "
                f"differs from step {first + 1} on, by {max(ratios):.3g} times what is allowed; "
                f"{_hint(first)}"
            )
        worst = max(worst, *ratios)
    return worst


def read_initial(path: Path, layout: Layout) -> Arrays:
    """The states [*shape] from which new sessions begin, by our names. Raises Refused."""
    arrays = dict(read_npz(path, "--initial-state"))
    found = _take(arrays, [each.before for each in layout.states], "")
    if arrays or not found:
        names = [each.before.value.name for each in layout.states]
        raise Refused(
            f"--initial-state: {path} has {shorten(sorted(arrays)) or 'nothing'}; the states are "
            f"{shorten(names)}"
        )
    flag = "--initial-state"
    return {n: _states(array, place, 1, n, flag)[0] for n, (array, place) in found.items()}


Taken = dict[str, tuple[Array, Place]]


def _read(path: Path, layout: Layout) -> tuple[Taken, Taken, Taken]:
    """Inputs, outputs and states of the .npz by our names. Raises Refused."""
    arrays = dict(read_npz(path, "--golden"))
    inputs = _take(arrays, layout.inputs, "x")
    outputs = _take(arrays, layout.outputs, "y")
    initial = _take(arrays, [each.before for each in layout.states], "")
    if arrays:
        names = [each.value.name for each in (*layout.inputs, *layout.outputs)]
        raise Refused(
            f"--golden: {shorten(sorted(arrays))} of {path} is no input, output or state of the "
            f"file, which has {shorten(names)}"
        )
    if missing := sorted({each.spec.name for each in layout.inputs} - set(inputs)):
        raise Refused(f"--golden: {path} has no {shorten(missing)}, which the file takes")
    if not outputs:
        raise Refused(f"--golden: {path} has no output, such as y")
    return inputs, outputs, initial


def _take(arrays: dict[str, Array], places: tuple[Place, ...] | list[Place], alone: str) -> Taken:
    """Takes the arrays of these places out of `arrays`."""
    found: Taken = {}
    for place in places:
        names = [place.value.name, place.spec.name]
        if alone and len(places) == 1:
            names.append(alone)
        name = next((each for each in names if each in arrays), None)
        if name is not None:
            found[place.spec.name] = arrays.pop(name), place
    return found


def _sequences(array: Array, place: Place, name: str) -> Array:
    """[N, T, *shape]. Raises Refused."""
    plain = tuple(size for size in place.spec.shape if size != 1)
    for shape in (place.spec.shape, place.file_shape, plain):
        rank = array.ndim - len(shape)
        if rank in (1, 2) and array.shape[rank:] == shape:
            lead = array.shape[:rank] if rank == 2 else (1, len(array))
            return _cast(array.reshape(*lead, *place.spec.shape), place, name, "--golden")
    raise Refused(
        f"--golden: {name} is {list(array.shape)}, must be {_listed('T', place)}, or "
        f"{_listed('N, T', place)} of several sequences, with T steps"
    )


def _listed(lead: str, place: Place) -> str:
    return f"[{', '.join((lead, *map(str, place.spec.shape)))}]"


def _answers(array: Array, place: Place, count: int, name: str) -> Array:
    """[N, R, *shape]. Raises Refused."""
    for shape in (place.spec.shape, place.file_shape):
        is_one = count == 1 and array.shape == shape
        if is_one or array.shape == (count, *shape):
            return _cast(array.reshape(count, 1, *place.spec.shape), place, name, "--golden")
    return _sequences(array, place, name)


def _states(array: Array, place: Place, count: int, name: str, flag: str = "--golden") -> Array:
    """[N, *shape]. Raises Refused."""
    shape = place.spec.shape
    if array.shape in ((count, *shape), (count, *place.file_shape)):
        return _cast(array.reshape(count, *shape), place, name, flag)
    if array.shape in (shape, place.file_shape):
        return _cast(np.stack([array.reshape(shape)] * count), place, name, flag)
    raise Refused(f"{flag}: the state {name} is {list(array.shape)}, must be {list(shape)}")


def _cast(array: Array, place: Place, name: str, flag: str) -> Array:
    if array.dtype.kind not in "biuf":
        raise Refused(f"{flag}: {name} is {array.dtype}, must be numbers")
    with np.errstate(all="ignore"):
        found = array.astype(place.spec.dtype)
    if array.dtype.kind == "f" and not np.isfinite(found).all():
        raise Refused(f"{flag}: {name} has NaN or infinite values, or is not {place.spec.dtype}")
    if found.dtype.kind == "i" and not np.array_equal(found, array):
        raise Refused(f"{flag}: {name} is not {place.spec.dtype}")
    return found


def _hint(first: int) -> str:
    if first == 0:
        return "check --constant, the scaling of x, and with which states your run began"
    return "check --state, and that your run carried every state to the next step"
