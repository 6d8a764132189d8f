"""Exponential buckets, compared with those of the OpenTelemetry SDK."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics._internal.exponential_histogram.mapping.exponent_mapping import ExponentMapping
from opentelemetry.sdk.metrics._internal.exponential_histogram.mapping.logarithm_mapping import LogarithmMapping

from tensormeter.agent.ingest.exponential_histogram import Buckets, bucket_indices, fold

EDGES = [
    sys.float_info.min,
    math.nextafter(sys.float_info.min, 0),
    math.nextafter(sys.float_info.min, 1),
    5e-324,
    sys.float_info.max,
    *(
        edge
        for exponent in (-1022, -1021, -512, -3, -1, 0, 1, 2, 3, 10, 52, 53, 1000, 1023)
        for edge in (
            math.ldexp(1, exponent),
            math.nextafter(math.ldexp(1, exponent), 0),
            math.nextafter(math.ldexp(1, exponent), math.inf),
        )
    ),
]


def sdk_mapping(scale):
    return LogarithmMapping(scale) if scale > 0 else ExponentMapping(scale)


@pytest.mark.parametrize("scale", range(-10, 21))
def test_the_mapping_is_the_sdks(scale):
    random = np.random.default_rng(scale + 100)
    values = np.concatenate([EDGES, np.exp(random.uniform(-700, 700, 2000)), random.lognormal(size=2000)])
    expected = [sdk_mapping(scale).map_to_index(value) for value in values.tolist()]
    assert bucket_indices(values, scale).tolist() == expected


@given(
    st.lists(
        st.lists(
            st.floats(-1e300, 1e300, allow_subnormal=False) | st.sampled_from([0.0, -0.0, 1.0, -2.0]), max_size=30
        ),
        max_size=4,
    ),
    st.sampled_from([2, 4, 160]),
)
def test_no_side_has_more_buckets_than_allowed_and_none_is_lost(batches, most):
    buckets = Buckets(20)
    for values in batches:
        buckets = fold(buckets, np.array(values, np.float64), most=most)
    values = [value for some in batches for value in some]
    assert buckets.zeros == sum(value == 0 for value in values)
    for side, sign in ((buckets.positive, 1), (buckets.negative, -1)):
        magnitudes = np.array([sign * value for value in values if sign * value > 0])
        assert sum(side.values()) == len(magnitudes)
        if not side:
            continue
        assert max(side) - min(side) < most
        base = 2.0**-buckets.scale  # bucket i covers (2 ** (i * base), 2 ** ((i + 1) * base)]
        for magnitude in magnitudes.tolist():
            index = math.ceil(math.log2(magnitude) / base) - 1
            assert any(near in side for near in (index - 1, index, index + 1))


def test_the_scale_goes_down_no_further_than_it_must():
    values = np.array([1.5, 1.5 * 2**8])
    assert fold(Buckets(20), values, most=160).scale == 4  # 8 octaves of 16 buckets, and one
    assert fold(Buckets(20), values, most=128).scale == 3
    assert fold(Buckets(3), values, most=160).scale == 3
