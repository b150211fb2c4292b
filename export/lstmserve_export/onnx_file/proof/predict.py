"""The golden cases of a file without states that reads whole sequences, and their proof.

It must not know how the file is rebuilt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from lstmserve.engine.compute.device import GraphRefused
from lstmserve.engine.compute.kernel import KernelError, SequenceKernel
from lstmserve.engine.compute.selftest import SelfTestFailed, check_sequences
from lstmserve.golden import Golden, excess
from lstmserve.graph import InvalidModel
from lstmserve.graph.sequence import SequenceNetwork
from lstmserve.rows import RowFormat
from lstmserve.spec import ModelSpec
from lstmserve_export.arrays import Array, Arrays
from lstmserve_export.onnx_file.layout.place import Layout
from lstmserve_export.onnx_file.proof.reference import SequenceReference, doubles
from lstmserve_export.refusal import Refused, one_line

# Rows of random sequences; many files need some hundreds, as samples of audio.
LENGTHS: Final = (48, 37, 25, 16, 7, 2, 1)
SCALES: Final = (1, 16, 256, 4096)
ENOUGH: Final = 4
VALUES_MAX: Final = 1 << 22


def accepted_lengths(reference: SequenceReference, layout: Layout, rows: Arrays) -> list[int]:
    """Lengths of sequences that the file takes, the longest first; `rows` [T, *shape] are long
    enough for all. Of a file that gives several rows, they have several numbers of them.

    Raises Refused where it takes none.
    """
    most = len(next(iter(rows.values())))
    has_rows = any(each.time is not None for each in layout.outputs)
    last: Refused | None = None
    best: list[int] = []
    for scale in SCALES:
        found: dict[int, int] = {}  # the rows that each length gives
        for length in (scale * each for each in LENGTHS if scale * each <= most):
            try:
                answer = reference.answer({name: each[:length] for name, each in rows.items()})
            except Refused as error:
                last = error
            else:
                found[length] = max(len(each) for each in answer.values())
        if len(found) >= ENOUGH:
            best = list(found)
            if not has_rows or len(set(found.values())) > 1:
                return best
    if best:
        return best
    raise Refused(
        "the file takes no sequence of several random lengths, so it is not served to Predict"
        f"{f' ({last})' if last else ''}: give --window W with its number of rows"
    )


def rows_max(spec: ModelSpec) -> int:
    """Rows of the longest random sequence."""
    width = sum(each.size for each in spec.inputs)
    return max(LENGTHS[0], min(SCALES[-1] * LENGTHS[0], VALUES_MAX // width))


def sequence_case(
    reference: SequenceReference, spec: ModelSpec, sequences: Sequence[Arrays]
) -> Golden:
    """The golden case of sequences [T, *shape] of several lengths. Raises Refused."""
    answers = [reference.answer(each) for each in sequences]
    lengths = [len(next(iter(each.values()))) for each in sequences]
    counts = []
    for length, answer in zip(lengths, answers, strict=True):
        rows = {len(each) for each in answer.values()}
        if len(rows) > 1 or max(rows) > length:
            shapes = ", ".join(f"{name} {list(each.shape)}" for name, each in answer.items())
            raise Refused(
                f"the outputs have other numbers of rows for a sequence of {length}: {shapes}; "
                "choose one with --output"
            )
        counts.append(rows.pop())
        if not all(np.isfinite(each).all() for each in answer.values()):
            raise Refused(
                "the file gives NaN or infinite values for random rows: give --golden with rows "
                "that it takes"
            )
    outputs = {each.name: _padded([a[each.name] for a in answers]) for each in spec.outputs}
    return Golden(
        inputs={each.name: _padded([s[each.name] for s in sequences]) for each in spec.inputs},
        lengths=np.array(lengths, np.int32),
        initial=None,
        outputs=doubles(outputs),
        finals={},
        torch_error=0.0,
        output_lengths=np.array(counts, np.int32),
    )


def _padded(arrays: list[Array]) -> Array:
    """Arrays [T, *shape] as [N, max T, *shape], with zeros past each."""
    found = np.zeros((len(arrays), max(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
    for row, each in zip(found, arrays, strict=True):
        row[: len(each)] = each
    return found


def prove_sequences(network: SequenceNetwork, cases: dict[str, Golden]) -> dict[str, Any]:
    """The parity report. Raises Refused."""
    try:
        kernel = SequenceKernel(network, "cpu", threads=1)
        check_sequences(kernel, cases)
        report, largest = {}, 0.0
        for name, case in cases.items():
            errors = list(_errors(kernel, case))
            report[f"{name} in whole sequences"] = max(ratio for ratio, _ in errors)
            largest = max(largest, *(error for _, error in errors))
    except (InvalidModel, GraphRefused, KernelError, SelfTestFailed) as error:
        raise Refused(f"the file is not served: {one_line(error)}") from error
    return {
        "rows": int(sum(case.lengths.sum() for case in cases.values())),
        "torch_error": 0.0,
        "onnx_error": largest,
        "excess": report,
        "is_exact": True,  # each sequence is a run of its own
        "difference": 0.0,
    }


def _errors(kernel: SequenceKernel, case: Golden) -> Iterator[tuple[float, float]]:
    """Of each output of each sequence: in units of the allowed error, and as it is."""
    spec = kernel.layout.spec
    rows = RowFormat(spec.inputs).pack(case.inputs)
    for i, length in enumerate(case.lengths.tolist()):
        y, _ = kernel.run(rows[i, :length], {})
        for name, each in RowFormat(spec.outputs).split(y).items():
            wanted = case.outputs[name][i, : case.rows[i]]
            error = float(np.abs(np.subtract(each, wanted, dtype=np.float64)).max(initial=0))
            yield excess(each, wanted, case.torch_error), error
