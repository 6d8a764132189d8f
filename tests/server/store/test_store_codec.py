"""Chunks and points."""

from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tensormeter.errors import StoreError
from tensormeter.server.store.models.errors import DamagedError
from tensormeter.server.store.models.points import Blobs, Points, steps_at
from tensormeter.server.store.sqlite.points.segment_decoder import SegmentDecoder
from tensormeter.server.store.sqlite.points.segments import (
    SEGMENT_POINTS,
    Segment,
    decode_blobs,
    decode_segment,
    encode_segment,
)

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
TIME = st.integers(1, (1 << 63) - 2)


@st.composite
def points(draw):
    times = sorted(draw(st.sets(TIME, min_size=1, max_size=40)))
    n = len(times)
    words = draw(st.lists(INT64, min_size=n, max_size=n))
    integers = draw(
        st.one_of(st.just([True] * n), st.just([False] * n), st.lists(st.booleans(), min_size=n, max_size=n))
    )
    return Points(np.array(times), np.array(words), np.array(integers))


def same(left, right):
    return all(
        getattr(left, name).dtype == getattr(right, name).dtype
        and np.array_equal(getattr(left, name), getattr(right, name))
        for name in ("times", "words", "integers")
    )


@settings(max_examples=200, deadline=None)
@given(points())
def test_a_chunk_comes_back_bit_for_bit(original):
    chunk = encode_segment(original)
    assert (chunk.n, chunk.t_min, chunk.t_max) == (len(original), original.times[0], original.times[-1])
    assert same(decode_segment(chunk), original)


def test_a_full_chunk_is_small():
    n = SEGMENT_POINTS
    rng = np.random.default_rng(0)
    times = 1_750_000_000_000_000_000 + np.cumsum(rng.integers(900_000, 1_100_000, n))
    values = (np.exp(-np.arange(n) / 2e4) + 0.05 * rng.standard_normal(n)).astype(np.float32).astype(np.float64)
    chunk = encode_segment(Points.of(times, values))
    assert same(decode_segment(chunk), Points.of(times, values))
    assert len(chunk.times) + len(chunk.words) < 6 * n
    steps = encode_segment(Points.of(times, np.arange(n)))
    assert len(steps.words) < n / 10


@settings(max_examples=200, deadline=None)
@given(points(), st.data())
def test_damage_is_an_error_or_other_points_but_never_worse(original, data):
    chunk = encode_segment(original)
    name = data.draw(st.sampled_from(["times", "words", "integers"]))
    blob = bytearray(getattr(chunk, name))
    if blob:
        blob[data.draw(st.integers(0, len(blob) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    fields = {field: getattr(chunk, field) for field in Segment.__dataclass_fields__} | {name: bytes(blob)}
    try:
        decoded = decode_segment(Segment(**fields))
    except StoreError:
        return
    assert len(decoded) == len(original)


def test_errors_of_a_wrong_size_contain_the_expected_size():
    numbers = encode_segment(Points.of(np.array([1, 2]), np.array([3, 4])))
    with pytest.raises(DamagedError, match="a segment: expected 24 bytes, but its header declares 16"):
        decode_segment(replace(numbers, n=3))
    distributions = encode_segment(Blobs.of(np.array([1]), [b"x"]))
    words = zstandard.ZstdCompressor(write_content_size=False).compress(b"x")
    with pytest.raises(
        DamagedError, match="a segment: expected at most 1073741824 bytes, but its header declares no size"
    ):
        decode_blobs(replace(distributions, words=words))


@given(st.lists(st.tuples(st.integers(1, 9), INT64), max_size=30))
def test_distinct_keeps_the_first_of_each_time(rows):
    times = np.array([time for time, _ in rows], np.int64)
    words = np.array([word for _, word in rows], np.int64)
    distinct = Points.of(times, words).distinct()
    first = {}
    for time, word in rows:
        first.setdefault(time, word)
    assert dict(zip(distinct.times.tolist(), distinct.values(), strict=True)) == first
    assert distinct.times.tolist() == sorted(first)


def test_concat_of_nothing_is_empty():
    assert len(Points.concat([]).distinct()) == 0
    assert Points.concat([]).values() == []


def test_steps_are_joined_by_time():
    steps = Points(
        np.array([1, 2, 3, 4, 5]),
        np.array(
            [10, np.float64(2.0).view(np.int64), np.float64(2.5).view(np.int64), np.float64(np.nan).view(np.int64), -1]
        ),
        np.array([True, False, False, False, True]),
    )
    joined, stepped = steps_at(steps, np.array([0, 1, 2, 3, 4, 5, 6]))
    assert joined.tolist() == [0, 10, 2, 0, 0, -1, 0]
    assert stepped.tolist() == [False, True, True, False, False, True, False]
    assert steps_at(Points.concat([]), np.array([1]))[1].tolist() == [False]


@pytest.mark.parametrize("size", [1, SEGMENT_POINTS])
def test_sizes_of_chunks(size):
    original = Points.of(np.arange(1, size + 1), np.arange(size) / 3)
    assert same(decode_segment(encode_segment(original)), original)


def test_many_segments_are_decoded_as_one_is():
    chaos = np.random.default_rng(0)
    encoded = []
    for n in (1, 1, 2, 2, 2, 100, 100, 200, 5000, 5000):
        times = np.cumsum(chaos.integers(1, 10**9, n))
        words = chaos.standard_normal(n).view(np.int64)
        masks = np.zeros(n, np.bool_), np.ones(n, np.bool_), chaos.random(n) < 0.5
        encoded += [encode_segment(Points(times, words, integers)) for integers in masks]
    broken = replace(encoded[0], t_max=encoded[0].t_max + 1, series=7)
    encoded.insert(4, broken)
    decoder = SegmentDecoder()
    for _ in range(2):
        decoded = decoder.decode(encoded)
        damage = decoded[4]
        assert isinstance(damage, DamagedError)
        assert damage.series == 7
        for segment, points in zip(encoded, decoded, strict=True):
            if segment is broken:
                continue
            assert isinstance(points, Points)
            expected = decode_segment(segment)
            assert [column.tolist() for column in points.arrays()] == [column.tolist() for column in expected.arrays()]
