"""Statistics that only the training process has are recorded now and then, without a delay."""

import gc

import pytest

from tensormeter.record.runtime import metrics as vitals_module
from tensormeter.record.runtime.metrics import RuntimeMetrics


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(vitals_module.time, "monotonic", lambda: now[0])
    return now


def by_name(recording):
    return [(name, value) for row in recording.rows() for name, value in row.values.items()]


def test_a_sample_is_taken_when_it_is_time(recording, clock):
    vitals = RuntimeMetrics(recording.recorder, 10.0)
    for now in (100.0, 105.0, 109.9, 110.0):
        clock[0] = now
        vitals.beat()
    names = [name for name, _ in by_name(recording)]
    generations = len(gc.get_stats())
    assert names.count("cpython.gc.collections") == 2 * generations
    before = [value for name, value in by_name(recording) if name == "cpython.gc.collections"]
    assert before == []
    gc.collect()
    vitals.sample()
    oldest = [value for name, value in by_name(recording) if name == "cpython.gc.collections"][-1]
    assert oldest == gc.get_stats()[-1]["collections"]


def test_an_interval_of_zero_samples_nothing(recording, clock):
    vitals = RuntimeMetrics(recording.recorder, 0.0)
    vitals.beat()
    vitals.sample()
    assert by_name(recording) == []


def test_a_failing_metric_is_dropped_after_one_warning(recording, clock, monkeypatch, warnings_logged):
    def fail():
        raise AttributeError("memory_stats")

    monkeypatch.setattr(vitals_module, "torch_memory", fail)
    vitals = RuntimeMetrics(recording.recorder, 10.0)
    vitals.beat()
    clock[0] += 1000
    vitals.beat()
    (warning,) = warnings_logged()
    assert "memory_stats" in warning


def test_a_row_that_asks_for_a_beat_while_one_is_taken(new_recording, clock, monkeypatch):
    recording = new_recording(lanes=1)
    vitals = RuntimeMetrics(recording.recorder, 10.0)
    monkeypatch.setattr(recording.recorder._lanes.first, "_on_stride", vitals.beat)
    for number in range(500):
        clock[0] += 1
        recording.log({"a": float(number)}, number)
    rows = recording.rows()
    assert [row.step for row in rows if "a" in row.values] == list(range(500))
    assert any("cpython.gc.collections" in row.values for row in rows)
