"""Which sequences of a Predict run together: each one once, in groups that fit a batch."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmserve.config import Config
from lstmserve.engine.compute.kernel import Cost
from lstmserve.engine.scheduling.plan import BATCH_NS, groups_of
from lstmserve.engine.scheduling.queues import batch_max, length_class

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


@settings(deadline=None, max_examples=100)
@given(LENGTHS, CONFIGS, COSTS)
def test_a_group_fits_a_batch(lengths: list[int], config: Config, cost: Cost) -> None:
    """Every sequence is in one group, groups are ordered by length, and none exceeds a limit."""
    groups = groups_of(np.array(lengths, np.int32), config, cost)
    places = np.concatenate(groups)
    assert sorted(places.tolist()) == list(range(len(lengths)))
    ordered = np.array(lengths)[places]
    assert (ordered[:-1] >= ordered[1:]).all()
    for group in groups:
        longest = min(lengths[group[0]], config.slice_rows_max)
        assert group.size <= batch_max(config, length_class(longest))
        assert group.size <= config.long_steps_max


def test_padding_is_weighed_against_a_batch() -> None:
    """If a cell is expensive, sequences of like lengths run together, and if it is free, all do."""
    lengths = np.array([32] * 8 + [1] * 8, np.int32)
    config = Config()
    dear, cheap = Cost(0, 0, BATCH_NS), Cost(0, 0, 1)
    assert [each.size for each in groups_of(lengths, config, dear)] == [8, 8]
    assert [each.size for each in groups_of(lengths, config, cheap)] == [16]
    heavy = Cost(0, 100 * BATCH_NS, BATCH_NS)  # a further time step costs as much as 100 cells
    assert groups_of(lengths, config, heavy)[0].size > 8


def test_the_cost_is_that_of_the_model_that_was_timed() -> None:
    """Three timings give the parts of the cost, and noise gives no negative part."""
    cost = Cost(1000, 500, 30)
    assert Cost.measured(cost.of(1, 1), cost.of(1, 16), cost.of(16, 1), 16) == cost
    assert Cost.measured(100, 90, 80, 16) == Cost(99, 0, 1)
