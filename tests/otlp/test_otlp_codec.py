"""The OTLP codec: the same bytes as protobuf's own, and nothing lost on the way there and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

from tensormeter import EncodingError
from tensormeter.otlp.batch import (
    SCOPE,
    Batch,
    Buckets,
    Event,
    ExponentialHistogram,
    Gauge,
    Histogram,
    Scope,
    Series,
    Sum,
    Summary,
    Temporality,
)
from tensormeter.otlp.decode import decode_events, decode_metrics
from tensormeter.otlp.elements import check_metrics
from tensormeter.otlp.encode import encode_events, encode_metrics

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
int64s = st.integers(-(1 << 63), (1 << 63) - 1)
int32s = st.integers(-(1 << 31), (1 << 31) - 1)
scalars = st.one_of(st.booleans(), int64s, st.floats(), texts)
attribute_values = st.one_of(
    scalars,
    st.lists(st.booleans(), max_size=3),
    st.lists(int64s, max_size=3),
    st.lists(st.floats(), max_size=3),
    st.lists(texts, max_size=3),
)
attribute_sets = st.dictionaries(texts, attribute_values, max_size=4)
bit_patterns = st.one_of(
    st.sampled_from([0, 1, 1 << 63, 0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48, 0x7FF7_A5C3_5A3C_C3A5, 0x000F << 48]),
    st.integers(0, (1 << 64) - 1),
)
nested = st.recursive(
    st.one_of(st.none(), scalars, st.binary(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=12,
)


def column(draw, length, elements, dtype):
    return np.array(draw(st.lists(elements, min_size=length, max_size=length)), dtype)


def floats(draw, length):
    """Float64 of every bit pattern."""
    return column(draw, length, bit_patterns, np.uint64).view(np.float64)


uint64s = st.integers(0, (1 << 64) - 1)
scopes = st.one_of(st.just(SCOPE), st.builds(Scope, texts, texts, texts, attribute_sets))


@st.composite
def series(draw):
    """A series of any kind, of up to 20 points."""
    n = draw(st.integers(0, 20))
    name, times = draw(texts), column(draw, n, st.integers(1, (1 << 64) - 1), np.uint64)
    about = {"unit": draw(texts), "description": draw(texts), "attributes": draw(attribute_sets), "scope": draw(scopes)}
    starts = column(draw, n, uint64s, np.uint64) if draw(st.booleans()) else np.zeros(n, np.uint64)
    temporality = draw(st.sampled_from(Temporality))
    kind = draw(st.sampled_from([Gauge, Sum, Histogram, ExponentialHistogram, Summary]))
    if kind in (Gauge, Sum):
        values = floats(draw, n) if draw(st.booleans()) else column(draw, n, int64s, np.int64)
        if kind is Gauge:
            return Gauge(name, times, values, **about)
        return Sum(name, times, values, starts, monotonic=draw(st.booleans()), temporality=temporality, **about)
    counts = column(draw, n, uint64s, np.uint64)
    k = draw(st.integers(0, 4))
    if kind is Summary:
        values = floats(draw, n * k).reshape(n, k)
        return Summary(name, times, starts, counts, floats(draw, n), np.linspace(0, 1, k), values, **about)
    distribution = (starts, counts, floats(draw, n), floats(draw, n), floats(draw, n))
    if kind is Histogram:
        buckets = column(draw, n * (k + 1), uint64s, np.uint64).reshape(n, k + 1)
        return Histogram(
            name, times, *distribution, np.arange(k, dtype=np.float64), buckets, temporality=temporality, **about
        )
    sides = [
        Buckets(
            column(draw, n, int32s, np.int64),
            [np.array(draw(st.lists(uint64s, max_size=4)), np.uint64) for _ in range(n)],
        )
        for _ in range(2)
    ]
    return ExponentialHistogram(
        name,
        times,
        *distribution,
        column(draw, n, int32s, np.int64),
        column(draw, n, uint64s, np.uint64),
        floats(draw, n),
        *sides,
        temporality=temporality,
        **about,
    )


batches = st.builds(Batch, attribute_sets, st.lists(series(), max_size=3))


def to_any(value):
    """Protobuf's AnyValue, written down independently of the encoder."""
    message = AnyValue()
    if isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int):
        message.int_value = value
    elif isinstance(value, float):
        message.double_value = value
    elif isinstance(value, str):
        message.string_value = value
    else:
        message.array_value.CopyFrom(ArrayValue(values=[to_any(item) for item in value]))
    return message


def to_pairs(attributes):
    return [KeyValue(key=key, value=to_any(value)) for key, value in attributes.items()]


def reference(some_batches):
    """The request as protobuf objects write it."""
    request = ExportMetricsServiceRequest()
    for batch in some_batches:
        resource_metrics = request.resource_metrics.add()
        resource_metrics.resource.attributes.extend(to_pairs(batch.resource))
        resource_metrics.resource.SetInParent()
        scope_before = metric_before = None
        for series in batch.series:
            if series.scope != scope_before:
                scope_metrics = resource_metrics.scope_metrics.add(schema_url=series.scope.schema_url)
                scope_metrics.scope.name, scope_metrics.scope.version = series.scope.name, series.scope.version
                scope_metrics.scope.attributes.extend(to_pairs(series.scope.attributes))
                scope_before, metric_before = series.scope, None
            about = (type(series), series.name, series.unit, series.description)
            about += (getattr(series, "temporality", 0), getattr(series, "monotonic", False))
            if about != metric_before:
                metric = scope_metrics.metrics.add(name=series.name, description=series.description, unit=series.unit)
                metric_before = about
            add_points(metric, series)
    return request.SerializeToString()


def add_points(metric, metric_series):
    match metric_series:
        case Gauge():
            data = metric.gauge
        case Sum():
            data = metric.sum
            data.is_monotonic = metric_series.monotonic
        case Histogram():
            data = metric.histogram
        case ExponentialHistogram():
            data = metric.exponential_histogram
        case Summary():
            data = metric.summary
    data.SetInParent()
    if hasattr(metric_series, "temporality"):
        data.aggregation_temporality = metric_series.temporality.value
    # A start time is written for all points of a sum, or for none.
    started = getattr(metric_series, "start_times", np.zeros(0)).any()
    for i, time in enumerate(metric_series.times.tolist()):
        point = data.data_points.add(time_unix_nano=time, attributes=to_pairs(metric_series.attributes))
        if started:
            point.start_time_unix_nano = int(metric_series.start_times[i])
        if isinstance(metric_series, Gauge | Sum):
            if metric_series.values.dtype == np.int64:
                point.as_int = int(metric_series.values[i])
            else:
                point.as_double = float(metric_series.values[i])
            continue
        point.count = int(metric_series.counts[i])
        if isinstance(metric_series, Summary):
            point.sum = metric_series.sums[i]
            for quantile, value in zip(metric_series.quantiles, metric_series.values[i], strict=True):
                point.quantile_values.add(quantile=quantile, value=value)
            continue
        for field, values in (
            ("sum", metric_series.sums),
            ("min", metric_series.minima),
            ("max", metric_series.maxima),
        ):
            if not np.isnan(values[i]):
                setattr(point, field, values[i])
        if isinstance(metric_series, Histogram):
            point.explicit_bounds.extend(metric_series.bounds)
            point.bucket_counts.extend(metric_series.buckets[i])
        else:
            point.scale, point.zero_count = int(metric_series.scales[i]), int(metric_series.zero_counts[i])
            point.zero_threshold = metric_series.zero_thresholds[i]
            for side, into in ((metric_series.positive, point.positive), (metric_series.negative, point.negative)):
                into.SetInParent()
                into.offset = int(side.offsets[i])
                into.bucket_counts.extend(side.counts[i])


def same(left, right):
    """Whether two values are equal, with NaN equal to itself and integers different from floats."""
    if isinstance(left, float) and isinstance(right, float):
        return np.float64(left).tobytes() == np.float64(right).tobytes() or (left != left and right != right)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right


@given(st.lists(batches, max_size=3))
def test_encoder_writes_protobufs_own_bytes(some_batches):
    mine = encode_metrics(some_batches)
    theirs = reference(some_batches)
    if any(isinstance(series, Sum) and 0 in series.start_times for batch in some_batches for series in batch.series):
        # Written down, for the sake of the fixed layout, where protobuf would leave it out.
        mine = ExportMetricsServiceRequest.FromString(mine).SerializeToString()
    assert mine == theirs


def parts(metric_series):
    """Everything a series says, as something that can be compared."""

    def plain(value):
        match value:
            case np.ndarray():
                nan = np.isnan(value) if value.dtype == np.float64 else np.zeros(value.shape, bool)
                return value.dtype.str, value.shape, np.where(nan, 0, value).tobytes(), nan.tolist()
            case Buckets():
                return plain(value.offsets), [plain(counts) for counts in value.counts]
            case Scope():
                return vars(value)
            case _:
                return value

    return {"kind": type(metric_series).__name__, **{key: plain(value) for key, value in vars(metric_series).items()}}


@given(st.lists(batches, max_size=3))
def test_metrics_survive_the_way_there_and_back_bit_for_bit(some_batches):
    decoded = decode_metrics(encode_metrics(some_batches))
    assert len(decoded) == len(some_batches)
    for before, after in zip(some_batches, decoded, strict=True):
        assert same(dict(before.resource), after.resource)
        assert after.points == before.points
        # Neighbours of one metric and attribute set come back as one.
        full = [series for series in before.series if len(series.times)]
        if len({(metric_series.name, type(metric_series)) for metric_series in full}) < len(full):
            continue
        for left, right in zip(full, after.series, strict=True):
            assert same(parts(left), parts(right))
            if isinstance(left, Gauge | Sum):
                assert left.values.tobytes() == right.values.tobytes()


@pytest.mark.parametrize("attribute_bytes", [0, 60, 130, 20_000])
def test_sizes_of_every_varint_length_are_right(attribute_bytes):
    attributes = {"k": "x" * attribute_bytes} if attribute_bytes else {}
    gauge = Gauge("m", np.arange(1, 300, dtype=np.uint64), np.linspace(-1, 1, 299), attributes=attributes)
    batch = Batch({"service.name": "p"}, [gauge])
    assert encode_metrics([batch]) == reference([batch])


def test_points_of_one_metric_are_grouped_by_attributes_and_kind():
    times = np.array([1, 2], np.uint64)
    batch = Batch(
        {}, [Gauge("m", times, np.array([1.0, 2.0]), attributes={"a": 1, "b": 2}), Gauge("m", times, np.array([3, 4]))]
    )
    request = ExportMetricsServiceRequest.FromString(encode_metrics([batch]))
    metrics = request.resource_metrics[0].scope_metrics[0].metrics
    assert len(metrics) == 1
    swapped = metrics[0].gauge.data_points.add(time_unix_nano=3, as_double=5.0)
    swapped.attributes.extend(reversed(to_pairs({"a": 1, "b": 2})))
    metrics[0].gauge.data_points.add(time_unix_nano=4)  # no recorded value
    decoded_gauges = decode_metrics(request.SerializeToString())[0].gauges
    assert [(g.values.tolist(), dict(g.attributes)) for g in decoded_gauges] == [
        ([1.0, 2.0, 5.0], {"a": 1, "b": 2}),
        ([3, 4], {}),
    ]


def test_histograms_of_one_metric_are_grouped_by_their_bounds():
    request = ExportMetricsServiceRequest()
    histogram = request.resource_metrics.add().scope_metrics.add().metrics.add(name="h").histogram
    histogram.aggregation_temporality = 99  # from the future
    for time, bounds in enumerate([[0.0], [0.0, 1.0], [0.0], []], start=1):
        buckets = [time] * (len(bounds) + 1)
        histogram.data_points.add(time_unix_nano=time, count=time, explicit_bounds=bounds, bucket_counts=buckets)
    decoded_series = decode_metrics(request.SerializeToString())[0].series
    assert [(group.times.tolist(), group.bounds.tolist(), group.buckets.tolist()) for group in decoded_series] == [
        ([1, 3], [0.0], [[1, 1], [3, 3]]),
        ([2], [0.0, 1.0], [[2, 2, 2]]),
        ([4], [], [[4]]),
    ]
    assert all(np.isnan(group.sums).all() for group in decoded_series)
    assert {group.temporality for group in decoded_series} == {Temporality.UNSPECIFIED}


def test_unknown_kinds_are_refused():
    with pytest.raises(EncodingError, match="cannot encode a Series"):
        encode_metrics([Batch({}, [Series("s", np.array([1], np.uint64))])])


@given(
    attribute_sets, st.lists(st.builds(Event, texts, st.integers(1, (1 << 64) - 1), nested, attribute_sets), max_size=3)
)
def test_events_survive_with_nested_bodies(resource, events):
    ((decoded_resource, decoded_events),) = decode_events(encode_events(resource, events))
    assert same(resource, decoded_resource)
    assert len(decoded_events) == len(events)
    for before, after in zip(events, decoded_events, strict=True):
        assert (before.name, before.time) == (after.name, after.time)
        assert same(before.body, after.body)
        assert same(dict(before.attributes), after.attributes)


@pytest.mark.parametrize(("value", "sent"), [(1 << 63, str(1 << 63)), (1 + 2j, "(1+2j)"), ((1, 2), [1, 2])])
def test_values_without_a_type_in_otlp_become_text(value, sent):
    assert decode_events(encode_events({}, [Event("e", 1, value)]))[0][1][0].body == sent


def test_text_that_is_not_unicode_is_sent_all_the_same():
    events = [Event("e\udc80", 1, {"path\udcff": "a\udc80b"})]
    ((resource, (event,)),) = decode_events(encode_events({"host\udc80": "\udc80"}, events))
    assert resource == {r"host\udc80": "?"}
    assert (event.name, event.body) == (r"e\udc80", {r"path\udcff": "a?b"})
    batch = Batch({}, [Gauge("loss\udc80", np.array([1], np.uint64), np.array([1.0]))])
    assert decode_metrics(encode_metrics([batch]))[0].gauges[0].name == r"loss\udc80"


def test_observed_time_stands_in_for_a_missing_time():
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.add(observed_time_unix_nano=7, event_name="e")
    assert decode_events(request.SerializeToString())[0][1][0].time == 7


@settings(max_examples=300)
@given(st.data(), st.binary(max_size=200))
def test_malformed_bytes_raise_encoding_errors_only(data, noise):
    whole = encode_metrics([Batch({"a": [1, 2]}, [Gauge("m", np.array([1, 2], np.uint64), np.array([1.0, 2.0]))])])
    whole += encode_events({"b": "c"}, [Event("e", 5, {"k": [1, {"x": None}]})])
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    for body in (noise, whole[:start] + noise + whole[stop:], whole[start:stop]):
        for decode in (decode_metrics, decode_events):
            outcome: object = None
            try:
                outcome = decode(body)
            except EncodingError as error:
                outcome = str(error)
            assert outcome is not None


@pytest.mark.parametrize("level", range(3))
def test_groups_are_refused(level):
    """OTLP has no groups. The decoder refuses them, as the walk that counts elements does, although protobuf skips them."""
    body = b"\x0b\x0c"  # an empty group
    for tag in (b"\x0a", b"\x12")[:level][::-1]:  # a scope in a resource in the request
        body = tag + bytes([len(body)]) + body
    assert ExportMetricsServiceRequest.FromString(body)
    with pytest.raises(EncodingError, match="wire type 3"):
        check_metrics(body)
    with pytest.raises(EncodingError, match="a malformed field or a group"):
        decode_metrics(body)


def test_the_first_of_equal_attribute_keys_wins():
    request = ExportMetricsServiceRequest()
    request.resource_metrics.add().resource.attributes.extend([*to_pairs({"k": 1}), *to_pairs({"k": 2})])
    assert decode_metrics(request.SerializeToString())[0].resource == {"k": 1}
