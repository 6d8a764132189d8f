"""Histograms from a log call to OpenTelemetry's columns."""

import collections
import gzip
import logging
import math
import os
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tensormeter
from tensormeter import Histogram, UsageError
from tensormeter.distribution import DOUBLE, MAX_BUCKETS, SINGLE, STATISTICS_WORDS
from tensormeter.otlp.batch import STEP_METRIC, ExponentialHistogram, Gauge, Temporality
from tensormeter.otlp.batch import Histogram as ExplicitHistogram
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.encode import encode_metrics
from tensormeter.pipeline.distributions import NONFINITE_METRIC
from tensormeter.pipeline.processor import BatchMeasurementProcessor
from tensormeter.record.device import DeviceCopies
from tensormeter.record.histogram import DeviceDistribution
from tensormeter.record.recorder import Recorder
from tensormeter.record.reduction import Rule
from tensormeter.record.values import DeviceValue
from tensormeter.ring.file import RingFile
from tensormeter.ring.words import PENDING, State


class Reading:
    """What the agent makes of a source's rows."""

    def __init__(self, source):
        self.processor = BatchMeasurementProcessor(
            RingFile.open(source.path), {}, schedule_delay=1.0, max_export_batch_size=1 << 30
        )

    def batch(self, *, abandon=False):
        self.processor.poll(abandon_pending=abandon)
        found = self.processor.batch({})
        self.processor.release()
        return found and found[0]

    def series(self, name, **options):
        batch = self.batch(**options)
        return [series for series in batch.series if series.name == name] if batch else []


def nonfinite(batch):
    return {
        (series.attributes["tensormeter.metric"], series.attributes["tensormeter.kind"]): series.values.tolist()
        for series in batch.series
        if series.name == NONFINITE_METRIC
    }


def side(buckets, row=0):
    """Counts by index of one side of one point."""
    return {
        int(buckets.offsets[row]) + i: int(count) for i, count in enumerate(buckets.counts[row].tolist()) if count > 0
    }


def expected_side(values, scale):
    """The same by definition; exact for float32, whose fractions of an octave float64 tells apart."""
    return dict(collections.Counter(math.ceil(math.log2(value) * 2.0**scale) - 1 for value in values))


@pytest.fixture
def device_source(source):
    """A source whose ring is host memory for "devices" on the CPU: everything but the page-locking."""
    source.recorder._device._host = torch.frombuffer(source.ring.buffer, dtype=torch.float64)
    return source


def log_on_device(source, step=0, scalars=(), **tensors):
    """Log CPU tensors as if they were on a device."""
    wide = (torch.float64, torch.int64)
    found = {
        name: DeviceDistribution(tensor, DOUBLE if tensor.dtype in wide else SINGLE) for name, tensor in tensors.items()
    }
    devices = {name: DeviceValue(tensor) for name, tensor in scalars}
    source.recorder._rows.write_distributions(source.recorder._lanes.mine(), {"host": 1.0}, devices, found, step)


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
    assert scale == SINGLE.scale or any(max(found) - min(found) >= MAX_BUCKETS for found in finer)


def test_the_whole_range_of_both_formats_fits(source):
    for step, dtype in enumerate((np.float32, np.float64)):
        ends = np.array([2.0**-63, np.finfo(dtype).max, -(2.0**-63), -np.finfo(dtype).max], dtype)
        source.log({"g": Histogram(ends)}, step)
    for series in Reading(source).series("g"):
        assert series.counts[0] == 4
        assert max(map(len, (series.positive.counts[0], series.negative.counts[0]))) <= MAX_BUCKETS
        assert series.positive.counts[0].sum() == series.negative.counts[0].sum() == 2


def test_one_point_for_each_row_beside_its_numbers(source):
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
    (again,) = [found for found in decoded.series if found.name == "g"]
    assert again.counts.tolist() == [1, 2, 3]
    assert side(again.positive, 2) == {int(math.log2(1.5) * 8): 3}


def test_what_is_not_finite_is_counted_apart(source):
    odd = [1.0, math.nan, math.inf, math.inf, -math.inf, math.nan, math.nan, 0.0]
    source.log({"clean": Histogram([1.0, 2.0])}, 0)
    source.log({"odd": Histogram(odd), "nan": Histogram(torch.tensor([math.nan]))}, 1)
    batch = Reading(source).batch()
    assert nonfinite(batch) == {
        ("odd", "NaN"): [3],
        ("odd", "+Inf"): [2],
        ("odd", "-Inf"): [1],
        ("nan", "NaN"): [1],
    }
    by_name = {series.name: series for series in batch.series}
    assert by_name["odd"].counts.tolist() == [2]
    assert by_name["odd"].zero_counts.tolist() == [1]
    assert by_name["nan"].counts.tolist() == [0]
    assert all(math.isnan(column[0]) for column in (by_name["odd"].sums, by_name["odd"].minima, by_name["odd"].maxima))
    assert by_name["clean"].sums.tolist() == [3.0]


@pytest.mark.parametrize("empty", [[], np.empty((0, 3)), torch.empty(0), (), range(0)], ids=repr)
def test_empty_distributions(source, empty):
    source.log({"g": Histogram(empty)}, 0)
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
        ("text", "give it a tensor"),
        (5.0, "give it a tensor"),
        ({"a": 1}, "give it a tensor"),
        ([1.0, "x"], "dtype"),
        ([1j], "real numbers"),
        ([[1.0], [1.0, 2.0]], "no array"),
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
def test_a_histogram_of_nothing_or_of_both_is_an_error_at_once(arguments):
    with pytest.raises(UsageError, match="Histogram"):
        Histogram(**arguments)


def steps_of(source, *names):
    """What has arrived since the last call: (step, count, sum, minimum, maximum) of each point, by name."""
    batch = Reading(source).batch()
    steps = {series.name: series for series in batch.series if not series.attributes}[STEP_METRIC]
    step_at = dict(zip(steps.times.tolist(), steps.values.tolist(), strict=True))
    found = collections.defaultdict(list)
    for series in batch.series:
        if series.name in names:
            rows = zip(series.times, series.counts, series.sums, series.minima, series.maxima, strict=True)
            found[series.name] += [(step_at[int(time)], *map(float, row)) for time, *row in rows]
    return dict(found)


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
        assert f"a Histogram is not reduced by {reduce}; use one of mean, sum, last" in caplog.text

    def test_nothing_and_what_is_not_finite(self, source):
        for step, values in enumerate([[], [1.0, 2.0], [], [5.0], [], [], [1.0], [math.inf]]):
            source.log({"g": Histogram(np.array(values, np.float32))}, step, every=2)
        found = [(step, repr(rest)) for step, *rest in sorted(steps_of(source, "g")["g"])]
        nan = math.nan
        expected = [(1, 2, 3, 1, 2), (3, 1, 5, 5, 5), (5, 0, 0, nan, nan), (7, 1, nan, nan, nan)]
        assert found == [(step, repr([*map(float, rest)])) for step, *rest in expected]

    def test_ready_made_ones_as_long_as_the_edges_stay(self, source):
        for step, last in enumerate([2.0, 2.0, 2.0, 3.0, 3.0]):
            source.log({"h": Histogram(np_histogram=([1, step], [0.0, 1.0, last]))}, step, every=3)
        source.log({"h": Histogram(np_histogram=([1], [0.0, 1.0]))}, 5, every=3)  # not complete: 3.0 was twice
        source.recorder.close(State.FINISHED)
        found = Reading(source).series("h")
        rows = [(series.bounds.tolist(), counts.tolist()) for series in found for counts in series.buckets]
        assert rows == [([0, 1, 2], [0, 3, 3, 0]), ([0, 1, 3], [0, 2, 7, 0]), ([0, 1], [0, 1, 0])]

    def test_a_bin_does_not_overflow(self, source, monkeypatch):
        monkeypatch.setattr("tensormeter.record.distribution.MOST_ON_DEVICE", 5)
        for step in range(4):
            source.log({"g": Histogram([1.0, 1.0])}, step, every=4)
        source.recorder.close(State.FINISHED)
        assert steps_of(source, "g") == {"g": [(2, 4, 4, 1, 1), (3, 4, 4, 1, 1)]}


class TestOverStepsOnADevice:
    """The same code, driven with CPU tensors."""

    @staticmethod
    def log(source, step, rule, **tensors):
        wide = (torch.float64, torch.int64)
        found = {
            name: DeviceDistribution(tensor, DOUBLE if tensor.dtype in wide else SINGLE)
            for name, tensor in tensors.items()
        }
        ready = source.recorder._pool(source.recorder._lanes.first, rule, found, step)
        source.recorder._write(source.recorder._lanes.first, {}, {}, ready, step)

    def test_as_on_the_host(self, device_source):
        tensors = {
            "f32": lambda: torch.randn(100),
            "f64": lambda: torch.randn(50, dtype=torch.float64),
            "int": lambda: torch.randint(-9, 9, (30,)),
            "more": lambda: torch.randn(7, requires_grad=True),
        }
        for step in range(4):
            row = {name: make() for name, make in tensors.items()}
            with torch.inference_mode(mode=step % 2 == 0):
                self.log(device_source, step, Rule(2, "mean"), **row)
            hosts = {f"host {name}": Histogram(tensor) for name, tensor in row.items()}
            device_source.log(hosts, step, every=2)
            for tensor in row.values():
                tensor.detach().zero_()
        by_name = {series.name: series for series in Reading(device_source).batch().series}
        for name in tensors:
            ours, host = by_name[name], by_name[f"host {name}"]
            assert len(ours.times) == len(host.times) == 2
            for row in range(2):
                assert side(ours.positive, row) == side(host.positive, row)
                assert side(ours.negative, row) == side(host.negative, row)
            assert ours.zero_counts.tolist() == host.zero_counts.tolist()
            assert ours.sums == pytest.approx(host.sums)
            assert ours.minima.tolist() == host.minima.tolist()
            assert ours.maxima.tolist() == host.maxima.tolist()

    def test_the_last_one_and_what_is_not_complete(self, device_source):
        for step in range(3):
            self.log(device_source, step, Rule(2, "last"), last=torch.full((2,), float(step)))
            self.log(device_source, step, Rule(2, "sum"), sum=torch.full((2,), float(step)))
        device_source.recorder.close(State.FINISHED)
        assert steps_of(device_source, "last", "sum") == {
            "last": [(1, 2, 2, 1, 1), (2, 2, 4, 2, 2)],
            "sum": [(1, 4, 2, 0, 1), (2, 2, 4, 2, 2)],
        }

    def test_a_bin_does_not_overflow(self, device_source, monkeypatch):
        monkeypatch.setattr("tensormeter.record.pooling.MOST_ON_DEVICE", 5)
        for step in range(4):
            self.log(device_source, step, Rule(4, "mean"), g=torch.ones(2))
        device_source.recorder.close(State.FINISHED)
        assert steps_of(device_source, "g") == {"g": [(2, 4, 4, 1, 1), (3, 4, 4, 1, 1)]}

    def test_a_device_that_refuses_is_counted(self, device_source, monkeypatch, caplog):
        def fail(self, tensors, table):
            raise RuntimeError("out of memory")

        monkeypatch.setattr("tensormeter.record.distribution.DeviceTables.count", fail)
        self.log(device_source, 0, Rule(2, "mean"), g=torch.ones(2), h=torch.ones(2))
        assert device_source.ring.drops() == {"device_unfinished": 2}
        assert "out of memory" in caplog.text


class TestExplicit:
    def test_numpy_histograms(self, source):
        values = np.random.default_rng(0).normal(size=500)
        pairs = [np.histogram(values, 8), np.histogram(values, 8), np.histogram(values * 2, 8), np.histogram(values, 3)]
        for step, pair in enumerate(pairs):
            source.log({"h": Histogram(np_histogram=pair), "loss": 1.0}, step)
        found = Reading(source).series("h")
        assert [len(series.times) for series in found] == [2, 1, 1]
        assert all(isinstance(series, ExplicitHistogram) for series in found)
        shown = [(series.bounds, buckets) for series in found for buckets in series.buckets]
        for (counts, edges), (bounds, buckets) in zip(pairs, shown, strict=True):
            assert bounds.tolist() == edges.tolist()
            assert buckets.tolist() == [0, *counts.tolist(), 0]
        assert found[0].counts.tolist() == [500, 500]
        assert math.isnan(found[0].sums[0])
        assert found[0].temporality is Temporality.DELTA

    def test_changing_edges_do_not_fill_the_dictionary(self, source):
        for step in range(50):
            source.log({"h": Histogram(np_histogram=np.histogram([step, step + 1.0], 4))}, step)
        assert len(source.recorder._layouts._wide) == 1
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


class TestDevice:
    def test_a_row_of_everything(self, device_source):
        tensors = {
            "f32": torch.randn(500),
            "bf16": torch.randn(20, 20).bfloat16(),
            "f64": torch.randn(300, dtype=torch.float64) * 1e30,
            "int": torch.arange(-5, 6),
            "nan": torch.tensor([1.0, math.nan]),
        }
        log_on_device(device_source, 5, [("loss", torch.tensor(0.5)), ("norm", torch.tensor(2.5))], **tensors)
        device_source.log({name: Histogram(tensor) for name, tensor in tensors.items()}, 6)
        batch = Reading(device_source).batch()
        by_name = {series.name: series for series in batch.series if not series.attributes}
        assert [by_name[name].values.tolist() for name in ("host", "loss", "norm")] == [[1.0], [0.5], [2.5]]
        for name in tensors:
            series = by_name[name]
            assert series.scales[0] == series.scales[1]
            assert side(series.positive, 0) == side(series.positive, 1)
            assert side(series.negative, 0) == side(series.negative, 1)
            for column in (series.sums, series.minima, series.maxima):
                assert column[0] == pytest.approx(column[1], nan_ok=True)
        assert nonfinite(batch) == {("nan", "NaN"): [1, 1]}

    def test_the_counts_are_copied_before_the_statistics(self, device_source, monkeypatch):
        """And nothing after them that belongs to the distributions; then the plain values."""
        sizes = []
        copy_words, copy = DeviceCopies.copy_words, DeviceCopies.copy

        def watch_words(self, word, words):
            sizes.append(words.numel() * words.element_size() // 8)
            copy_words(self, word, words)

        def watch(self, word, tensors):
            sizes.append(-len(tensors))
            copy(self, word, tensors)

        monkeypatch.setattr(DeviceCopies, "copy_words", watch_words)
        monkeypatch.setattr(DeviceCopies, "copy", watch)
        tensors = {"a": torch.ones(3), "b": torch.ones(3), "c": torch.ones(3, dtype=torch.float64)}
        log_on_device(device_source, 0, [("loss", torch.tensor(0.5))], **tensors)
        assert sizes == [2 * SINGLE.words, DOUBLE.words, 2 * STATISTICS_WORDS, STATISTICS_WORDS, -1]

    def test_a_row_waits_for_every_word_of_the_statistics(self, device_source, monkeypatch):
        launched = []
        monkeypatch.setattr(DeviceCopies, "copy_words", lambda self, word, words: launched.append((word, words)))
        log_on_device(device_source, 0, a=torch.ones(3), b=torch.tensor([2.0]))
        device_source.log({"later": 1.0}, 1)
        reading = Reading(device_source)
        (counts_at, counts), (statistics_at, statistics) = launched
        words = device_source.ring.words
        words[counts_at : counts_at + 2 * SINGLE.words] = memoryview(counts.numpy()).cast("B").cast("q")
        for index, word in enumerate(memoryview(statistics.numpy()).cast("B").cast("q")):
            assert reading.batch() is None
            assert words[statistics_at + index] == PENDING
            words[statistics_at + index] = word
        by_name = {series.name: series for series in reading.batch().series}
        assert by_name["a"].counts.tolist() == [3]
        assert by_name["b"].sums.tolist() == [2.0]
        assert by_name["later"].values.tolist() == [1.0]

    def test_what_a_dead_process_left_pending_is_given_up(self, device_source, monkeypatch):
        log_on_device(device_source, 0, a=torch.ones(3))
        monkeypatch.setattr(DeviceCopies, "copy_words", lambda *_: None)
        log_on_device(device_source, 1, a=torch.ones(3), b=torch.ones(3))
        reading = Reading(device_source)
        batch = reading.batch(abandon=True)
        assert {series.name: len(series.times) for series in batch.series} == {
            "tensormeter.step": 2,
            "host": 2,
            "a": 1,
        }
        assert reading.processor.lost == 2

    def test_a_device_without_memory_loses_its_distributions_only(self, device_source, monkeypatch, caplog):
        def no_memory(*_, **__):
            raise torch.OutOfMemoryError("none left")

        monkeypatch.setattr(torch, "bucketize", no_memory)
        log_on_device(device_source, 3, [("loss", torch.tensor(0.5))], a=torch.ones(3))
        batch = Reading(device_source).batch()
        assert {series.name for series in batch.series} == {"tensormeter.step", "host", "loss"}
        assert device_source.ring.drops() == {"device_unfinished": 1}
        assert "none left" in caplog.text
        assert torch.is_grad_enabled()

    def test_a_failing_copy_is_seen_by_the_reader(self, device_source, monkeypatch):
        def fail(*_):
            raise RuntimeError("no")

        monkeypatch.setattr(DeviceCopies, "copy_words", fail)
        log_on_device(device_source, 3, a=torch.ones(3), b=torch.ones(3))
        reading = Reading(device_source)
        assert [series.name for series in reading.batch().series] == ["tensormeter.step", "host"]
        assert reading.processor.lost == 2


def test_many_distributions_take_several_rows(new_source):
    source = new_source(lanes=1, buffer_bytes=1 << 18)
    names = [f"layer{i}" for i in range(15)]
    source.log({"loss": 1.0} | {name: Histogram(torch.tensor([float(i)])) for i, name in enumerate(names)}, 9)
    batch = Reading(source).batch()
    by_name = {series.name: series for series in batch.series}
    assert len(by_name["loss"].times) == 1
    steps = by_name["tensormeter.step"]
    assert len(steps.times) > 1
    assert set(steps.values.tolist()) == {9}
    for i, name in enumerate(names):
        assert by_name[name].sums.tolist() == [float(i)]
        assert by_name[name].times[0] in steps.times


def test_ever_different_sets_of_distributions_do_not_fill_the_dictionary(new_source):
    """As of a model with experts, where gradients are missing now here, now there."""
    source = new_source(buffer_bytes=32 << 20)
    chance = random.Random(3)
    reading, found = Reading(source), collections.Counter()
    expected = collections.Counter()
    for step in range(150):
        names = chance.sample([f"expert{i}" for i in range(16)], 8)
        source.log({"loss": 1.0} | {name: Histogram(torch.ones(2)) for name in names}, step)
        expected.update(["loss", *names])
        found.update({series.name: len(series.times) for series in reading.batch().series})
    del found[STEP_METRIC]
    assert found == expected
    assert len(source.recorder._layouts._wide) <= 64 + 16
    assert source.ring.drops() == {}


def test_under_autocast_nothing_changes(device_source):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e-3
    log_on_device(device_source, 0, g=values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_on_device(device_source, 1, g=values)
    (series,) = Reading(device_source).series("g")
    assert side(series.positive, 0) == side(series.positive, 1)
    assert [column[0] for column in (series.sums, series.minima)] == [
        column[1] for column in (series.sums, series.minima)
    ]


def test_a_full_ring_drops_whole_rows_and_counts_them(new_source, caplog):
    source = new_source(lanes=1, buffer_bytes=1 << 16)
    for step in range(20):
        source.log({"g": Histogram(torch.ones(2))}, step)
    reading = Reading(source)
    (series,) = reading.series("g")
    assert 0 < len(series.times) == 20 - source.ring.drops()["ring_full"]
    source.log({"g": Histogram(torch.ones(2))}, 21)
    assert len(reading.series("g")) == 1


def test_a_distribution_that_no_lane_can_hold_is_counted(new_source, caplog):
    source = new_source(lanes=1, buffer_bytes=1 << 13)
    source.log({"g": Histogram(torch.ones(2)), "loss": 1.0}, 0)
    assert source.ring.drops() == {"too_many_layouts": 1}
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
    found = collections.defaultdict(list)
    for request in receiver.accepted().values():
        if request.path == "/v1/metrics":
            for batch in decode_metrics(gzip.decompress(request.body)):
                for series in batch.series:
                    found[series.name].append(series)
    assert sorted(np.concatenate([series.sums for series in found["x"]])) == [3.0, 6.0, 9.0]
    assert found["made"][0].bounds.tolist() == edges.tolist()
    assert sum(len(series.times) for series in found["gradients/weight"]) == 3
    assert {int(count) for series in found["gradients/bias"] for count in series.counts} == {2}
    assert sum(len(series.times) for series in found["tensormeter.step.throughput"]) == 3


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class TestCuda:
    pytestmark = gpu

    @pytest.fixture
    def cuda_source(self):
        """With its ring in shared memory, page-locked."""
        ring = RingFile.create(Path(f"/dev/shm/tensormeter-test-{os.getpid()}.ring"), {}, buffer_bytes=1 << 22)
        recorder = Recorder(ring, on_writer=lambda writer: None)
        source = SimpleNamespace(ring=ring, recorder=recorder, log=recorder.log, path=ring.path)
        source.log({"warm": Histogram(torch.ones(3, device="cuda")), "n": torch.ones((), device="cuda")}, 0)
        torch.cuda.synchronize()
        reading = Reading(source)
        assert reading.series("warm")[0].counts.tolist() == [3]
        ring.remove()  # the mappings stay
        yield source, reading
        torch.cuda.synchronize()
        ring.release()

    def test_no_call_synchronizes_and_the_result_is_that_of_the_host(self, cuda_source):
        source, reading = cuda_source
        tensors = {
            "f32": torch.randn(1_000_003, device="cuda"),
            "bf16": torch.randn(300, 300, device="cuda", dtype=torch.bfloat16),
            "f64": torch.randn(1000, device="cuda", dtype=torch.float64),
            "int": torch.arange(-500, 500, device="cuda"),
            "odd": torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-30, -1e38], device="cuda"),
            "transposed": torch.randn(30, 40, device="cuda").t(),
        }
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            source.log({name: Histogram(tensor) for name, tensor in tensors.items()}, 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        source.log({name: Histogram(tensor.cpu()) for name, tensor in tensors.items()}, 2)
        by_name = {series.name: series for series in reading.batch().series if not series.attributes}
        for name in tensors:
            series = by_name[name]
            assert series.counts[0] == series.counts[1]
            assert side(series.positive, 0) == side(series.positive, 1)
            assert side(series.negative, 0) == side(series.negative, 1)
            assert series.sums[0] == pytest.approx(series.sums[1], nan_ok=True)

    def test_a_snapshot_in_stream_order(self, cuda_source):
        source, reading = cuda_source
        tensor = torch.ones(1000, device="cuda")
        source.log({"g": Histogram(tensor)}, 0)  # the first launch of a kernel can wait for the device
        torch.cuda.synchronize()
        assert len(reading.series("g")) == 1
        torch.cuda._sleep(3_000_000_000)
        source.log({"g": Histogram(tensor)}, 1)
        tensor.zero_()
        assert reading.batch() is None  # nothing waited
        torch.cuda.synchronize()
        (series,) = reading.series("g")
        assert series.sums.tolist() == [1000.0]

    def test_over_steps_without_waiting(self, cuda_source):
        source, reading = cuda_source
        tensors = {
            "f32": torch.randn(10_000, device="cuda"),
            "bf16": torch.randn(300, device="cuda", dtype=torch.bfloat16),
            "f64": torch.randn(1000, device="cuda", dtype=torch.float64),
        }
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in range(4):
                source.log({name: Histogram(tensor) for name, tensor in tensors.items()}, step, every=4)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        hosts = {name: Histogram(torch.cat([tensor.cpu()] * 4)) for name, tensor in tensors.items()}
        source.log(hosts, 4)
        by_name = {series.name: series for series in reading.batch().series if not series.attributes}
        for name in tensors:
            series = by_name[name]
            assert side(series.positive, 0) == side(series.positive, 1)
            assert side(series.negative, 0) == side(series.negative, 1)
            assert series.sums[0] == pytest.approx(series.sums[1])
            assert series.minima[0] == series.minima[1]
            assert series.maxima[0] == series.maxima[1]

    def test_other_streams(self, cuda_source):
        source, reading = cuda_source
        source.recorder._rows._wide._tables._bounds.clear()
        tensor = torch.ones(1000, device="cuda")
        torch.cuda.synchronize()
        torch.cuda._sleep(50_000_000)
        source.log({"g": Histogram(tensor)}, 1)  # the bounds are computed behind the sleep
        with torch.cuda.stream(torch.cuda.Stream()):
            source.log({"g": Histogram(tensor)}, 2)
        torch.cuda.synchronize()
        (series,) = reading.series("g")
        assert side(series.positive, 0) == side(series.positive, 1)

    def test_deterministic_algorithms(self, cuda_source):
        source, reading = cuda_source
        torch.use_deterministic_algorithms(True)
        try:
            source.log({"g": Histogram(torch.ones(10, device="cuda"))}, 1)
        finally:
            torch.use_deterministic_algorithms(False)
        torch.cuda.synchronize()
        (series,) = reading.series("g")
        assert series.counts.tolist() == [10]


def test_the_nonfinite_metric_is_a_gauge_of_integers(source):
    source.log({"g": Histogram([math.nan])}, 0)
    (series,) = Reading(source).series(NONFINITE_METRIC)
    assert isinstance(series, Gauge)
    assert series.values.dtype == np.int64
    assert series.unit == "{value}"
