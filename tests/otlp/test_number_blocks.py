"""Blocks of number points: they contain what `decode_metrics` reads, with and without the C extension."""

import numpy as np
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tensormeter.errors import EncodingError
from tensormeter.otlp import number_blocks
from tensormeter.otlp.batch import Batch, Gauge, Sum
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.elements import TooManyElementsError, check_metrics
from tensormeter.otlp.encode import encode_metrics
from tensormeter.otlp.number_blocks import NumberBatch, decode_blocks, hash_name, hash_series

T0 = 1_750_000_000_000_000_000
needs_extension = pytest.mark.skipif(number_blocks._extension is None, reason="needs the C extension")


def request_of(*metrics):
    """A request with one resource and one scope, whose metrics the functions fill."""
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "p"
    scope = resource.scope_metrics.add(schema_url="https://example.org")
    scope.scope.name = "library"
    for fill in metrics:
        fill(scope.metrics.add())
    return request.SerializeToString()


def gauge(name, *values, unit="", attributes=(), **point):
    def fill(metric):
        metric.name, metric.unit = name, unit
        for number, value in enumerate(values):
            added = metric.gauge.data_points.add(time_unix_nano=T0 + number, **point)
            setattr(added, "as_int" if isinstance(value, int) else "as_double", value)
            for key, text in attributes:
                added.attributes.add(key=key).value.string_value = text

    return fill


def points_of(batches):
    """Every point of decoded batches, as (everything that identifies its series, time, word, whether it is an integer)."""
    points = []
    for batch in batches:
        series = [(each, each.times, each.values) for each in batch.series if isinstance(each, Gauge | Sum)]
        for block in batch.blocks if isinstance(batch, NumberBatch) else ():
            ends = np.cumsum(block.counts)
            for stretch, (first, end) in enumerate(zip(ends - block.counts, ends, strict=True)):
                for integers in (False, True):
                    mask = block.integers[first:end] == integers
                    words = block.words[first:end][mask]
                    values = words if integers else words.view(np.float64)
                    series.append((next(block.describe([stretch])), block.times[first:end][mask], values))
        for each, times, values in series:
            total = (each.monotonic, each.temporality) if isinstance(each, Sum) else None
            identity = (
                type(each),
                each.name,
                each.unit,
                each.description,
                repr(each.attributes),
                repr(each.scope),
                total,
            )
            words, integer = values.view(np.int64).tolist(), values.dtype.kind == "i"
            points += [(*identity, time, word, integer) for time, word in zip(times.tolist(), words, strict=True)]
    return sorted(points, key=repr)


def everything():
    def cumulative(metric):
        metric.name, metric.description = "requests", "those that were answered"
        metric.sum.is_monotonic, metric.sum.aggregation_temporality = True, 2
        for route in ("/a", "/b", "/a"):
            point = metric.sum.data_points.add(time_unix_nano=T0, start_time_unix_nano=T0 - 5, as_int=7)
            point.attributes.add(key="route").value.string_value = route
            point.attributes.add(key="code").value.int_value = 200

    def flagged(metric):
        metric.name = "flagged"
        metric.gauge.data_points.add(time_unix_nano=T0, as_double=1.5)
        metric.gauge.data_points.add(time_unix_nano=T0 + 1, flags=1)

    def histogram(metric):
        metric.name = "histogram"
        metric.histogram.data_points.add(time_unix_nano=T0, count=1, bucket_counts=[1])

    return request_of(
        gauge("loss", 0.5, 1, -0.0, float("nan")),
        gauge("größe", 1 << 62, unit="By"),
        gauge("accuracy", 0.25, attributes=[("fold", "1"), ("fold", "2")]),
        gauge("", 1.0),
        cumulative,
        flagged,
        histogram,
        lambda metric: None,
    )


@pytest.mark.parametrize("compiled", [True, False])
def test_blocks_contain_what_protobuf_reads(monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr(number_blocks, "_extension", None)
    elif number_blocks._extension is None:
        pytest.skip("needs the C extension")
    body = everything()
    expected, batches = decode_metrics(body), decode_blocks(body)
    assert points_of(batches) == points_of(expected)
    assert [batch.points for batch in batches] == [batch.points for batch in expected]
    assert [batch.resource for batch in batches] == [batch.resource for batch in expected]
    assert [[gap.name for gap in batch.gaps] for batch in batches] == [["flagged"]]
    assert hash_name("loss") == hash_name("loss") != hash_name("los")


@needs_extension
def test_only_what_numpy_cannot_hold_is_left_to_protobuf():
    (batch,) = decode_blocks(everything())
    assert {series.name for series in batch.series} == {"flagged", "histogram"}
    assert sum(len(block.times) for block in batch.blocks) == 10


@needs_extension
def test_keys_tell_series_apart_and_stay_the_same():
    """A series has the same key in each request and at each value, and no other series has it."""
    series = [
        gauge("a", 1.0),
        gauge("b", 1.0),
        gauge("a", 1.0, unit="s"),
        gauge("a", 1.0, attributes=[("k", "v")]),
        gauge("a", 1.0, attributes=[("k", "w")]),
        lambda metric: metric.sum.data_points.add(time_unix_nano=1, as_int=1) and setattr(metric, "name", "a"),
    ]

    def keys(*metrics):
        ((block,),) = [batch.blocks for batch in decode_blocks(request_of(*metrics))]
        return [tuple(key) for key in block.keys.tolist()]

    assert len({*keys(*series)}) == len(series)
    assert keys(*series) == keys(*series)
    assert keys(gauge("a", 2.0, 3)) == keys(gauge("a", 1.0))


@needs_extension
def test_the_key_of_a_series_without_attributes_follows_from_its_texts():
    def total(metric):
        metric.name, metric.unit, metric.description = "sum", "s", "d"
        metric.sum.is_monotonic, metric.sum.aggregation_temporality = True, 1
        metric.sum.data_points.add(time_unix_nano=1, as_int=1)

    ((block,),) = [batch.blocks for batch in decode_blocks(request_of(gauge("größe", 1.0, unit="By"), total))]
    described = [*block.describe([0, 1])]
    keys = [hash_series([(each.name, each.unit, each.description)], each) for each in described]
    assert np.array_equal(np.concatenate(keys), block.keys)


@needs_extension
def test_points_of_one_series_are_one_stretch():
    ((block,),) = [batch.blocks for batch in decode_blocks(request_of(gauge("a", *range(1000)), gauge("b", 1.0)))]
    assert block.counts.tolist() == [1000, 1]
    odd = block.select(np.arange(1001) % 2 == 1)
    assert (odd.counts.tolist(), len(odd.keys), odd.times.tolist()) == ([500], 1, [T0 + i for i in range(1, 1000, 2)])


def test_malformed_requests_are_refused_as_without_blocks():
    body = everything()
    for cut in range(1, len(body), 7):
        try:
            expected = points_of(decode_metrics(body[:cut]))
        except EncodingError:
            with pytest.raises(EncodingError):
                decode_blocks(body[:cut])
        else:
            assert points_of(decode_blocks(body[:cut])) == expected
    rng = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(body)
        damaged[int(rng.integers(len(body)))] = int(rng.integers(256))
        try:
            expected = points_of(decode_metrics(bytes(damaged)))
        except EncodingError:
            with pytest.raises(EncodingError):
                points_of(decode_blocks(bytes(damaged)))
        else:
            assert points_of(decode_blocks(bytes(damaged))) == expected


def test_limits_apply_to_what_is_not_in_blocks():
    many = request_of(*(lambda metric: metric.histogram.data_points.add(time_unix_nano=T0) for _ in range(51_001)))
    with pytest.raises(TooManyElementsError):
        decode_blocks(many, limit=check_metrics)
    times = np.array([T0], np.uint64)
    wide = encode_metrics([Batch({}, [Gauge(f"m{number}", times, np.ones(1)) for number in range(60_000)])])
    if number_blocks._extension is None:
        with pytest.raises(TooManyElementsError):
            decode_blocks(wide, limit=check_metrics)
    else:
        assert sum(batch.points for batch in decode_blocks(wide, limit=check_metrics)) == 60_000


@needs_extension
@pytest.mark.parametrize("part", ["name", "unit", "description", "attributes"])
def test_metrics_with_long_texts_are_left_to_protobuf(part):
    def fill(metric, text):
        gauge("m", 1.0)(metric)
        if part == "attributes":
            metric.gauge.data_points[0].attributes.add(key="k").value.string_value = text
        else:
            setattr(metric, part, text)

    short, long = (request_of(lambda metric, size=size: fill(metric, "x" * size)) for size in (4000, 5000))
    assert [len(batch.blocks) for batch in decode_blocks(short)] == [1]
    assert not isinstance(decode_blocks(long)[0], NumberBatch)
    assert points_of(decode_blocks(long)) == points_of(decode_metrics(long))


@needs_extension
def test_metrics_beyond_the_maximum_number_of_stretches_are_left_to_protobuf(monkeypatch):
    monkeypatch.setattr(number_blocks, "MAX_STRETCHES", 3)
    alternating = [gauge("c", 1.0, 2.0), gauge("d", 1.0)]

    def mixed(metric):
        metric.name = "mixed"
        for number in range(4):
            metric.gauge.data_points.add(time_unix_nano=T0 + number, as_int=1).attributes.add(key=str(number % 2))

    body = request_of(gauge("a", 1.0), mixed, gauge("b", 1.0), *alternating)
    (batch,) = decode_blocks(body)
    assert [series.name for block in batch.blocks for series in block.describe([0, 1, 2])] == ["a", "b", "c"]
    assert points_of([batch]) == points_of(decode_metrics(body))
