"""Samplers and nodes: readings become columns at an interval, also when a sensor hangs or fails."""

import itertools
import os
import threading
import time

import numpy as np
import pytest

import tensormeter.sensors.sampler as sampler_module
from support.waiting import wait_for
from tensormeter.otlp.batch import Gauge, Sum, Temporality
from tensormeter.otlp.decode import decode_metrics
from tensormeter.otlp.encode import encode_metrics
from tensormeter.sensors.columns import Columns
from tensormeter.sensors.instrument import AbsentError, Instrument
from tensormeter.sensors.node import Node
from tensormeter.sensors.sampler import Sampler, next_due
from tensormeter.sensors.targets import TrainingProcess, Watch

LEVEL = Instrument("level", "gauge", "1", "A level.", ("place",))
COUNT = Instrument("count", "counter", "{thing}", "A count.")
SIZE = Instrument("size", "updowncounter", "By", "A size.")


class Fake:
    """A sensor whose readings the test controls."""

    name = "fake"
    instruments = (LEVEL, COUNT, SIZE)

    def __init__(self):
        self.number = 0
        self.closed = threading.Event()
        self.error = None
        self.gate = threading.Event()
        self.gate.set()

    def readings(self):
        self.number += 1
        return [("broken", self._broken), ("levels", self._levels), ("totals", self._totals)]

    def close(self):
        self.closed.set()

    def _broken(self):
        if self.error is not None:
            raise self.error
        return []

    def _levels(self):
        self.gate.wait()
        yield LEVEL, self.number / 2, {"place": "a"}
        yield LEVEL, -self.number, {"place": "b"}

    def _totals(self):
        yield COUNT, 10 * self.number, {}
        yield SIZE, 7, {}


@pytest.fixture
def start():
    samplers = []

    def begin(sensor, interval=0.01):
        samplers.append(Sampler(sensor.name, lambda: sensor, interval))
        return samplers[-1]

    yield begin
    for sampler in samplers:
        sampler.stop(60)


def by_name(series):
    points = {}
    for item in series:
        points[item.name, *item.attributes.values()] = item
    return points


def test_samples_become_one_series_for_each_attribute_set(start):
    sensor = Fake()
    began = time.time_ns()
    sampler = start(sensor)
    wait_for(lambda: sampler.samples >= 5, "five samples")
    sampler.stop(60)
    assert sampler.over
    assert sensor.closed.is_set()
    points = by_name(sampler.columns.take())
    n = sampler.samples
    numbers = np.arange(1, n + 1)
    a, b, count, size = points["level", "a"], points["level", "b"], points["count",], points["size",]
    assert type(a) is Gauge
    assert a.values.tolist() == (numbers / 2).tolist()
    assert b.values.tolist() == (-numbers).tolist()
    assert (type(count), count.monotonic, count.temporality) == (Sum, True, Temporality.CUMULATIVE)
    assert (count.values.dtype, count.values.tolist()) == (np.int64, (10 * numbers).tolist())
    assert (type(size), size.monotonic, size.values.tolist()) == (Sum, False, [7] * n)
    assert (size.unit, size.description, size.scope.name) == ("By", "A size.", "tensormeter.sensors")
    assert np.all(np.diff(a.times.astype(np.int64)) > 0)
    assert began <= int(a.times[0]) <= int(a.times[-1]) <= time.time_ns()
    assert a.times.tolist() == count.times.tolist()
    assert all(began <= start <= count.times[0] for start in count.start_times)
    assert len(points["tensormeter.sensor.sample.duration", "fake"].values) == n


def test_a_failing_reading_is_counted_and_the_others_go_on(start, caplog):
    sensor = Fake()
    sensor.error = OSError("the disk is on fire")
    sampler = start(sensor)
    wait_for(lambda: sampler.samples >= 3, "three samples")
    sampler.stop(60)
    points = by_name(sampler.columns.take())
    failures = points["tensormeter.sensor.failures", "fake", "OSError"]
    assert failures.values.tolist() == list(range(1, sampler.samples + 1))
    assert len(points["level", "a"].values) == sampler.samples
    assert caplog.text.count("the disk is on fire") == 1


def test_a_collection_that_fails_is_counted_and_said_once_and_the_next_goes_on(start, monkeypatch, caplog):
    calls = itertools.count()
    collect = sampler_module.InMemoryMetricReader.get_metrics_data

    def fails_twice(reader):
        if next(calls) in (1, 2):
            raise TimeoutError("timed out while executing callback")  # as after the clock was set forward
        return collect(reader)

    monkeypatch.setattr(sampler_module.InMemoryMetricReader, "get_metrics_data", fails_twice)
    sensor = Fake()
    sensor.error = TimeoutError("the disk is asleep")  # a failure of the same kind hides neither
    sampler = start(sensor)
    wait_for(lambda: sampler.samples >= 5, "five samples")
    sampler.stop(60)
    points = by_name(sampler.columns.take())
    assert len(points["level", "a"].values) == sampler.samples - 2
    failures = points["tensormeter.sensor.failures", "fake", "TimeoutError"]
    # One a sample by the reading, and two by the collections of the second and the third.
    assert failures.values.tolist() == [1, *range(6, sampler.samples + 3)]
    for reason in ("timed out while executing callback", "the disk is asleep"):
        assert caplog.text.count(reason) == 1


def test_values_before_the_failure_of_a_reading_are_kept(start, caplog):
    class HalfBroken(Fake):
        def _totals(self):
            yield COUNT, 10 * self.number, {}
            raise PermissionError("not yours")

    sampler = start(HalfBroken())
    wait_for(lambda: sampler.samples >= 2, "two samples")
    sampler.stop(60)
    points = by_name(sampler.columns.take())
    assert points["count",].values.tolist() == [10 * number for number in range(1, sampler.samples + 1)]
    assert "size" not in {name for name, *_ in points}
    assert points["tensormeter.sensor.failures", "fake", "PermissionError"].values[-1] == sampler.samples
    assert "could not read all of totals" in caplog.text
    assert "its remaining values are missing" in caplog.text


def test_an_absent_reading_is_no_failure(start, caplog):
    sensor = Fake()
    sensor.error = AbsentError()
    sampler = start(sensor)
    wait_for(lambda: sampler.samples >= 2, "two samples")
    sampler.stop(60)
    assert "tensormeter.sensor.failures" not in {series.name for series in sampler.columns.take()}
    assert caplog.text == ""


def test_a_sensor_that_cannot_be_made_is_left_out(caplog):
    def fail():
        raise RuntimeError("no such device")

    sampler = Sampler("gone", fail, 0.01)
    wait_for(lambda: sampler.over, "the sampler has given up")
    assert "no such device" in caplog.text
    assert sampler.columns.take() == []


def test_a_stuck_reading_does_not_keep_the_caller(start, monkeypatch, caplog):
    monkeypatch.setattr("tensormeter.sensors.sampler._STUCK_AFTER", 0.05)
    sensor = Fake()
    sampler = start(sensor)
    wait_for(lambda: sampler.samples >= 1, "a sample")
    sensor.gate.clear()

    def reported():
        sampler.report_if_stuck()
        return "has not responded" in caplog.text

    wait_for(reported, "the hang is reported")
    stuck = "tensormeter.sensor.failures", "fake", "stuck"
    meanwhile = by_name(sampler.take())[stuck]  # does not wait
    sampler.stop(0)  # nor does this
    assert not sampler.over
    sensor.gate.set()
    wait_for(lambda: sampler.over, "the thread ends once the reading comes back")
    points = by_name(sampler.take())
    assert meanwhile.values.tolist() == points[stuck].values.tolist() == [1]
    assert meanwhile.start_times.tolist() == points[stuck].start_times.tolist()
    assert meanwhile.start_times[0] < meanwhile.times[0] < points[stuck].times[0]
    described = points["tensormeter.sensor.sample.duration", "fake"]
    assert (meanwhile.scope, meanwhile.unit, meanwhile.monotonic) == (described.scope, "{failure}", True)


def test_a_sensor_that_hangs_from_the_start_is_counted(monkeypatch):
    monkeypatch.setattr("tensormeter.sensors.sampler._STUCK_AFTER", 0.05)
    gate = threading.Event()

    def hang():
        gate.wait()
        return Fake()

    sampler = Sampler("fake", hang, 0.01)

    def counted():
        sampler.report_if_stuck()
        return sampler.take()

    wait_for(counted, "the hang is counted")
    (failures,) = sampler.take()
    assert (failures.values.tolist(), failures.attributes["error.type"]) == ([1], "stuck")
    gate.set()
    sampler.stop(60)


@pytest.mark.parametrize(
    ("now", "expected"),
    [(100.0, 110.0), (101.0, 110.0), (109.9, 110.0), (110.0, 110.0), (110.1, 120.0), (157.0, 160.0), (99.0, 110.0)],
)
def test_samples_keep_to_the_beat_and_late_ones_are_skipped(now, expected):
    assert next_due(100.0, now, 10.0) == expected


def test_points_that_no_batch_takes_are_counted():
    columns = Columns(most_points=3)
    sensor = Fake()
    sampler = Sampler("fake", lambda: sensor, 0.01)
    sampler.columns = columns
    wait_for(lambda: sampler.samples >= 3, "three samples")
    sampler.stop(60)
    assert columns.points == 3
    assert columns.dropped > 0
    assert sum(len(series.times) for series in columns.take()) == 3


@pytest.fixture
def node(nvml):
    nodes = []

    def begin(interval=0.1, delay=0.01):
        watch = Watch(processes=(TrainingProcess("p", os.getpid(), time.time(), None),))
        nodes.append(Node({"service.name": "p"}, watch, interval=interval, delay=delay))
        return nodes[-1]

    yield begin
    for item in nodes:
        nvml.hang and nvml.hang.set()
        item.stop(60)


def take(node, **options):
    batches = []

    def taken():
        batch = node.take(**({"flush": False, "most_points": 1 << 30} | options))
        if batch is not None:
            batches.append(batch)
        return batches

    wait_for(taken, "a batch")
    return batches[0]


def test_many_samples_share_a_request(node):
    statistics = node()
    first = take(statistics)  # at once, so that a short run has some
    # The sensors without a device have nothing; each of the others gives its first sample.
    names = {series.name for series in first.series}
    assert {"system.cpu.time", "process.cpu.time", "hw.power", "system.filesystem.usage"} <= names
    second = take(statistics)
    (duration,) = [
        series
        for series in second.series
        if series.name == "tensormeter.sensor.sample.duration" and series.attributes["tensormeter.sensor"] == "host"
    ]
    assert len(duration.times) >= 5


def test_a_batch_survives_the_wire(node):
    batch = take(node())
    (arrived,) = decode_metrics(encode_metrics([batch]))

    def flat(batch):
        return {
            (type(series), series.name, series.unit, *sorted(series.attributes.items())): series.values.tolist()
            for series in batch.series
        }

    assert flat(arrived) == flat(batch)


def test_a_gpu_that_hangs_stops_only_itself(node, nvml):
    statistics = node()
    take(statistics)
    nvml.hang = threading.Event()
    for _ in range(2):
        batch = take(statistics)
    host, gpu = (
        [series for series in batch.series if series.attributes.get("tensormeter.sensor") == sensor]
        for sensor in ("host", "nvidia")
    )
    assert host
    assert not gpu


def test_a_gpu_that_never_recovers_is_counted_as_stuck(node, nvml, monkeypatch):
    statistics = node()
    take(statistics)
    monkeypatch.setattr("tensormeter.sensors.sampler._STUCK_AFTER", 0.05)
    nvml.hang = threading.Event()
    key = "tensormeter.sensor.failures", "nvidia", "stuck"
    wait_for(lambda: key in by_name(take(statistics).series), "the hang arrives while the GPU hangs")
    (arrived,) = decode_metrics(encode_metrics([take(statistics)]))
    assert by_name(arrived.series)[key].values[0] >= 1
