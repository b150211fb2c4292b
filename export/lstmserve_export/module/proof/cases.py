"""The rows on which the stream is compared with forward(): like the example's, unusual, and long.

Those like the example's go into the model's folder, where every server runs them at its start. The
others are of the export alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from lstmserve.golden import Golden
from lstmserve_export.arrays import Array
from lstmserve_export.lstm.pairs import SEQUENCE_COUNT_MAX
from lstmserve_export.module.proof.reference import Reference, is_clear, width_of
from lstmserve_export.module.signature.signature import Signature
from lstmserve_export.refusal import described
from lstmserve_export.sequences import SEED, VALUE_COUNT_MAX, clear_case, padded

# One more than what a forward() may cut its input to, or begin again after.
LONG_LENGTHS: Final = (101, 129, 201, 257, 501, 513, 1001, 1025)
# What rows are multiplied by, and the integers below which they are drawn, the widest first.
FACTORS: Final = ((0, 1, 10, -1, 1000, -10, -1000), (0, 1, -1, 5, -30), (0, 1, -1), (1, -1), (1,))
INTEGERS: Final = (4096, 1024, 256, 64, 16, 8, 4, 2, None)


def random_case(reference: Reference) -> tuple[Golden, float]:
    """The case of rows like the example's, and torch's error on all of them. Raises Refused."""
    return clear_case(
        lambda lengths: reference.case(reference.random(lengths), np.array(lengths)),
        is_clear,
        reference.lengths,
    )


def unusual(reference: Reference) -> Golden | None:
    """A case of rows that are not like the example's: zeros, rows many times as large, and other
    integers. None where forward() takes no such rows.

    It shows what depends on values: a padding that is found by its zeros, a scale by the largest
    value of the batch, a start that an integer picks.
    """
    lengths = reference.unusual_lengths
    rows = reference.random(lengths)
    for factors in FACTORS:
        for top in INTEGERS:
            if factors == FACTORS[-1] and top is None:
                return None  # these are the rows of the example
            changed = {name: _changed(each, factors, top) for name, each in rows.items()}
            try:
                found = reference.alone(changed, np.array(lengths))
            except Exception:  # noqa: S112  # forward() may raise anything, as for unknown tokens
                continue
            if found is not None:
                return found
            break  # other integers do not make the values smaller
    return None


def _changed(rows: Array, factors: Sequence[int], top: int | None) -> Array:
    """Rows [N, T, *shape] times random factors, or integers in [0, top). The first sequence stays,
    and an input that is the same at every time step remains so."""
    rng = np.random.default_rng(SEED)
    is_same = rows.shape[1] > 1 and bool((rows == rows[:, :1]).all())
    lead = (rows.shape[0] - 1, 1 if is_same else rows.shape[1])
    changed = rows.copy()
    if rows.dtype.kind == "f":
        chosen = rng.integers(len(factors), size=lead)
        chosen[:, 0] = np.arange(lead[0]) % len(factors)  # a start has seen each of them
        scales = np.asarray(factors, rows.dtype)[chosen]
        changed[1:] *= scales.reshape(*lead, *[1] * (rows.ndim - 2))
    elif top is not None:
        changed[1:] = rng.integers(top, size=(*lead, *rows.shape[2:]))
    return changed


def long(reference: Reference, signature: Signature) -> tuple[Golden | None, str]:
    """The last answers of long sequences, and on which length forward() fails and how.

    None where it takes one time step at a time, or the rows are too wide or the network too
    chaotic for so many.
    """
    found: list[Golden] = []
    fault = ""
    length_max = VALUE_COUNT_MAX // (len(LONG_LENGTHS) * width_of(signature))
    for length in LONG_LENGTHS:
        if not signature.has_time or length > length_max:
            break
        try:
            case = reference.last(reference.random((length,)))
        except Exception as error:  # the user's code may raise anything
            fault = f"{length} time steps ({described(error)})"
            break
        if not is_clear(case):
            break
        found.append(case)
    return (_joined(found) if found else None), fault


def _joined(cases: list[Golden]) -> Golden:
    """One case of the sequences of several, of which the last has most time steps."""
    lengths = np.concatenate([each.lengths for each in cases])
    steps = int(lengths.max())
    inputs = {
        name: np.concatenate([padded(each.inputs[name], steps) for each in cases])
        for name in cases[0].inputs
    }
    outputs = {
        name: np.concatenate([each.outputs[name] for each in cases]) for name in cases[0].outputs
    }
    error = max(each.torch_error for each in cases)
    return Golden(inputs, lengths, None, outputs, {}, error, last_only=True)


def further(reference: Reference, signature: Signature) -> tuple[dict[str, Golden], list[str]]:
    """Cases too large or odd to keep in the model's folder, and notes on those that are missing."""
    odd, (far, fault) = unusual(reference), (None, "")
    if not signature.window:
        far, fault = long(reference, signature)
    notes = []
    if odd is None:
        notes.append(
            "forward() fails on, or gives no finite answer for, values unlike the example's: the "
            "export did not check such"
        )
    if fault:
        notes.append(f"forward() fails on {fault}: the export did not check streams of that length")
    found = {"unusual": odd, "long": far, "new": reference.new_sessions()}
    return {name: each for name, each in found.items() if each is not None}, notes


def pairs_of(cases: Mapping[str, Golden]) -> dict[str, Array]:
    """The module's own answers, as the export of kind "lstm" takes a user's pairs.

    Of all cases together it takes as many sequences as pairs may have.
    """
    found: dict[str, list[Array]] = {"x": [], "y": [], "lengths": []}
    steps = max(case.lengths.max() for case in cases.values())
    for case in cases.values():
        for name, group in (("x", case.inputs), ("y", case.outputs)):
            (array,) = group.values()
            found[name].append(padded(array, steps))
        found["lengths"].append(case.lengths)
    whole = {n: np.concatenate(parts)[:SEQUENCE_COUNT_MAX] for n, parts in found.items()}
    if whole["x"].dtype.kind == "i":
        whole["tokens"] = whole.pop("x")
    return whole
