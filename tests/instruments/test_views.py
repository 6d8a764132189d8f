"""Views of the SDK, given to our provider."""

import math
from random import Random

import pytest
from opentelemetry import metrics
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import Counter, Histogram
from opentelemetry.sdk.metrics import MeterProvider as SDKMeterProvider
from opentelemetry.sdk.metrics import UpDownCounter as SDKUpDownCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    LastValueAggregation,
    SumAggregation,
    View,
)

from tensormeter.otlp import batch as otlp


def test_a_view_sets_name_description_and_attributes(new_measured):
    view = View(instrument_name="requests", name="Requests.v2", description="by us", attribute_keys={"keep"})
    measured = new_measured(views=[view])
    counter = measured.meter.create_counter("requests", unit="1", description="theirs")
    counter.add(1, {"keep": "a", "drop": "x"})
    counter.add(2, {"keep": "a", "drop": "y"})
    counter.add(4, {"drop": "y"})
    by_attributes = measured.by_attributes()
    assert {key: series.values.tolist() for key, series in by_attributes.items()} == {(("keep", "a"),): [3], (): [4]}
    for series in by_attributes.values():
        assert (series.name, series.unit, series.description) == ("Requests.v2", "1", "by us")


def test_an_instrument_that_no_view_matches_is_as_it_is(new_measured):
    measured = new_measured(views=[View(instrument_name="other", name="Other")])
    measured.meter.create_counter("mixedCase", description="d").add(1, {"k": "v"})
    series = measured.one("mixedCase")
    assert (series.description, series.attributes) == ("d", {"k": "v"})


def test_filtered_attributes_do_not_count_towards_the_limit(new_measured, warnings_logged):
    measured = new_measured({"cardinality_limit": 2}, views=[View(instrument_name="*", attribute_keys={"keep"})])
    counter = measured.meter.create_counter("a")
    for i in range(50):
        counter.add(1, {"keep": str(i % 2), "drop": str(i)})
    assert {key: series.values.tolist() for key, series in measured.by_attributes().items()} == {
        (("keep", "0"),): [25],
        (("keep", "1"),): [25],
    }
    assert warnings_logged() == []


@pytest.mark.parametrize(
    ("aggregation", "kind"),
    [
        (SumAggregation(), otlp.Sum),
        (LastValueAggregation(), otlp.Gauge),
        (ExplicitBucketHistogramAggregation([1.0, 2.0]), otlp.Histogram),
        (ExponentialBucketHistogramAggregation(), otlp.ExponentialHistogram),
    ],
)
@pytest.mark.parametrize("instrument", ["counter", "up_down_counter", "gauge", "histogram"])
def test_every_aggregation_works_with_every_instrument(new_measured, aggregation, kind, instrument):
    measured = new_measured(views=[View(instrument_name="a", aggregation=aggregation)])
    made = getattr(measured.meter, f"create_{instrument}")("a")
    method = getattr(made, {"gauge": "set", "histogram": "record"}.get(instrument, "add"))
    for value in (0.5, 1.5, 7):
        method(value)
    all_series = measured.series()
    assert {type(series) for series in all_series} == {kind}
    if kind is otlp.Sum:
        assert all_series[0].values.tolist() == [9.0]
        assert all_series[0].monotonic is (instrument == "counter")
    elif kind is otlp.Gauge:
        assert sorted(value for series in all_series for value in series.values.tolist()) == [0.5, 1.5, 7]
    elif kind is otlp.Histogram:
        assert all_series[0].bounds.tolist() == [1.0, 2.0]
        assert all_series[0].buckets.tolist() == [[1, 1, 1]]
    else:
        assert all_series[0].counts.tolist() == [3]


@pytest.mark.parametrize(("size", "scale"), [(160, 20), (2, 20), (7, 3), (100, 1), (160, 0), (300, 20)])
def test_a_view_sets_size_and_scale_of_exponential_histograms(new_measured, size, scale):
    aggregation = ExponentialBucketHistogramAggregation(max_size=size, max_scale=scale)
    measured = new_measured(views=[View(instrument_type=Histogram, aggregation=aggregation)])
    measured.meter.create_histogram("a").record(1.5)
    assert isinstance(measured.one("a"), otlp.ExponentialHistogram)
    assert measured._processor._layouts._known[1].layout.columns[0].stream.bounds == (min(size, 160), scale)


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
def test_a_view_leaves_minimum_and_maximum_out(new_measured, temporality):
    aggregation = ExplicitBucketHistogramAggregation([1.0], record_min_max=False)
    measured = new_measured({"temporality": temporality}, views=[View(instrument_name="a", aggregation=aggregation)])
    for name in ("a", "b"):
        measured.meter.create_histogram(name).record(0.5)
        measured.meter.create_histogram(name).record(2.5)
    by_name = {series.name: series for series in measured.series()}
    assert (by_name["b"].minima[0], by_name["b"].maxima[0]) == (0.5, 2.5)
    assert repr((float(by_name["a"].minima[0]), float(by_name["a"].maxima[0]))) == "(nan, nan)"
    assert (by_name["a"].sums[0], by_name["a"].buckets.tolist()) == (3.0, [[1, 1]])


def test_exponential_views_of_one_name_keep_their_own_scales(new_measured):
    views = [
        View(instrument_name="a", aggregation=ExponentialBucketHistogramAggregation(max_size=160, max_scale=3)),
        View(instrument_name="a", aggregation=ExponentialBucketHistogramAggregation(max_size=40, max_scale=20)),
    ]
    measured = new_measured(views=views)
    histogram = measured.meter.create_histogram("a")
    for i in range(1, 100):
        histogram.record(i)
    series = measured.one("a")  # with a point of each
    assert series.counts.tolist() == [99, 99]
    assert series.scales[0] == 3
    coarse, fine = map(len, series.positive.counts)
    assert coarse > 40 >= fine > 20


def test_two_views_that_make_one_stream_count_once(new_measured):
    """The SDK makes two metrics of one name, each with all measurements; as one stream they must not add up."""
    measured = new_measured(views=[View(instrument_name="a", name="b"), View(instrument_name="a", name="b")])
    measured.meter.create_counter("a").add(3)
    assert measured.one("b").values.tolist() == [3]


AGGREGATIONS = (
    None,
    SumAggregation(),
    ExplicitBucketHistogramAggregation([-1.0, 0.0, 2.5]),
    ExplicitBucketHistogramAggregation([1.0], record_min_max=False),
    ExponentialBucketHistogramAggregation(max_scale=2),  # with few buckets, the SDK fails to add up by itself
)


def points(reader):
    """The SDK's points, by metric and attributes."""
    data = reader.get_metrics_data()
    metrics = data.resource_metrics[0].scope_metrics[0].metrics if data else []
    return {
        (metric.name, *sorted(point.attributes.items())): point
        for metric in metrics
        for point in metric.data.data_points
    }


def check_like(series, point):
    """One point of ours against the SDK's, which leaves in the sums of negative values."""
    if isinstance(series, otlp.Sum):
        assert series.values.tolist() == [pytest.approx(point.value, abs=1e-9)]
        return
    assert series.counts.tolist() == [point.count]
    for ours, theirs in ((series.minima[0], point.min), (series.maxima[0], point.max)):
        assert math.isnan(ours) if math.isinf(theirs) else ours == theirs
    if isinstance(series, otlp.Histogram):
        assert series.buckets[0].tolist() == list(point.bucket_counts)
    else:
        assert series.scales[0] == point.scale
        for side, other in ((series.positive, point.positive), (series.negative, point.negative)):
            assert [count for count in side.counts[0].tolist() if count] == [
                count for count in other.bucket_counts if count
            ]
    if not math.isinf(point.min):
        assert math.isnan(series.sums[0]) == (point.min < 0)
    if not math.isnan(series.sums[0]):
        assert series.sums[0] == pytest.approx(point.sum, abs=1e-9)


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
@pytest.mark.parametrize("seed", range(8))
def test_views_make_the_streams_of_the_sdk(new_measured, temporality, seed):
    """Several views of an instrument whose values have either sign, over batches."""
    random = Random(seed)
    chosen = [(random.choice(AGGREGATIONS), random.choice([None, {"k"}, set()])) for _ in range(random.randint(1, 3))]
    views = [
        View(instrument_name="a", name=f"view{i}", attribute_keys=keys, aggregation=aggregation)
        for i, (aggregation, keys) in enumerate(chosen)
    ]
    # Of up-down counters ours keeps totals in either case, and the SDK what is asked for; histograms follow.
    delta = temporality == "delta" and not any(
        type(aggregation) in (type(None), SumAggregation) for aggregation, _ in chosen
    )
    reader = InMemoryMetricReader({SDKUpDownCounter: AggregationTemporality.DELTA} if delta else None)
    sdk = SDKMeterProvider([reader], views=views, shutdown_on_exit=False)
    measured = new_measured({"temporality": "delta" if delta else "cumulative"}, views=views)
    instruments = [provider.get_meter("test").create_up_down_counter("a") for provider in (sdk, measured.provider)]
    seen = 0
    for _ in range(6):
        for _ in range(random.randint(1, 6)):
            value = random.choice([1, -1]) * random.choice([random.uniform(0.1, 1e3), random.randint(1, 5)])
            attributes = {"k": random.choice("xy"), "other": random.randint(0, 2)}
            for instrument in instruments:
                instrument.add(value, attributes)
        expected = points(reader)
        for series in measured.series():
            check_like(series, expected[series.name, *sorted(series.attributes.items())])
            seen += 1
    assert seen >= 6
    sdk.shutdown()


def test_a_view_drops_instruments(new_measured):
    measured = new_measured(
        views=[View(instrument_name="*", aggregation=DropAggregation()), View(instrument_name="kept")]
    )
    measured.meter.create_counter("dropped").add(1)
    measured.meter.create_counter("kept").add(1)
    measured.meter.create_gauge("dropped_too").set(1.0, {"k": 1})
    assert [series.name for series in measured.series()] == ["kept"]


def test_several_views_make_several_streams(new_measured):
    measured = new_measured(
        views=[
            View(instrument_name="a", name="all"),
            View(instrument_name="a", name="by_k", attribute_keys={"k"}),
            View(instrument_name="a", name="buckets", aggregation=ExplicitBucketHistogramAggregation([1])),
        ]
    )
    counter = measured.meter.create_counter("a")
    for value in (1, 2.5):
        counter.add(value, {"k": "v", "l": "w"})
    by_name = {series.name: series for series in measured.series()}
    assert by_name["all"].attributes == {"k": "v", "l": "w"}
    assert by_name["by_k"].attributes == {"k": "v"}
    assert by_name["by_k"].values.tolist() == [3.5]
    assert by_name["buckets"].buckets.tolist() == [[1, 1]]


def test_two_instruments_become_one_stream(new_measured):
    measured = new_measured(views=[View(instrument_type=Counter, name="all", description="")])
    measured.meter.create_counter("a").add(1)
    measured.meter.create_counter("b").add(2)
    assert measured.one("all").values.tolist() == [3]


def test_a_view_selects_by_meter(new_measured):
    measured = new_measured(views=[View(meter_name="lib", meter_version="2", name="renamed", instrument_name="a")])
    for version in ("1", "2"):
        measured.provider.get_meter("lib", version).create_counter("a").add(1)
    assert {series.scope.version: series.name for series in measured.series()} == {"1": "a", "2": "renamed"}


def test_advice_yields_to_a_view(new_measured):
    view = View(instrument_name="viewed", aggregation=ExplicitBucketHistogramAggregation([5]))
    measured = new_measured(views=[view, View(instrument_name="renamed", name="new")])
    for name in ("viewed", "renamed"):
        measured.meter.create_histogram(name, explicit_bucket_boundaries_advisory=[1, 2]).record(1)
    bounds = {series.name: series.bounds.tolist() for series in measured.series()}
    assert bounds == {"viewed": [5.0], "new": [1.0, 2.0]}


def test_a_view_that_resolves_a_conflict_ends_the_warning(new_measured, warnings_logged):
    measured = new_measured(views=[View(instrument_name="a", description="one for both")])
    measured.meter.create_counter("a", description="x").add(1)
    measured.meter.create_counter("a", description="y").add(1)
    assert warnings_logged() == []
    assert measured.one("a").values.tolist() == [2]


def test_views_apply_to_observables(new_measured):
    measured = new_measured(
        views=[View(instrument_name="*", attribute_keys={"k"}), View(instrument_name="b", name="c")]
    )

    def observe(options):
        return [Observation(1, {"k": "x", "cpu": i}) for i in range(4)] + [Observation(7, {"k": "y"})]

    measured.meter.create_observable_counter("total", [observe])
    measured.meter.create_observable_gauge("value", [observe])
    measured.meter.create_observable_up_down_counter("b", [observe])
    measured.provider._observer.flush(300)
    values = {
        (series.name, tuple(sorted(series.attributes.items()))): series.values.tolist() for series in measured.series()
    }
    assert values["total", (("k", "x"),)] == [4]  # added up over what is left out
    assert values["value", (("k", "x"),)] == [1]
    assert values["total", (("k", "y"),)] == [7]
    assert len([key for key in values if key[0] == "c"]) == 5


def test_a_meter_without_a_name_and_a_unit_that_the_sdk_refuses(new_measured, warnings_logged):
    measured = new_measured(views=[View(instrument_name="a", name="b")])
    measured.provider.get_meter("").create_counter("a").add(1)
    measured.meter.create_counter("a", unit="µs").add(2)
    assert {series.name: series.values.tolist() for series in measured.series()} == {"b": [1], "a": [2]}
    assert any("cannot apply views" in line for line in warnings_logged())


def test_a_view_cannot_make_an_observable_a_histogram(new_measured):
    view = View(instrument_name="a", aggregation=ExplicitBucketHistogramAggregation())
    measured = new_measured(views=[view])
    instrument = measured.meter.create_observable_counter("a", [lambda options: [Observation(3)]])
    assert isinstance(instrument, metrics.ObservableCounter)
    measured.provider._observer.flush(300)
    assert measured.one("a").values.tolist() == [3]


@pytest.mark.parametrize("views", [[], [View(instrument_name="other", name="new")]])
def test_exponential_buckets_can_be_the_default(new_measured, views):
    measured = new_measured({"histogram_aggregation": "base2_exponential_bucket_histogram"}, views=views)
    measured.meter.create_histogram("a", explicit_bucket_boundaries_advisory=[1]).record(1.5)
    assert isinstance(measured.one("a"), otlp.ExponentialHistogram)
    assert measured._processor._layouts._known[1].layout.columns[0].stream.bounds == (160, 20)
