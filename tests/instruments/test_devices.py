"""Tensors as amounts: on the CPU, on a device that has not finished yet, and, where there is a GPU, on a real one."""

import math
import shutil

import numpy as np
import pytest
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import tensormeter.record.value_reader as value_reader
from support.optional import has_cuda, torch
from tensormeter.instruments import forwarding as forwarding_module
from tensormeter.instruments import observing as observing_module
from tensormeter.record.values.classify import DeviceValue, classify
from tensormeter.ring.format import LOST, PENDING

gpu = [pytest.mark.gpu, pytest.mark.skipif(not has_cuda(), reason="needs a CUDA device")]


@pytest.fixture
def device(monkeypatch):
    """Makes float64 tensors count as values of a device, which never finishes by itself."""
    tensors, float64 = torch.Tensor, torch.float64

    def classify_here(value):
        return DeviceValue(value) if isinstance(value, tensors) and value.dtype is float64 else classify(value)

    for module in (value_reader, forwarding_module, observing_module):
        monkeypatch.setattr(module, "classify", classify_here)
    monkeypatch.setattr(value_reader.DeviceCopies, "prepare", lambda self, tensor: None)
    monkeypatch.setattr(value_reader.DeviceCopies, "copy", lambda self, word, tensors: None)
    return lambda value=0.0: torch.tensor(value, dtype=torch.float64)


def finish(measured, *values):
    """The device stores its values, the oldest first; None says that it never will."""
    words = measured.recorder._ring.words
    pending = [index for index in range(len(words)) if words[index] == PENDING]
    for index, value in zip(pending, values, strict=False):
        words[index] = LOST if value is None else int(np.float64(value).view(np.int64))


def sdk_value(reader, name):
    data = reader.get_metrics_data()
    metrics = [
        metric
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
    ]
    return [getattr(point, "value", None) or point.sum for metric in metrics for point in metric.data.data_points]


def test_tensors_and_arrays_of_one_number_count(measured):
    counter = measured.meter.create_counter("a")
    for amount in (
        torch.tensor(1), torch.tensor(2.5), torch.tensor([[3.0]], requires_grad=True), np.float32(0.5), np.int8(4),
        np.array([2]), True,
    ):  # fmt: skip
        counter.add(amount)
    assert measured.one("a").values.tolist() == [14.0]


def test_a_device_value_counts_when_it_is_there(measured, device):
    counter = measured.meter.create_counter("a")
    counter.add(1)
    counter.add(device())
    counter.add(2)
    assert measured.one("a").values.tolist() == [1]  # what comes after it waits with it
    finish(measured, 0.5)
    assert measured.one("a").values.tolist() == [3.5]


def test_the_agent_refuses_device_values_that_cannot_be_aggregated(measured, device):
    counter = measured.meter.create_counter("counter")
    histogram = measured.meter.create_histogram("histogram")
    gauge = measured.meter.create_gauge("gauge")
    for method in (counter.add, histogram.record, gauge.set):
        for _ in range(3):
            method(device())
    finish(measured, math.nan, -1.0, 2.0, math.inf, -1.0, 3.0, math.nan, -1.0, 4.0)
    by_name = {series.name: series for series in measured.series()}
    assert by_name["counter"].values.tolist() == [2.0]
    assert by_name["histogram"].counts.tolist() == [2]
    assert (by_name["histogram"].minima[0], by_name["histogram"].maxima[0]) == (-1.0, 3.0)
    assert repr(by_name["gauge"].values.tolist()) == "[nan, -1.0, 4.0]"
    assert measured.refused == 3
    measured.kill_agent()
    assert measured.refused == 3


def test_values_that_a_device_never_finished_are_left_out(measured, device):
    gauge = measured.meter.create_gauge("a")
    for _ in range(3):
        gauge.set(device())
    finish(measured, 1.0, None, 3.0)
    assert measured.one("a").values.tolist() == [1.0, 3.0]
    assert measured._processor.lost == 1


def test_readers_get_device_values_when_they_are_there(new_measured, device):
    reader = InMemoryMetricReader()
    measured = new_measured(metric_readers=[reader])
    counter = measured.meter.create_counter("a")
    attributes = {"k": "v"}
    counter.add(1, attributes)
    counter.add(device(), attributes)
    attributes["k"] = "other"
    counter.add(4, {"k": "v"})
    assert sdk_value(reader, "a") == [5]
    finish(measured, 0.5)
    assert sdk_value(reader, "a") == [5.5]
    assert sdk_value(reader, "a") == [5.5]  # once
    assert sdk_value(reader, "tensormeter.forward.lost") == []


def test_readers_miss_what_was_overwritten_or_never_finished_and_it_is_counted(new_measured, device):
    reader = InMemoryMetricReader()
    measured = new_measured({"buffer_bytes": 1 << 16}, metric_readers=[reader])
    gauge = measured.meter.create_gauge("a")
    gauge.set(device())
    gauge.set(device())
    finish(measured, None, 2.0)
    measured.series()
    for _ in range(3):  # more than a lap, delivered meanwhile
        for _ in range(500):
            gauge.set(1.5)
        measured.series()
    assert sdk_value(reader, "tensormeter.forward.lost") == [2]
    assert sdk_value(reader, "a") == [1.5]


def test_observed_device_values_count_once_they_have_come(new_measured, device):
    reader = InMemoryMetricReader()
    measured = new_measured(metric_readers=[reader])
    measured.meter.create_observable_gauge("a", [lambda options: [Observation(device()), Observation(7.0, {"k": 1})]])
    measured.provider._observer.flush(300)
    finish(measured, 3.0)
    assert {key: series.values.tolist() for key, series in measured.by_attributes().items()} == {
        (): [3.0],
        (("k", 1),): [7.0],
    }
    assert sdk_value(reader, "a") == [7.0]
    assert sdk_value(reader, "tensormeter.forward.lost") != []


class TestOnCuda:
    pytestmark = gpu

    def test_device_values_are_right_and_do_not_synchronize(self, tmp_path):
        from pathlib import Path

        import tensormeter

        folder = Path("/dev/shm") / f"tensormeter-test-{tmp_path.name}"
        settings = tensormeter.Settings(
            directory=tmp_path / "runs", buffer_directory=folder, mode="offline", agent="off", observe_interval=3600
        )
        reader = InMemoryMetricReader()
        run = tensormeter.init(settings=settings)
        try:
            provider = tensormeter.MeterProvider([reader], run=run)
            meter = provider.get_meter("test")
            counter, gauge = meter.create_counter("counter"), meter.create_gauge("gauge")
            histogram = meter.create_histogram("histogram")
            value = torch.ones((), device="cuda")
            counter.add(value)  # page-locks the ring
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(10):
                    value += 1
                    counter.add(value, {"k": "v"})
                    gauge.set(value.bfloat16())
                    histogram.record(value)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
            assert sdk_value(reader, "counter") == [1.0, 65.0]
            assert sdk_value(reader, "histogram") == [65.0]
            assert sdk_value(reader, "gauge") == [11.0]
            assert sdk_value(reader, "tensormeter.forward.lost") == []
        finally:
            run.finish()
            shutil.rmtree(folder)
            for path in folder.rglob("*"):
                path.is_file() and path.unlink()
