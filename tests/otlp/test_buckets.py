"""Buckets of exponential histograms as explicit bounds: every value stays where it was, zeros at zero."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensormeter.otlp.buckets import explicit_buckets


def side(first, *counts):
    return first, np.array(counts, np.uint64)


NONE = side(0)


def quantile(bounds, counts, share):
    """Interpolated within buckets, as charts and PromQL do."""
    wanted, below = share * sum(counts), 0
    edges = [bounds[0], *bounds, bounds[-1]]
    for index, count in enumerate(counts):
        if count and below + count >= wanted:
            return edges[index] + (edges[index + 1] - edges[index]) * (wanted - below) / count
        below += count
    return edges[-1]


@pytest.mark.parametrize("threshold", [0.0, 2.0**-64, 0.5])
@pytest.mark.parametrize(
    ("positive", "negative", "middle"),
    [
        (side(6, 40, 30), NONE, 0.2),
        (NONE, side(6, 40, 30), 0.8),
        (side(6, 20), side(6, 20), 0.5),
        (NONE, NONE, 0.5),
        (side(3, 10, 0, 0, 0, 10), NONE, 0.4),
    ],
    ids=["positive", "negative", "both", "only zeros", "with gaps"],
)
def test_zeros_stay_within_the_zero_threshold(positive, negative, middle, threshold):
    bounds, counts = explicit_buckets(0, 600, threshold, positive, negative)
    assert sum(counts) == 600 + positive[1].sum() + negative[1].sum()
    assert abs(quantile(bounds, counts, middle)) <= max(threshold, 5e-324)


def test_a_bucket_that_the_threshold_reaches_into_begins_there():
    bounds, counts = explicit_buckets(0, 5, 3.0, side(0, 1, 2, 4), side(0, 8, 16))
    # (1, 2] lies within the threshold; (2, 4] begins at it.
    assert bounds == [-4.0, -3.0, 3.0, 4.0, 8.0]
    assert counts == [0, 16, 5 + 1 + 8, 2, 4, 0]


def test_without_zeros_there_is_no_bucket_for_them():
    assert explicit_buckets(0, 0, 0.0, side(0, 1, 2), NONE) == ([1.0, 2.0, 4.0], [0, 1, 2, 0])
    assert explicit_buckets(0, 0, 0.0, side(0, 1), side(1, 2)) == ([-4.0, -2.0, 1.0, 2.0], [0, 2, 0, 1, 0])
    assert explicit_buckets(0, 0, 0.0, NONE, NONE) == ([], [])


@given(
    st.integers(-12, 22),
    st.integers(0, 1 << 40),
    st.sampled_from([0.0, 5e-324, 1e-300, 1e-3, 7.0, 1e300, math.inf, math.nan, -1.0]),
    *[st.tuples(st.integers(-5000, 5000), st.lists(st.integers(0, 1 << 40), max_size=12))] * 2,
    st.none() | st.integers(2, 20),
)
def test_every_count_is_kept_and_bounds_increase(scale, zeros, threshold, positive, negative, most):
    sides = [side(first, *counts) for first, counts in (positive, negative)]
    bounds, counts = explicit_buckets(scale, zeros, threshold, *sides, max_buckets=most)
    assert sum(counts) == zeros + sum(positive[1]) + sum(negative[1])
    assert all(math.isfinite(bound) for bound in bounds)
    assert all(low < high for low, high in itertools.pairwise(bounds))
    assert len(counts) == len(bounds) + 1 or not bounds
