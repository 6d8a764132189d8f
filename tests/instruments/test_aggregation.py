"""The agent's aggregates, compared with those of the OpenTelemetry SDK, over batches and agents."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider as SDKMeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    View,
)

from tensormeter.otlp.batch import Temporality

EXPONENTIAL = View(instrument_name="exponential", aggregation=ExponentialBucketHistogramAggregation(max_size=20))


def sdk_points(measure):
    """The SDK's points of `measure(meter)`, by metric and attributes."""
    reader = InMemoryMetricReader()
    provider = SDKMeterProvider([reader], views=[EXPONENTIAL], shutdown_on_exit=False)
    measure(provider.get_meter("test"))
    data = reader.get_metrics_data()
    provider.shutdown()
    metrics = data.resource_metrics[0].scope_metrics[0].metrics if data else []
    return {
        (metric.name, tuple(sorted(point.attributes.items()))): point
        for metric in metrics
        for point in metric.data.data_points
    }


NUMBERS = st.floats(0, 1e6, allow_subnormal=False) | st.integers(0, 1 << 40)


@hypothesis_settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abc"), NUMBERS, st.booleans()), min_size=1, max_size=60))
def test_aggregations_are_those_of_the_sdk(shared, measurements):
    def instruments(meter):
        return (
            meter.create_counter("counter").add,
            meter.create_up_down_counter("up_down").add,
            meter.create_histogram("histogram").record,
            meter.create_histogram("exponential").record,
        )

    def measure(meter):
        for record in instruments(meter):
            for key, value, _ in measurements:
                record(value, {"k": key})

    expected = sdk_points(measure)
    # Another meter starts again; a batch ends now and then.
    ours = instruments(shared.provider.get_meter(f"test{shared.number()}"))
    points = {}

    def collect():
        points.update({(series.name, tuple(series.attributes.items())): series for series in shared.series()})

    for key, value, ends_batch in measurements:
        for record in ours:
            record(value, {"k": key})
        if ends_batch:
            collect()
    collect()
    assert points.keys() == expected.keys()
    for key, point in expected.items():
        series = points[key]
        assert len(series.times) == 1
        assert series.start_times[0] < series.times[0]
        if key[0] in ("counter", "up_down"):
            assert series.values[0] == pytest.approx(point.value, rel=1e-12)
            assert series.values.dtype.kind == ("i" if type(point.value) is int else "f")
            continue
        assert series.counts[0] == point.count
        assert series.sums[0] == pytest.approx(point.sum, rel=1e-12)
        assert (series.minima[0], series.maxima[0]) == (point.min, point.max)
        if key[0] == "histogram":
            assert series.bounds.tolist() == list(point.explicit_bounds)
            assert series.buckets[0].tolist() == list(point.bucket_counts)
        else:
            assert series.zero_counts[0] == point.zero_count
            assert sum(series.positive.counts[0].tolist()) == sum(point.positive.bucket_counts)
            if point.count > point.zero_count:
                assert series.scales[0] == point.scale
                assert series.positive.offsets[0] == point.positive.offset
                counts = series.positive.counts[0].tolist()
                assert counts == list(point.positive.bucket_counts)[: len(counts)]  # the SDK's end in zeros


@pytest.fixture
def shared(new_measured):
    measured = new_measured(views=[EXPONENTIAL])
    numbers = iter(range(1_000_000))
    measured.number = lambda: next(numbers)
    return measured


def test_cumulative_points_have_one_start_and_later_and_later_times(measured):
    counter = measured.meter.create_counter("a")
    points = []
    for amount in (1, 2, 3):
        counter.add(amount)
        points.append(measured.one("a"))
    assert [point.values[0] for point in points] == [1, 3, 6]
    assert len({int(point.start_times[0]) for point in points}) == 1
    assert points[0].times[0] < points[1].times[0] < points[2].times[0]
    assert measured.series() == []  # nothing has changed


@pytest.mark.parametrize("preference", ["delta", "lowmemory"])
def test_delta_points_follow_each_other(new_measured, preference):
    measured = new_measured({"temporality": preference}, views=[EXPONENTIAL])
    totals = iter([10, 15, 13])
    meter = measured.meter
    record = [
        meter.create_counter("counter").add,
        meter.create_up_down_counter("up_down").add,
        meter.create_histogram("histogram").record,
        meter.create_histogram("exponential").record,
    ]
    meter.create_observable_counter("observed", [lambda options: [Observation(next(totals))]])
    batches = []
    for amount in (1.5, 2.5, 4.0):
        for method in record:
            method(amount)
        measured.provider._observer.flush(300)
        batches.append({series.name: series for series in measured.series()})
    deltas = {"counter", "histogram", "exponential"} | ({"observed"} if preference == "delta" else set())
    for name in batches[0]:
        points = [batch[name] for batch in batches]
        assert {point.temporality for point in points} == {
            Temporality.DELTA if name in deltas else Temporality.CUMULATIVE
        }
        starts = [int(point.start_times[0]) for point in points]
        ends = [int(point.times[0]) for point in points]
        if name in deltas:
            assert starts[1:] == ends[:-1]
    assert [batch["counter"].values[0] for batch in batches] == [1.5, 2.5, 4.0]
    assert [batch["up_down"].values[0] for batch in batches] == [1.5, 4.0, 8.0]
    assert [batch["histogram"].sums[0] for batch in batches] == [1.5, 2.5, 4.0]
    assert [batch["exponential"].counts[0] for batch in batches] == [1, 1, 1]
    expected = [10, 5, 13] if preference == "delta" else [10, 15, 13]  # the third observation is of another life
    assert [batch["observed"].values[0] for batch in batches] == expected


def test_an_observed_total_that_begins_again_has_a_new_start(measured):
    totals = iter([10, 15, 3, 4])
    measured.meter.create_observable_counter("a", [lambda options: [Observation(next(totals))]])
    for _ in range(4):
        measured.provider._observer.flush(300)
    series = measured.one("a")
    assert series.values.tolist() == [10, 15, 3, 4]
    starts, times = series.start_times.tolist(), series.times.tolist()
    assert starts[0] == starts[1] < times[0]
    assert starts[2] == starts[3] == times[1]


def test_a_killed_agent_neither_loses_nor_doubles_values(new_measured):
    measured = new_measured(views=[EXPONENTIAL])
    meter = measured.meter
    counter = meter.create_counter("counter")
    histogram = meter.create_histogram("histogram")
    exponential = meter.create_histogram("exponential")

    def measure(amount):
        counter.add(amount)
        histogram.record(amount)
        exponential.record(amount)

    measure(1)
    assert len(measured.series(spooled=False)) == 3  # and the agent is killed
    measure(2)
    first = {series.name: series for series in measured.series()}
    measured.kill_agent()
    measure(0.5)
    second = {series.name: series for series in measured.series()}
    assert first["counter"].values.tolist() == [3]
    assert second["counter"].values.tolist() == [3.5]
    assert second["counter"].start_times[0] == first["counter"].start_times[0]
    assert second["histogram"].sums.tolist() == [3.5]
    assert second["histogram"].buckets[0].tolist()[:3] == [0, 3, 0]
    assert (second["histogram"].minima[0], second["histogram"].maxima[0]) == (0.5, 2.0)
    assert second["exponential"].counts.tolist() == [3]
    assert sum(second["exponential"].positive.counts[0].tolist()) == 3


def test_integers_are_exact_and_do_not_wrap(measured):
    counter = measured.meter.create_counter("a")
    counter.add((1 << 53) + 1)
    counter.add(1 << 53)
    assert measured.one("a").values.tolist() == [(1 << 54) + 1]
    for _ in range(3):
        counter.add((1 << 63) - 1)
    series = measured.one("a")
    assert series.values.dtype.kind == "f"
    assert series.values[0] == pytest.approx(3 * 2.0**63, rel=1e-2)


def test_histograms_take_negative_values_and_refuse_what_has_no_bucket(new_measured, warnings_logged):
    measured = new_measured(views=[EXPONENTIAL])
    for name in ("histogram", "exponential"):
        histogram = measured.meter.create_histogram(name, explicit_bucket_boundaries_advisory=[-1, 1])
        for value in (-3, -2.0, 0, 0.5, 4, math.nan, math.inf, -math.inf):
            histogram.record(value)
    by_name = {series.name: series for series in measured.series()}
    assert by_name["histogram"].buckets.tolist() == [[2, 2, 1]]
    exponential = by_name["exponential"]
    assert exponential.zero_counts.tolist() == [1]
    assert sum(exponential.negative.counts[0].tolist()) == 2
    assert sum(exponential.positive.counts[0].tolist()) == 2
    assert measured.run._process.ring.drops() == {"unsupported_value": 6}
    assert len(warnings_logged()) == 2


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
@pytest.mark.parametrize("name", ["histogram", "exponential"])
def test_a_histogram_of_negative_values_has_no_sum(new_measured, name, temporality):
    """OTLP's rule: receivers take it for a counter. A cumulative one has none from then on, also by the next agent."""
    measured = new_measured({"temporality": temporality}, views=[EXPONENTIAL])
    histogram = measured.meter.create_histogram(name)
    sums, counts = [], []
    for values in ((1, 2), (0, -0.0), (-3.0, 1), (4,)):
        for value in values:
            histogram.record(value)
        series = measured.one(name)
        assert series.minima[0] == (
            min(values) if temporality == "delta" else min(0 if counts else 1, series.minima[0])
        )
        sums.append(float(series.sums[0]))
        counts.append(int(series.counts[0]))
        measured.kill_agent()
    if temporality == "delta":
        assert (repr(sums), counts) == ("[3.0, 0.0, nan, 4.0]", [2, 2, 2, 1])
    else:
        assert (repr(sums), counts) == ("[3.0, 3.0, nan, nan]", [2, 4, 6, 7])


def test_an_up_down_counter_viewed_as_a_histogram_has_no_sum_of_negative_values(new_measured):
    views = [View(instrument_name="*", aggregation=ExplicitBucketHistogramAggregation([0.0]))]
    measured = new_measured(views=views)
    for name, values in (("signed", (-1, 2)), ("unsigned", (1, 2))):
        for value in values:
            measured.meter.create_up_down_counter(name).add(value)
    assert {series.name: repr(series.sums.tolist()) for series in measured.series()} == {
        "signed": "[nan]", "unsigned": "[3.0]",
    }  # fmt: skip


def test_gauges_keep_every_value_at_its_own_time(measured):
    gauge = measured.meter.create_gauge("g", unit="s", description="d")
    values = [1.0, math.inf, -0.0, 7, math.nan]
    for value in values:
        gauge.set(value, {"k": "v"})
    floats, integers = sorted(measured.series(), key=lambda series: series.values.dtype.kind)
    assert integers.values.tolist() == [7]
    assert repr(floats.values.tolist()) == "[1.0, inf, -0.0, nan]"
    assert len(set(floats.times.tolist())) == 4
    assert (floats.unit, floats.description, floats.attributes) == ("s", "d", {"k": "v"})


def test_rows_of_instruments_have_no_step(measured):
    measured.meter.create_gauge("g").set(1.0)
    measured.run.log({"loss": 2.0}, 41)
    measured.meter.create_gauge("g").set(1.0)
    measured.run.log({"loss": 3.0})
    while measured._processor.poll(abandon_pending=False):
        pass
    batch, _ = measured._processor.batch({})
    by_name = {series.name: series for series in batch.all_series}
    assert by_name["tensormeter.step"].values.tolist() == [41, 42]
    assert by_name["tensormeter.step"].times.tolist() == by_name["loss"].times.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_every_value_of_a_mixture_arrives_once_and_in_order(new_measured, seed):
    """Over many laps of a small ring, read a few at a time."""
    measured = new_measured({"buffer_bytes": 1 << 16})
    measured._processor._most = 150
    random = np.random.default_rng(seed)
    gauges = [measured.meter.create_gauge(f"g{i}") for i in range(5)]
    counter = measured.meter.create_counter("count")
    sent, received, count, last = {}, {}, 0, 0

    def collect():
        nonlocal last
        for _ in range(1000):
            batch_series = measured.series()
            if not batch_series:
                return
            for series in batch_series:
                if series.name == "count":
                    last = int(series.values[-1])
                    continue
                pairs = zip(series.times.tolist(), series.values.tolist(), strict=True)
                received.setdefault(series.name, []).extend(pairs)

    for i in range(6000):
        which = int(random.integers(0, 8))
        if which < 5:
            value = i if random.random() < 0.3 else i + 0.5
            gauges[which].set(value)
            sent.setdefault(f"g{which}", []).append(value)
        elif which < 7:
            counter.add(1)
            count += 1
        else:
            measured.run.log({"loss": float(i)}, i)
            sent.setdefault("loss", []).append(float(i))
        if random.random() < 0.02:
            collect()
    collect()
    assert measured.run._process.ring.drops() == {}
    assert {name: [value for _, value in sorted(pairs)] for name, pairs in received.items()} == sent
    times = [time for pairs in received.values() for time, _ in pairs]
    assert len(set(times)) == len(times)
    assert last == count
