"""Points of many gauges at once: the same bytes as protobuf's own, for all names, attributes, scopes and numbers of points."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tensormeter.otlp.batch import SCOPE, Batch, Scope
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.elements import check_metrics
from tensormeter.otlp.encode import encode_metrics
from tensormeter.otlp.gauge_catalog import GaugeCatalog, GaugeMetadata
from tensormeter.otlp.gauge_points import GaugeEncoder, GaugePoints, WideBatch

names = st.one_of(st.text(max_size=3), st.sampled_from(["a", "b" * 120, "c" * 200, "é" * 9000]))
attribute_sets = st.dictionaries(
    st.sampled_from("kl"), st.one_of(st.booleans(), st.integers(0, 1), st.text(max_size=150))
)
gauges = st.builds(
    GaugeMetadata,
    names,
    st.sampled_from(["", "s"]),
    st.sampled_from(["", "text"]),
    attribute_sets,
    st.sampled_from([SCOPE, Scope("other"), Scope("other", "2", "https://schema", {"k": 1})]),
)


def points_of(encoder, numbers, counts, chance):
    """Points of the gauges with these numbers, in the catalog's order."""
    counts_by_number = dict(zip(numbers, counts, strict=False))
    ranks = encoder.catalog.arrays().ranks
    order = sorted(counts_by_number, key=lambda number: ranks[number])
    total = sum(counts_by_number[number] for number in order)
    return GaugePoints(
        encoder,
        np.array(order, np.int64),
        np.array([counts_by_number[number] for number in order], np.int64),
        chance.integers(1, 1 << 62, total).astype(np.uint64),
        chance.integers(-(1 << 63), 1 << 63, total, np.int64),
        chance.integers(0, 2, total).astype(np.bool_),
    )


def values_of(series):
    """Bit patterns of the values by metadata and time."""
    return {
        (item.name, item.unit, item.description, repr(sorted(item.attributes.items())), repr(item.scope), time): (
            item.values.dtype.kind,
            word,
        )
        for item in series
        for time, word in zip(item.times.tolist(), item.values.view(np.int64).tolist(), strict=True)
    }


@settings(deadline=None)
@given(st.lists(gauges, min_size=1, max_size=12), st.lists(st.integers(1, 9), min_size=12), st.integers(0, 1 << 32))
def test_points_of_many_gauges_are_encoded_like_separate_series(metadata, counts, seed):
    encoder = GaugeEncoder(GaugeCatalog())
    numbers = [encoder.catalog.add(gauge) for gauge in metadata]
    chance = np.random.default_rng(seed)
    for _ in range(2):  # the second time with the template of the first
        batch = WideBatch({"k": "v"}, (), wide=points_of(encoder, numbers, counts, chance))
        body = encode_metrics([batch])
        message = ExportMetricsServiceRequest.FromString(body)
        assert message.SerializeToString() == body
        check_metrics(body)
        metrics = [
            (str(scope.scope), metric.name, metric.unit, metric.description)
            for scope in message.resource_metrics[0].scope_metrics
            for metric in scope.metrics
        ]
        assert len(set(metrics)) == len(metrics)
        (decoded,) = decode_metrics(body)
        assert values_of(decoded.series) == values_of(batch.all_series)
        assert decoded.points == batch.points == sum(1 for _ in values_of(batch.all_series))
        assert values_of(decode_metrics(encode_metrics([Batch({}, batch.all_series)]))[0].series) == values_of(
            batch.all_series
        )


def test_an_encoder_limits_the_templates_that_it_keeps():
    encoder = GaugeEncoder(GaugeCatalog())
    numbers = [encoder.catalog.add(GaugeMetadata("m" * 1000 + str(number))) for number in range(3000)]
    chance = np.random.default_rng(0)
    for count in range(1, 12):
        points = points_of(encoder, numbers[count:], [1] * 3000, chance)
        assert decode_metrics(encode_metrics([WideBatch({}, (), wide=points)]))[0].points == 3000 - count
        assert encoder.template_bytes <= 8 << 20
    for first in range(40):
        encode_metrics([WideBatch({}, (), wide=points_of(encoder, numbers[first : first + 1], [1], chance))])
    assert len(encoder._templates) <= 16


@pytest.mark.parametrize(("first", "second"), [(True, 1), (1, 1.0), ("1", 1)])
def test_attributes_that_compare_equal_are_different_gauges(first, second):
    catalog = GaugeCatalog()
    assert catalog.add(GaugeMetadata("a", attributes={"k": first})) != catalog.add(
        GaugeMetadata("a", attributes={"k": second})
    )
    assert catalog.add(GaugeMetadata("a", attributes={"k": first})) == 0
    assert len(catalog) == 2
