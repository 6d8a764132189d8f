"""The coding of points in planes: every request comes back the same, and damaged data costs no more than an error."""

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tensormeter import EncodingError
from tensormeter.otlp.batch import Batch, Gauge, Sum
from tensormeter.otlp.encode import encode_metrics
from tensormeter.otlp.point_planes import DecodedTooLargeError, join_planes, split_planes


def series_of(chance, names, lengths, attributes):
    for name, length, with_attributes in zip(names, lengths, attributes, strict=False):
        times = chance.integers(1, 1 << 63, length).astype(np.uint64)
        words = chance.integers(-(1 << 63), 1 << 63, length, np.int64)
        values = words if chance.integers(2) else words.view(np.float64)
        metadata = {"attributes": {"k": "v" * int(chance.integers(300))}} if with_attributes else {}
        if chance.integers(5) == 0:
            yield Sum(name, times, values, times, **metadata)
        yield Gauge(name, times, values, **metadata)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from("abc"), max_size=6),
    st.lists(st.integers(0, 40), min_size=6, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.integers(0, 1 << 32),
)
def test_every_request_comes_back_the_same(names, lengths, attributes, seed):
    chance = np.random.default_rng(seed)
    batches = [Batch({"k": number}, list(series_of(chance, names, lengths, attributes))) for number in range(2)]
    body = encode_metrics(batches)
    coded = split_planes(body)
    if coded is not None:
        assert join_planes(coded, len(body)) == body
        with pytest.raises(DecodedTooLargeError):
            join_planes(coded, len(body) - 1)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_request_come_back_the_same(body):
    coded = split_planes(body)
    assert coded is None or join_planes(coded, len(body)) == body


@pytest.fixture(scope="module")
def coded():
    times = np.arange(50, dtype=np.uint64) + 1
    return split_planes(encode_metrics([Batch({}, [Gauge(name, times, times.astype(np.int64)) for name in "ab"])]))


@settings(deadline=None)
@given(st.data())
def test_damaged_data_raises_an_error_or_decodes_to_something_of_bounded_size(coded, data):
    damaged = bytearray(coded)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, 40))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    try:
        body = join_planes(bytes(damaged), 10_000)
    except EncodingError:
        return
    assert len(body) <= 10_000


def test_wide_rows_are_not_coded_and_cost_little():
    times = np.ones(1, np.uint64)
    wide = encode_metrics([Batch({}, [Gauge(f"metric/{index}", times, np.ones(1)) for index in range(2000)])])
    assert split_planes(wide) is None


def test_points_of_random_values_take_less_than_seven_and_a_half_bytes():
    """The random bits of the values themselves take 6.6 bytes."""
    chance = np.random.default_rng(0)
    n = 10_000
    times = (chance.integers(20, 60, n).cumsum() * 64 + (1 << 60)).astype(np.uint64)
    series = [Gauge("tensormeter.step", times, np.arange(n))]
    series += [Gauge(name, times, chance.random(n)) for name in ("loss", "accuracy", "lr", "norm")]
    body = encode_metrics([Batch({}, series)])
    size = len(zstandard.ZstdCompressor(level=1).compress(split_planes(body)))
    assert size / (4 * n) < 7.5 < len(zstandard.ZstdCompressor(level=1).compress(body)) / (4 * n)
