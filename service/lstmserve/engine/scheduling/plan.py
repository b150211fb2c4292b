"""Which sequences of a Predict run together: groups of like lengths, the longest first. Pure.

Little is padded then; a group runs slice by slice, and its members leave it as they end.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from lstmserve.config import Config
from lstmserve.engine.arrays import Index
from lstmserve.engine.compute.kernel import Cost
from lstmserve.engine.scheduling.queues import group_max

BATCH_NS = 100_000  # what a batch costs besides its run


def groups_of(lengths: npt.NDArray[np.int32], config: Config, cost: Cost) -> list[Index]:
    """Places of the N sequences, group by group, each group's longest first."""
    order = np.argsort(-lengths, kind="stable")
    return [order[group] for group in _groups(lengths[order].tolist(), config, cost)]


def _groups(lengths: list[int], config: Config, cost: Cost) -> Iterator[slice]:
    """Of `lengths`, which fall. Another group begins where batches of its own cost less than what
    its members would pad in this one."""
    rows_max = config.slice_rows_max
    start = padding = limit = 0
    for i, length in enumerate(lengths):
        count = -(-length // rows_max)  # slices
        padding += min(lengths[start], count * rows_max) - length
        own_ns = count * (BATCH_NS + cost.run_ns) + length * cost.step_ns
        if i - start == limit or padding * cost.row_ns > own_ns:
            if i:
                yield slice(start, i)
            start, padding, limit = i, 0, group_max(config, length)
    yield slice(start, len(lengths))
