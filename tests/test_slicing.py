"""In which slices a Predict runs: every row once, in order, in groups that a batch takes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmserve.config import Config
from lstmserve.engine.compute.kernel import Cost
from lstmserve.engine.schedule.sizes import batch_max, length_class
from lstmserve.engine.schedule.slicing import BATCH_NS, slicing

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=40)
CONFIGS = st.builds(
    lambda rows, cells, sessions, long: Config(
        slice_rows_max=rows,
        batch_cells_max=max(rows, cells),
        batch_sessions_max=sessions,
        long_steps_max=long,
    ),
    st.sampled_from([1, 3, 8, 32]),
    st.sampled_from([1, 64, 1024]),
    st.sampled_from([1, 5, 256]),
    st.sampled_from([1, 4, 256]),
)
COSTS = st.builds(Cost, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**6))


@settings(deadline=None, max_examples=60)
@given(LENGTHS, CONFIGS, COSTS)
def test_every_row_has_its_cell(lengths: list[int], config: Config, cost: Cost) -> None:
    """Read back from the slices, time step by time step, each sequence is whole and in order."""
    ends = np.cumsum(lengths)
    found = slicing(np.array(lengths, np.int32), config, cost)
    row_of = {cell: row for row, cell in enumerate(found.cells.tolist())}
    assert len(row_of) == sum(lengths)
    read: list[list[int]] = [[] for _ in lengths]
    for each in found.slices:
        for column, (member, count) in enumerate(zip(each.members, each.counts, strict=True)):
            for t in range(count):
                read[member].append(row_of[each.start + t * each.size + column])
    wanted = [list(range(end - length, end)) for end, length in zip(ends, lengths, strict=True)]
    assert read == wanted


@settings(deadline=None, max_examples=60)
@given(LENGTHS, CONFIGS, COSTS)
def test_a_group_fits_a_batch(lengths: list[int], config: Config, cost: Cost) -> None:
    """Its slices follow one another, the first members stay, and no limit is passed."""
    slices = slicing(np.array(lengths, np.int32), config, cost).slices
    assert slices[0].start == 0
    assert slices[0].is_first
    for now, then in zip(slices, [*slices[1:], None], strict=True):
        assert now.size <= batch_max(config, length_class(now.length))
        assert now.size <= config.long_steps_max
        assert now.counts[0] == now.length == max(now.counts) <= config.slice_rows_max
        if then is None:
            assert now.staying == 0
            continue
        assert then.start == now.stop
        assert then.is_first == (now.staying == 0)
        if not then.is_first:
            assert then.members.tolist() == now.members[: now.staying].tolist()


def test_padding_is_weighed_against_a_batch() -> None:
    """Where a cell costs much, like lengths run together; where it costs nothing, all do."""
    lengths = np.array([32] * 8 + [1] * 8, np.int32)
    config = Config()
    dear, cheap = Cost(0, 0, BATCH_NS), Cost(0, 0, 1)
    assert [each.size for each in slicing(lengths, config, dear).slices] == [8, 8]
    assert [each.size for each in slicing(lengths, config, cheap).slices] == [16]
    heavy = Cost(0, 100 * BATCH_NS, BATCH_NS)  # a time step more costs as much as 100 cells
    assert next(each.size for each in slicing(lengths, config, heavy).slices) > 8


def test_the_cost_is_that_of_the_model_that_was_timed() -> None:
    """From three timings, its parts; noise gives no negative one."""
    cost = Cost(1000, 500, 30)
    assert Cost.measured(cost.of(1, 1), cost.of(1, 16), cost.of(16, 1), 16) == cost
    assert Cost.measured(100, 90, 80, 16) == Cost(99, 0, 1)
