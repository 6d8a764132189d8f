"""The cost of log calls is counted. A slow call is warned about once for each reason, with its keys."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

import tensormeter.record.log_timing as cost_module
import tensormeter.record.rows.lane as lane_module
from tensormeter.record.log_timing import LogTiming
from tensormeter.ring.format import LogPath


class Clock:
    """Stands in for the module `time`: it only advances when a value says so."""

    def __init__(self):
        self.wall = self.cpu = 0

    def perf_counter_ns(self):
        return self.wall

    def thread_time_ns(self):
        return self.cpu


@pytest.fixture
def slow_value(monkeypatch):
    """Makes values that take 10 ms, or longer, to look at. The thread runs for a given part of that time."""
    clock = Clock()
    monkeypatch.setattr(cost_module, "time", clock)
    monkeypatch.setattr(cost_module, "_SLOW", 1_000_000)

    def make(running, duration=10_000_000):
        class Slow(Fraction):
            def __float__(self):
                clock.wall += duration
                clock.cpu += running
                return 1.0

        return Slow(1)

    return make


@pytest.mark.parametrize(("running", "is_warned"), [(10_000_000, False), (90_000_000, True)])
def test_a_slow_call_is_warned_about_once_unless_its_thread_waited(
    recording, warnings_logged, slow_value, running, is_warned
):
    row = {"loss": slow_value(running, 100_000_000), **{f"n{i}": i for i in range(7)}}
    for _ in range(3):
        recording.log(row)
    expected = ["log() of 'loss', 'n0', 'n1', 'n2', 'n3' and 3 more took 100.0 ms: "] if is_warned else []
    assert [warning.partition("copying")[0] for warning in warnings_logged()] == expected
    total, counts = recording.ring.log_durations(LogPath.GENERAL)
    assert (total, sum(counts)) == (300_000_000, 3)


@pytest.mark.parametrize("count", [8, 1500, 5000])
def test_numbers_are_not_blamed_for_more_time_than_they_can_take(recording, warnings_logged, slow_value, count):
    class Rows(dict):
        """Its iteration takes the time that a garbage collection would take."""

        def __iter__(self):
            float(slow_value(9_000_000))
            return super().__iter__()

        items = property(lambda self: lambda: [(key, self[key]) for key in self])

    row = Rows({f"n{i}": np.float32(i) if i % 2 else i for i in range(count)})
    for _ in range(3):
        recording.log(row)
    warnings = warnings_logged()
    assert len(warnings) == (count == 5000)
    assert all("too many values" in warning for warning in warnings)


def test_a_mapping_that_cannot_be_shown_is_named_by_its_type(recording, warnings_logged, slow_value):
    class Rows(dict):
        def __iter__(self):
            raise RuntimeError("its keys cannot be had")

    for _ in range(3):
        recording.log(Rows(loss=slow_value(90_000_000, 100_000_000)))
    (warning,) = warnings_logged()
    assert warning.startswith("log() of a Rows took 100.0 ms: ")


def test_the_first_calls_are_not_warned_about(recording, warnings_logged, slow_value):
    recording.log({"loss": slow_value(0)})
    assert warnings_logged() == []


def test_quick_calls_are_only_counted(recording, warnings_logged, slow_value):
    for number in range(10):
        recording.log({"loss": Fraction(number)})
    _, counts = recording.ring.log_durations(LogPath.GENERAL)
    assert sum(counts) == 10
    recording.log([])
    assert [text for text in warnings_logged() if "took" in text] == []


def test_python_writers_time_one_call_in_64(new_recording, monkeypatch):
    ticks = itertools.count(1)
    monkeypatch.setattr(lane_module, "_writer", None)
    monkeypatch.setattr(lane_module, "time_ns", lambda: next(ticks))
    recording = new_recording()
    for number in range(640):
        recording.log({"loss": float(number)})
    total, counts = recording.ring.log_durations(LogPath.DIRECT)
    assert (total, counts[0], sum(counts)) == (10, 10, 10)
    assert len(recording.rows()) == 640


@pytest.mark.parametrize(
    ("duration", "bucket"),
    [(-5, 0), (0, 0), (1, 0), (64, 0), (65, 1), (128, 1), (129, 2), (1 << 30, 24), (1 << 40, 25)],
)
def test_buckets_are_powers_of_two(recording, duration, bucket):
    LogTiming(recording.ring).add(duration)
    total, counts = recording.ring.log_durations(LogPath.GENERAL)
    assert total == max(duration, 0)
    assert [index for index, count in enumerate(counts) if count] == [bucket]
