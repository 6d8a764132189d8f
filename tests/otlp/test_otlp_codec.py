"""The OTLP codec: the same bytes as protobuf's own, and nothing lost on the way there and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

from tensormeter import EncodingError
from tensormeter.otlp.batch import SCOPE, Batch, Event, Gauge
from tensormeter.otlp.decode import decode_events, decode_metrics
from tensormeter.otlp.encode import encode_events, encode_metrics

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
int64s = st.integers(-(1 << 63), (1 << 63) - 1)
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


@st.composite
def gauges(draw):
    times = draw(st.lists(st.integers(1, (1 << 64) - 1), max_size=20))
    if draw(st.booleans()):
        values = np.array(draw(st.lists(bit_patterns, min_size=len(times), max_size=len(times))), np.uint64)
        values = values.view(np.float64)
    else:
        values = np.array(draw(st.lists(int64s, min_size=len(times), max_size=len(times))), np.int64)
    words = [draw(texts) for _ in range(3)]
    return Gauge(words[0], np.array(times, np.uint64), values, words[1], words[2], draw(attribute_sets))


batches = st.builds(Batch, attribute_sets, st.lists(gauges(), max_size=3))


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
        scope_metrics = resource_metrics.scope_metrics.add()
        scope_metrics.scope.name = SCOPE
        for gauge in batch.gauges:
            metric = scope_metrics.metrics.add(name=gauge.name, description=gauge.description, unit=gauge.unit)
            metric.gauge.SetInParent()
            for time, value in zip(gauge.times.tolist(), gauge.values, strict=True):
                point = metric.gauge.data_points.add(time_unix_nano=time, attributes=to_pairs(gauge.attributes))
                if gauge.values.dtype == np.int64:
                    point.as_int = int(value)
                else:
                    point.as_double = float(value)
    return request.SerializeToString()


def same(left, right):
    """Equal, with NaN equal to itself and every number of its own type."""
    if isinstance(left, float) and isinstance(right, float):
        return np.float64(left).tobytes() == np.float64(right).tobytes() or (left != left and right != right)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right


@given(st.lists(batches, max_size=3))
def test_encoder_writes_protobufs_own_bytes(some_batches):
    assert encode_metrics(some_batches) == reference(some_batches)


@given(st.lists(batches, max_size=3))
def test_metrics_survive_the_way_there_and_back_bit_for_bit(some_batches):
    decoded = decode_metrics(encode_metrics(some_batches))
    assert not decoded.unsupported
    assert len(decoded.batches) == len(some_batches)
    for before, after in zip(some_batches, decoded.batches, strict=True):
        assert same(dict(before.resource), after.resource)
        full = [gauge for gauge in before.gauges if len(gauge.times)]
        assert after.points == before.points
        for left, right in zip(full, after.gauges, strict=True):
            assert (left.name, left.unit, left.description) == (right.name, right.unit, right.description)
            assert same(dict(left.attributes), right.attributes)
            assert left.values.dtype == right.values.dtype
            assert left.times.tobytes() == right.times.tobytes()
            assert left.values.tobytes() == right.values.tobytes()


@pytest.mark.parametrize("attribute_bytes", [0, 60, 130, 20_000])
def test_sizes_of_every_varint_length(attribute_bytes):
    attributes = {"k": "x" * attribute_bytes} if attribute_bytes else {}
    gauge = Gauge("m", np.arange(1, 300, dtype=np.uint64), np.linspace(-1, 1, 299), attributes=attributes)
    batch = Batch({"service.name": "p"}, [gauge])
    assert encode_metrics([batch]) == reference([batch])


def test_points_of_one_metric_are_grouped_by_attributes_and_kind():
    times = np.array([1, 2], np.uint64)
    batch = Batch(
        {},
        [
            Gauge("m", times, np.array([1.0, 2.0]), attributes={"a": 1, "b": 2}),
            Gauge("m", times, np.array([3, 4])),
        ],
    )
    request = ExportMetricsServiceRequest.FromString(encode_metrics([batch]))
    metrics = request.resource_metrics[0].scope_metrics[0].metrics
    metrics[0].gauge.data_points.extend(metrics[1].gauge.data_points)
    swapped = metrics[0].gauge.data_points.add(time_unix_nano=3, as_double=5.0)
    swapped.attributes.extend(reversed(to_pairs({"a": 1, "b": 2})))
    metrics[0].gauge.data_points.add(time_unix_nano=4)  # no recorded value
    del metrics[1]
    found = decode_metrics(request.SerializeToString()).batches[0].gauges
    assert [(g.values.tolist(), dict(g.attributes)) for g in found] == [
        ([1.0, 2.0, 5.0], {"a": 1, "b": 2}),
        ([3, 4], {}),
    ]


def test_other_kinds_of_points_are_reported():
    request = ExportMetricsServiceRequest()
    metrics = request.resource_metrics.add().scope_metrics.add().metrics
    metrics.add(name="s").sum.data_points.add(as_int=1)
    histogram = metrics.add(name="h").histogram.data_points
    histogram.add(count=1)
    histogram.add(count=2)
    assert decode_metrics(request.SerializeToString()).unsupported == {"sum": 1, "histogram": 2}


@given(
    attribute_sets, st.lists(st.builds(Event, texts, st.integers(1, (1 << 64) - 1), nested, attribute_sets), max_size=3)
)
def test_events_survive_with_nested_bodies(resource, events):
    ((found_resource, found),) = decode_events(encode_events(resource, events))
    assert same(resource, found_resource)
    assert len(found) == len(events)
    for before, after in zip(events, found, strict=True):
        assert (before.name, before.time) == (after.name, after.time)
        assert same(before.body, after.body)
        assert same(dict(before.attributes), after.attributes)


@pytest.mark.parametrize(("value", "sent"), [(1 << 63, str(1 << 63)), (1 + 2j, "(1+2j)"), ((1, 2), [1, 2])])
def test_what_otlp_has_no_type_for_becomes_text(value, sent):
    assert decode_events(encode_events({}, [Event("e", 1, value)]))[0][1][0].body == sent


def test_text_that_is_not_unicode_is_sent_all_the_same():
    events = [Event("e\udc80", 1, {"path\udcff": "a\udc80b"})]
    ((resource, (event,)),) = decode_events(encode_events({"host\udc80": "\udc80"}, events))
    assert resource == {"host?": "?"}
    assert (event.name, event.body) == ("e?", {"path?": "a?b"})
    batch = Batch({}, [Gauge("loss\udc80", np.array([1], np.uint64), np.array([1.0]))])
    assert decode_metrics(encode_metrics([batch])).batches[0].gauges[0].name == "loss?"


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


def test_the_first_of_equal_attribute_keys_wins():
    request = ExportMetricsServiceRequest()
    request.resource_metrics.add().resource.attributes.extend([*to_pairs({"k": 1}), *to_pairs({"k": 2})])
    assert decode_metrics(request.SerializeToString()).batches[0].resource == {"k": 1}
