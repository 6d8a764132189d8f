"""Histograms from a log call to OpenTelemetry's columns."""

import collections
import itertools
import logging
import math
import random

import numpy as np
import pytest
from distribution_points import Reading, nonfinite, side, steps_of

import tensormeter
from support.optional import torch
from tensormeter import Histogram
from tensormeter.agent.ingest.histogram_points import NONFINITE_METRIC
from tensormeter.otlp.batch import STEP_METRIC, ExponentialHistogram, Gauge, Temporality
from tensormeter.otlp.batch import Histogram as ExplicitHistogram
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.encode import encode_metrics
from tensormeter.record.reduction.reduction import Rule
from tensormeter.ring.format import State
from tensormeter.ring.histogram_buckets import MAX_BUCKETS, SINGLE


def many_values():
    """Values in so many bins that a row holds the whole table."""
    return torch.logspace(-30, 30, 5000)


def expected_side(values, scale):
    """The same by definition; exact for float32, whose fractions of an octave float64 tells apart."""
    return dict(collections.Counter(math.ceil(math.log2(value) * 2.0**scale) - 1 for value in values))


@pytest.mark.parametrize("spread", [0.001, 1.0, 8.0, 30.0])
def test_buckets_hold_what_was_logged(source, spread):
    chance = np.random.default_rng(1)
    values = np.exp2(chance.normal(0, spread, 3000)).astype(np.float32)
    values = values * chance.choice([-1, 1], 3000).astype(np.float32)
    values = values[np.isfinite(values)]
    source.log({"g": Histogram(values)}, 7)
    (series,) = Reading(source).series("g")
    assert isinstance(series, ExponentialHistogram)
    scale, tiny = int(series.scales[0]), 2.0**SINGLE.lowest
    assert side(series.positive) == expected_side(values[values > tiny].tolist(), scale)
    assert side(series.negative) == expected_side((-values[values < -tiny]).tolist(), scale)
    assert series.zero_counts[0] == (np.abs(values) <= tiny).sum()
    assert series.zero_thresholds[0] == tiny
    assert series.counts[0] == len(values)
    assert series.sums[0] == pytest.approx(values.sum(dtype=np.float64))
    assert (series.minima[0], series.maxima[0]) == (values.min(), values.max())
    widest = max(len(series.positive.counts[0]), len(series.negative.counts[0]))
    assert widest <= MAX_BUCKETS
    finer = [expected_side(part, scale + 1) for part in (values[values > tiny], -values[values < -tiny])]
    assert scale == SINGLE.scale or any(max(buckets) - min(buckets) >= MAX_BUCKETS for buckets in finer)


def test_the_whole_range_of_both_formats_fits(source):
    for step, dtype in enumerate((np.float32, np.float64)):
        ends = np.array([2.0**-63, np.finfo(dtype).max, -(2.0**-63), -np.finfo(dtype).max], dtype)
        source.log({"g": Histogram(ends)}, step)
    for series in Reading(source).series("g"):
        assert series.counts[0] == 4
        assert max(map(len, (series.positive.counts[0], series.negative.counts[0]))) <= MAX_BUCKETS
        assert series.positive.counts[0].sum() == series.negative.counts[0].sum() == 2


def test_one_point_for_each_row_next_to_its_numbers(source):
    for step in range(3):
        source.log({"loss": step / 2, "g": Histogram(torch.full((step + 1,), 1.5)), "n": step}, step)
    batch = Reading(source).batch()
    by_name = {series.name: series for series in batch.series}
    assert by_name["tensormeter.step"].values.tolist() == [0, 1, 2]
    assert by_name["loss"].values.tolist() == [0.0, 0.5, 1.0]
    series = by_name["g"]
    assert series.times.tolist() == by_name["loss"].times.tolist()
    assert series.start_times.tolist() == series.times.tolist()
    assert series.temporality is Temporality.DELTA
    assert series.counts.tolist() == [1, 2, 3]
    assert series.sums.tolist() == [1.5, 3.0, 4.5]
    (decoded,) = decode_metrics(encode_metrics([batch]))
    (again,) = [decoded_series for decoded_series in decoded.series if decoded_series.name == "g"]
    assert again.counts.tolist() == [1, 2, 3]
    assert side(again.positive, 2) == {int(math.log2(1.5) * 8): 3}


def test_what_is_not_finite_is_counted_apart(source):
    odd = [1.0, math.nan, math.inf, math.inf, -math.inf, math.nan, math.nan, 0.0]
    source.log({"clean": Histogram([1.0, 2.0])}, 0)
    source.log({"odd": Histogram(odd), "nan": Histogram(torch.tensor([math.nan]))}, 1)
    batch = Reading(source).batch()
    assert nonfinite(batch) == {("odd", "NaN"): [3], ("odd", "+Inf"): [2], ("odd", "-Inf"): [1], ("nan", "NaN"): [1]}
    by_name = {series.name: series for series in batch.series}
    assert by_name["odd"].counts.tolist() == [2]
    assert by_name["odd"].zero_counts.tolist() == [1]
    assert by_name["nan"].counts.tolist() == [0]
    assert all(math.isnan(column[0]) for column in (by_name["odd"].sums, by_name["odd"].minima, by_name["odd"].maxima))
    assert by_name["clean"].sums.tolist() == [3.0]


@pytest.mark.parametrize("empty", [[], np.empty((0, 3)), lambda: torch.empty(0), (), range(0)])
def test_empty_distributions(source, empty):
    source.log({"g": Histogram(empty() if callable(empty) else empty)}, 0)
    (series,) = Reading(source).series("g")
    assert series.counts.tolist() == [0]
    assert series.sums.tolist() == [0.0]
    assert math.isnan(series.minima[0])


@pytest.mark.parametrize(
    "values",
    [
        [1, 2.5, True],
        (1, 2, 3),
        range(5),
        np.arange(4, dtype=np.uint64),
        np.float32(1.5).reshape(1),
        torch.arange(3, dtype=torch.uint8),
        torch.tensor(2.0),
    ],
    ids=lambda values: type(values).__name__,
)
def test_sequences_arrays_and_tensors(source, values):
    source.log({"g": Histogram(values)}, 0)
    (series,) = Reading(source).series("g")
    flat = [float(value) for value in (values.flatten() if hasattr(values, "flatten") else values)]
    assert series.counts.tolist() == [len(flat)]
    assert (series.sums[0], series.minima[0], series.maxima[0]) == (sum(flat), min(flat), max(flat))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ("text", "pass a tensor"),
        (5.0, "pass a tensor"),
        ({"a": 1}, "pass a tensor"),
        ([1.0, "x"], "dtype"),
        ([1j], "real numbers"),
        ([[1.0], [1.0, 2.0]], "cannot convert the values to an array"),
        ([torch.tensor(1.0)], "torch.stack"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "compressed"),
        (torch.ones(3, dtype=torch.complex64), "complex"),
        (torch.ones(3).to_sparse(), "sparse"),
        (torch.ones(3, device="meta"), "meta"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_counted_is_refused(source, caplog, values, reason):
    for step in range(2):
        source.log({"g": Histogram(values), "loss": 1.0}, step)
    assert source.ring.drops() == {"unsupported_value": 2}
    (message,) = [text for text in map(logging.LogRecord.getMessage, caplog.records) if "is not recorded" in text]
    assert message.startswith("'g'")
    assert reason in message
    (loss,) = Reading(source).series("loss")
    assert loss.values.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("arguments", [{}, {"values": [1.0], "np_histogram": ([1], [0, 1])}, {"np_histogram": 5}])
def test_a_histogram_of_nothing_or_of_both_is_refused_when_it_is_logged(source, caplog, arguments):
    histogram = Histogram(**arguments)
    source.log({"g": histogram, "loss": 1.0})
    (message,) = [text for text in map(logging.LogRecord.getMessage, caplog.records) if "is not recorded" in text]
    assert message.startswith("'g' is not recorded: ")
    assert "np_histogram" in message
    (loss,) = Reading(source).series("loss")
    assert loss.values.tolist() == [1.0]


class TestOverSteps:
    """With `every` or a definition, many distributions become one."""

    @pytest.mark.parametrize("reduce", ["mean", "sum", None])
    def test_values_of_all_steps_are_together(self, source, reduce):
        chance = np.random.default_rng(5)
        parts = [chance.normal(size=200).astype(np.float32) for _ in range(8)]
        for step, part in enumerate(parts):
            source.log({"g": Histogram(part), "loss": float(step)}, step, every=4, reduce=reduce)
        for step in (3, 7):
            source.log({"whole": Histogram(np.concatenate(parts[step - 3 : step + 1]))}, step)
        by_name = {series.name: series for series in Reading(source).batch().series}
        pooled, whole = by_name["g"], by_name["whole"]
        for row in range(2):
            assert side(pooled.positive, row) == side(whole.positive, row)
            assert side(pooled.negative, row) == side(whole.negative, row)
        assert pooled.sums == pytest.approx(whole.sums)
        assert pooled.minima.tolist() == whole.minima.tolist()
        assert pooled.maxima.tolist() == whole.maxima.tolist()
        assert len(by_name["loss"].times) == 2

    def test_the_last_one(self, source):
        for step in range(4):
            source.log({"g": Histogram([float(step)] * 3)}, step, every=2, reduce="last")
        assert steps_of(source, "g") == {"g": [(1, 3, 3, 1, 1), (3, 3, 9, 3, 3)]}

    def test_definitions_and_what_is_not_complete(self, source):
        source.recorder.define("g*", Rule(2, "mean"))
        for step in range(3):
            source.log({"g": Histogram([1.0, -2.0]), "g_loss": float(step), "h": Histogram([2.0])}, step)
        source.recorder.close(State.FINISHED)
        assert steps_of(source, "g", "h") == {
            "g": [(1, 4, -2, -2, 1), (2, 2, -1, -2, 1)],
            "h": [(step, 1, 2, 2, 2) for step in range(3)],
        }
        assert source.ring.drops() == {}

    @pytest.mark.parametrize("reduce", ["min", "max"])
    def test_what_makes_no_sense_is_refused(self, source, reduce, caplog):
        for step in range(2):
            source.log({"g": Histogram([1.0]), "loss": 1.0}, step, every=2, reduce=reduce)
        assert {series.name for series in Reading(source).batch().series} == {"loss", STEP_METRIC}
        assert source.ring.drops() == {"unsupported_value": 2}
        assert f"cannot reduce a Histogram with {reduce!r}; use mean, sum or last" in caplog.text

    def test_nothing_and_what_is_not_finite(self, source):
        for step, values in enumerate([[], [1.0, 2.0], [], [5.0], [], [], [1.0], [math.inf]]):
            source.log({"g": Histogram(np.array(values, np.float32))}, step, every=2)
        points = [(step, repr(rest)) for step, *rest in sorted(steps_of(source, "g")["g"])]
        nan = math.nan
        expected = [(1, 2, 3, 1, 2), (3, 1, 5, 5, 5), (5, 0, 0, nan, nan), (7, 1, nan, nan, nan)]
        assert points == [(step, repr([*map(float, rest)])) for step, *rest in expected]

    def test_ready_made_ones_as_long_as_the_edges_stay(self, source):
        for step, last in enumerate([2.0, 2.0, 2.0, 3.0, 3.0]):
            source.log({"h": Histogram(np_histogram=([1, step], [0.0, 1.0, last]))}, step, every=3)
        source.log({"h": Histogram(np_histogram=([1], [0.0, 1.0]))}, 5, every=3)  # not complete: 3.0 was twice
        source.recorder.close(State.FINISHED)
        histograms = Reading(source).series("h")
        rows = [(series.bounds.tolist(), counts.tolist()) for series in histograms for counts in series.buckets]
        assert rows == [([0, 1, 2], [0, 3, 3, 0]), ([0, 1, 3], [0, 2, 7, 0]), ([0, 1], [0, 1, 0])]

    def test_a_bin_does_not_overflow(self, source, monkeypatch):
        monkeypatch.setattr("tensormeter.record.histogram.counting.MOST_ON_DEVICE", 5)
        for step in range(4):
            source.log({"g": Histogram([1.0, 1.0])}, step, every=4)
        source.recorder.close(State.FINISHED)
        assert steps_of(source, "g") == {"g": [(2, 4, 4, 1, 1), (3, 4, 4, 1, 1)]}


class TestExplicit:
    def test_numpy_histograms(self, source):
        values = np.random.default_rng(0).normal(size=500)
        pairs = [np.histogram(values, 8), np.histogram(values, 8), np.histogram(values * 2, 8), np.histogram(values, 3)]
        for step, pair in enumerate(pairs):
            source.log({"h": Histogram(np_histogram=pair), "loss": 1.0}, step)
        histograms = Reading(source).series("h")
        assert [len(series.times) for series in histograms] == [2, 1, 1]
        assert all(isinstance(series, ExplicitHistogram) for series in histograms)
        shown = [(series.bounds, buckets) for series in histograms for buckets in series.buckets]
        for (counts, edges), (bounds, buckets) in zip(pairs, shown, strict=True):
            assert bounds.tolist() == edges.tolist()
            assert buckets.tolist() == [0, *counts.tolist(), 0]
        assert histograms[0].counts.tolist() == [500, 500]
        assert math.isnan(histograms[0].sums[0])
        assert histograms[0].temporality is Temporality.DELTA

    def test_changing_edges_do_not_fill_the_dictionary(self, source):
        for step in range(50):
            source.log({"h": Histogram(np_histogram=np.histogram([step, step + 1.0], 4))}, step)
        assert len(source.recorder._rows.layouts) == 1
        assert len(Reading(source).series("h")) == 50

    @pytest.mark.parametrize(
        "pair",
        [
            ([1, 2], [0.0, 1.0]),
            ([], [0.0]),
            ([[1]], [0.0, 1.0]),
            ([1], [0.0, math.inf]),
            ([1], [1.0, 0.0]),
            ([1], [0.0, 0.0]),
            ([0.5], [0.0, 1.0]),
            ([math.nan], [0.0, 1.0]),
            ([-1], [0.0, 1.0]),
            ("ab", "abc"),
            (None, [0.0, 1.0]),
        ],
        ids=repr,
    )
    def test_what_is_no_histogram_is_refused(self, source, pair):
        source.log({"h": Histogram(np_histogram=pair)}, 0)
        assert source.ring.drops() == {"unsupported_value": 1}
        assert Reading(source).batch() is None


def test_many_distributions_take_several_rows(new_source):
    source = new_source(lanes=1, buffer_bytes=1 << 18)
    names = [f"layer{i}" for i in range(15)]
    source.log({"loss": 1.0} | {name: Histogram(many_values() * (i + 1)) for i, name in enumerate(names)}, 9)
    batch = Reading(source).batch()
    by_name = {series.name: series for series in batch.series}
    assert len(by_name["loss"].times) == 1
    steps = by_name["tensormeter.step"]
    assert len(steps.times) > 1
    assert set(steps.values.tolist()) == {9}
    for i, name in enumerate(names):
        assert by_name[name].sums.tolist() == [pytest.approx(float(many_values().double().sum()) * (i + 1))]
        assert by_name[name].times[0] in steps.times


def test_ever_different_sets_of_distributions_do_not_fill_the_dictionary(new_source):
    """As of a model with experts, where gradients are missing now here, now there."""
    source = new_source(buffer_bytes=32 << 20)
    chance = random.Random(3)
    reading, counts = Reading(source), collections.Counter()
    expected = collections.Counter()
    for step in range(150):
        names = chance.sample([f"expert{i}" for i in range(16)], 8)
        source.log({"loss": 1.0} | {name: Histogram(torch.ones(2)) for name in names}, step)
        expected.update(["loss", *names])
        counts.update({series.name: len(series.times) for series in reading.batch().series})
    del counts[STEP_METRIC]
    assert counts == expected
    assert source.ring.drops() == {}


def test_ever_different_pairs_of_precomputed_histograms_do_not_fill_the_dictionary(new_source):
    source = new_source(buffer_bytes=32 << 20)
    histogram = Histogram(np_histogram=([1, 2], [0.0, 1.0, 2.0]))
    names = [f"expert{i}" for i in range(20)]
    for step, pair in enumerate(itertools.combinations(names, 2)):
        source.log(dict.fromkeys(pair, histogram), step)
    counts = collections.Counter({series.name: len(series.times) for series in Reading(source).batch().series})
    assert {name: counts[name] for name in names} == dict.fromkeys(names, 19)
    assert source.ring.drops() == {}


def test_a_full_ring_drops_whole_rows_and_counts_them(new_source, caplog):
    source = new_source(lanes=1, buffer_bytes=1 << 16)
    for step in range(20):
        source.log({"g": Histogram(many_values())}, step)
    reading = Reading(source)
    (series,) = reading.series("g")
    assert 0 < len(series.times) == 20 - source.ring.drops()["ring_full"]
    source.log({"g": Histogram(torch.ones(2))}, 21)
    assert len(reading.series("g")) == 1


def test_a_distribution_that_no_lane_can_hold_is_counted(new_source, caplog):
    source = new_source(lanes=1, buffer_bytes=1 << 13)
    source.log({"g": Histogram(many_values()), "loss": 1.0}, 0)
    assert source.ring.drops() == {"ring_full": 1}
    assert "too small" in caplog.text
    assert Reading(source).series("loss")[0].values.tolist() == [1.0]


def test_through_an_agent_to_a_receiver(tmp_path, receiver):
    settings = {
        "directory": tmp_path / "runs",
        "buffer_directory": tmp_path / "rings",
        "agent": "thread",
        "endpoint": receiver.url,
        "finish_timeout": 300,
    }
    counts, edges = np.histogram([1.0, 2.0, 4.0], 3)
    model = torch.nn.Linear(4, 2)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    with tensormeter.init(settings=settings) as run:
        run.watch(model, every=1)
        for step in range(3):
            with run.step(items=5):
                model(torch.ones(1, 4)).sum().backward()
                sgd.step()
                pair = Histogram(np_histogram=(counts, edges))
                run.log({"x": Histogram(torch.full((step + 1,), 3.0)), "made": pair}, step)
    points = collections.defaultdict(list)
    for batch in receiver.batches():
        for series in batch.series:
            points[series.name].append(series)
    assert sorted(np.concatenate([series.sums for series in points["x"]])) == [3.0, 6.0, 9.0]
    assert points["made"][0].bounds.tolist() == edges.tolist()
    assert sum(len(series.times) for series in points["gradients/weight"]) == 3
    assert {int(count) for series in points["gradients/bias"] for count in series.counts} == {2}
    assert sum(len(series.times) for series in points["tensormeter.step.throughput"]) == 3


def test_the_nonfinite_metric_is_a_gauge_of_integers(source):
    source.log({"g": Histogram([math.nan])}, 0)
    (series,) = Reading(source).series(NONFINITE_METRIC)
    assert isinstance(series, Gauge)
    assert series.values.dtype == np.int64
    assert series.unit == "{value}"
