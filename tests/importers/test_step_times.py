"""Each time belongs to one step, and equal pairs of step and time have equal times, in any order and any blocks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tensormeter.importers.step_times import StepTimes

pairs = st.tuples(st.integers(0, 6), st.integers(1_000, 1_012))


def assign(times: StepTimes, block: list[tuple[int, int]]):
    steps, moments = np.array(block, np.int64).reshape(-1, 2).T
    return times.assign(steps.copy(), moments.copy())


@given(st.lists(st.lists(pairs, max_size=12), max_size=15))
def test_each_time_has_one_step_and_equal_pairs_equal_times(blocks):
    times = StepTimes()
    step_of, time_of = {}, {}
    for block in blocks:
        assigned, new_times, new_steps = assign(times, block)
        for time, step in zip(new_times.tolist(), new_steps.tolist(), strict=True):
            assert time not in step_of
            step_of[time] = step
        for pair, time in zip(block, assigned.tolist(), strict=True):
            assert time >= pair[1]
            assert step_of[time] == pair[0]
            assert time_of.setdefault(pair, time) == time


def test_times_in_order_stay_unchanged():
    times = StepTimes()
    for start in range(0, 1000, 100):
        moments = np.arange(start, start + 100) * 7 + 1
        assigned, new_times, _ = times.assign(np.arange(start, start + 100), moments)
        assert assigned.tolist() == moments.tolist() == new_times.tolist()


def test_points_of_one_row_share_a_time():
    times = StepTimes()
    assigned, new_times, new_steps = times.assign(np.array([1, 1, 2, 2]), np.array([10, 10, 20, 20]))
    assert assigned.tolist() == [10, 10, 20, 20]
    assert (new_times.tolist(), new_steps.tolist()) == ([10, 20], [1, 2])


def test_many_overlapping_blocks_are_still_found():
    times = StepTimes()
    for offset in range(40):
        moments = np.arange(1000) * 100 + offset
        assigned, *_ = times.assign(np.arange(1000), moments)
        assert assigned.tolist() == moments.tolist()
    again, new_times, _ = times.assign(np.arange(1000), np.arange(1000) * 100 + 17)
    assert again.tolist() == (np.arange(1000) * 100 + 17).tolist()
    assert len(new_times) == 0
